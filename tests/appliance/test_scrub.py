"""``satchel scrub``: what is refused, what is found, where it goes on, and what is repaired."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.cli import run
from appliance.health import Level, check_models, check_scrub
from appliance.idle import become_idle
from appliance.layout import Paths
from appliance.scrubbing import (
    Damage,
    Pace,
    Record,
    Scrub,
    begin,
    blobs,
    check_blob,
    read_record,
    save_record,
)
from appliance.store import Store
from bundler.format.digest import Digest
from bundler.format.manifest import Role
from tests.appliance.sites import Desk
from tests.fakes.forge import STRANGER, TRUSTED, flip, forge, tiny_model

Satchel = Callable[..., tuple[int, str, str]]
TEXTS: tuple[tuple[Role, bytes], ...] = (("license", b"MIT"), ("template", b"{{ .Prompt }}"))


@pytest.fixture
def bundle(desk: Desk) -> Path:
    """An installed model, and the medium it came from."""
    desk.carry(forge({"F32": tiny_model(1)}, layers=TEXTS))
    return desk.medium


@pytest.fixture
def satchel(desk: Desk, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Satchel:
    config = tmp_path / "satchel.toml"
    config.write_text("[store]\nreserve = 0\n")

    def call(*words: object) -> tuple[int, str, str]:
        options = ["--store", str(desk.store.paths.root), "--config", str(config)]
        code = run([*map(str, words), *options])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def rot(store: Store, digest: Digest) -> Path:
    path = store.paths.blob(digest)
    path.chmod(0o644)
    flip(path, path.stat().st_size - 1)
    path.chmod(0o444)
    return path


def weights(store: Store) -> Digest:
    return store.list()[0].model_digest


@pytest.mark.parametrize("limit", ["fast", "0", "-1", "5 parsecs"])
def test_a_rate_that_is_none_is_refused(satchel: Satchel, limit: str) -> None:
    code, _, err = satchel("scrub", "--limit", limit)
    assert (code, "limit: expected" in err) == (2, True)


def test_a_store_that_is_not_there_is_said(desk: Desk, satchel: Satchel) -> None:
    shutil.rmtree(desk.store.paths.root)
    code, _, err = satchel("scrub")
    assert code == 15
    assert "no such file or directory" in err
    assert check_models(desk.store).level is Level.CRITICAL
    assert check_models(desk.store).text.endswith("is not there")


def test_only_one_scrub_runs(bundle: Path, desk: Desk, satchel: Satchel) -> None:
    assert bundle.is_dir()
    descriptor = os.open(desk.store.paths.blobs, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        code, _, err = satchel("scrub")
    finally:
        os.close(descriptor)
    assert (code, "another scrub of this store is running" in err) == (15, True)


def test_a_whole_store_is_whole(bundle: Path, desk: Desk, satchel: Satchel) -> None:
    assert bundle.is_dir()
    assert check_scrub(desk.store).text == "never finished"
    code, out, _ = satchel("scrub", "--limit", "1GB/s")
    count = len(blobs(desk.store.paths))
    assert (code, out.startswith(f"checked {count} files, ")) == (0, True)
    told = json.loads(satchel("scrub", "--json")[1])
    assert told["damaged"] == []
    assert (told["checked"], told["finished_at"] != "") == (count, True)
    assert check_scrub(desk.store).level is Level.OK
    assert check_scrub(desk.store).text.startswith("finished 2")


def test_rot_is_named_with_path_and_model(bundle: Path, desk: Desk, satchel: Satchel) -> None:
    assert bundle.is_dir()
    path = rot(desk.store, weights(desk.store))
    code, out, err = satchel("scrub")
    assert code == 15
    assert f"damaged {path}" in out
    assert "used by demo:latest" in out
    assert "1 damaged file" in err
    assert "satchel scrub --repair MEDIUM" in err
    found = check_scrub(desk.store)
    assert found.level is Level.CRITICAL
    assert str(path) in found.text
    assert "demo:latest" in found.text
    code, out, _ = satchel("health", "--store-only")
    assert (code, str(path) in out) == (2, True)
    last = (desk.store.paths.journal / "events.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["damaged"] == [str(weights(desk.store))]
    told = satchel("scrub", "--json")
    assert told[0] == 15
    assert json.loads(told[1])["damaged"][0]["models"] == ["demo:latest"]


def test_what_is_missing_is_damage_and_what_nobody_uses_is_named_so(
    bundle: Path, desk: Desk, satchel: Satchel
) -> None:
    assert bundle.is_dir()
    desk.store.paths.blob(weights(desk.store)).unlink()
    (desk.store.paths.blobs / f"sha256-{'0' * 64}").write_bytes(b"lost")
    code, out, err = satchel("scrub")
    assert code == 15
    assert "it is missing" in out
    assert "no model uses it: satchel prune" in out
    assert "2 damaged files" in err


def test_damage_is_repaired_from_a_trusted_bundle(
    bundle: Path, desk: Desk, satchel: Satchel
) -> None:
    before = desk.store.list()[0]
    every = blobs(desk.store.paths)
    for digest in every[1:]:
        rot(desk.store, digest)
    desk.store.paths.blob(every[0]).unlink()
    assert satchel("scrub")[0] == 15
    code, out, err = satchel("scrub", "--repair", bundle)
    assert (code, out.count("repaired ")) == (0, len(every)), err
    assert all(check_blob(desk.store.paths, one, FAST, ignore) is None for one in every)
    assert desk.store.list()[0].digest == before.digest
    assert check_scrub(desk.store).level is Level.OK
    assert satchel("scrub")[0] == 0


def test_a_repair_without_an_earlier_scrub_reads_everything_first(
    bundle: Path, desk: Desk, satchel: Satchel
) -> None:
    rot(desk.store, weights(desk.store))
    told = json.loads(satchel("scrub", "--json", "--repair", bundle)[1])
    assert told["repaired"] == [str(weights(desk.store))]
    assert told["damaged"] == []


def test_a_bundle_that_is_not_trusted_or_damaged_itself_repairs_nothing(
    bundle: Path, desk: Desk, satchel: Satchel, tmp_path: Path
) -> None:
    path = rot(desk.store, weights(desk.store))
    data = path.read_bytes()
    forge({"F32": tiny_model(1)}, layers=TEXTS).signed_by(STRANGER).write(tmp_path / "other")
    code, out, err = satchel("scrub", "--repair", tmp_path / "other")
    assert (code, "repaired" in out) == (15, False)
    assert "left: no trusted bundle there could give them" in err
    made = forge({"F32": tiny_model(1)}, layers=TEXTS)
    flip(made.segment_path(bundle), 50)
    code, _, err = satchel("scrub", "--repair", bundle)
    assert code == 15
    assert "expected the signed stored bytes" in err
    assert path.read_bytes() == data
    assert [one.name for one in desk.store.paths.staging.iterdir()] == []
    code, _, err = satchel("scrub", "--repair", tmp_path / "nowhere")
    assert (code, "expected a medium, found nothing" in err) == (1, True)


def test_another_models_bundle_leaves_the_damage(
    bundle: Path, desk: Desk, satchel: Satchel, tmp_path: Path
) -> None:
    assert bundle.is_dir()
    rot(desk.store, weights(desk.store))
    forge({"F32": tiny_model(2)}, seq=9).signed_by(TRUSTED).write(tmp_path / "other")
    code, _, err = satchel("scrub", "--repair", tmp_path / "other")
    assert (code, "left: no trusted bundle there could give them" in err) == (15, True)
    assert len(desk.names()) == 1


FAST = Pace(bytes_per_s=0, clock=lambda: 0.0, sleep=lambda _: None)


def ignore(_: int) -> None: ...


def scrub_of(desk: Desk, record: Record | None = None) -> Scrub:
    return Scrub(
        catalogue=desk.store,
        now=lambda: 0.0,
        clock=lambda: 0.0,
        warn=lambda _: None,
        record=record or Record(),
    )


def test_an_interrupted_scrub_goes_on_after_the_last_whole_file(bundle: Path, desk: Desk) -> None:
    assert bundle.is_dir()
    every = blobs(desk.store.paths)
    read: list[Digest] = []

    def check(digest: Digest) -> str | None:
        if len(read) == 2 and digest not in read:
            raise KeyboardInterrupt
        read.append(digest)
        return None

    def read_on(digest: Digest) -> None:
        read.append(digest)

    with pytest.raises(KeyboardInterrupt):
        scrub_of(desk).run(check)
    assert read == list(every[:2])
    record = begin(desk.store, restart=False)
    assert (record.after, record.checked) == (every[1].hex, 2)
    scrub_of(desk, record).run(read_on)
    assert read == list(every)
    assert read_record(desk.store.paths).checked == len(every)
    assert begin(desk.store, restart=False).after == ""


def test_begin_again_reads_everything(bundle: Path, desk: Desk, satchel: Satchel) -> None:
    assert bundle.is_dir()
    every = blobs(desk.store.paths)
    save_record(desk.store.paths, Record(after=every[0].hex, checked=1))
    told = json.loads(satchel("scrub", "--restart", "--json")[1])
    assert told["checked"] == len(every)


def test_a_position_that_cannot_be_kept_is_said_and_the_scrub_goes_on(
    bundle: Path, desk: Desk, satchel: Satchel
) -> None:
    assert bundle.is_dir()
    desk.store.paths.scrub.mkdir()
    code, out, err = satchel("scrub")
    assert (code, out.startswith("checked ")) == (0, True)
    assert "an interrupted scrub begins again" in err


@given(
    st.builds(
        Record,
        after=st.just("") | st.text("0123456789abcdef", min_size=64, max_size=64),
        finished_at=st.text(max_size=20),
        checked=st.integers(0),
        checked_bytes=st.integers(0),
        damaged=st.lists(
            st.builds(
                Damage,
                digest=st.binary(max_size=9).map(lambda data: str(Digest.of(data))),
                reason=st.text(max_size=9),
                found_at=st.text(max_size=9),
                inode=st.integers(0),
            ),
            max_size=3,
        ).map(tuple),
    )
)
def test_a_record_survives_writing_and_reading(record: Record) -> None:
    assert Record.parse(record.encode()) == record


@given(st.binary(max_size=60) | st.just(b'{"damaged": [{"digest": "x"}]}'))
def test_any_other_file_counts_as_no_record(data: bytes) -> None:
    assert Record.parse(data) == Record()


@given(st.lists(st.integers(1, 1 << 20), min_size=1, max_size=50), st.integers(1, 1 << 22))
def test_the_mean_rate_stays_below_the_limit(sizes: list[int], limit: int) -> None:
    now = [100.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    pace = Pace(bytes_per_s=limit, clock=lambda: now[0], sleep=sleep)
    for size in sizes:
        pace.spend(size)
    assert sum(sizes) <= (now[0] - 100.0) * limit * 1.0001


def test_only_the_thread_that_asks_becomes_idle() -> None:
    seen: list[int] = []

    def work() -> None:
        become_idle()
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [19]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


def test_a_blob_removed_meanwhile_is_no_damage(tmp_path: Path) -> None:
    assert check_blob(Paths(tmp_path), Digest.of(b""), FAST, ignore) is None
