"""A bundle on several media: any order, any stick, copies, junk, and what waits meanwhile."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.cli import run
from appliance.errors import NoSpaceError, SeveralBundlesError
from appliance.journal import Journal
from appliance.unfinished import unfinished
from bundler.format.errors import BundleError, LayoutError, MissingBlobError, MissingVolumeError
from tests.appliance.sites import Desk, make_desk
from tests.fakes.forge import STRANGER, Forged, flip, forge, spread, tiny_model

VOLUMES = 4


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return make_desk(tmp_path)


def in_volumes(folder: Path, seed: int = 3, **bundle: Any) -> tuple[Forged, list[Path]]:
    """A bundle of several segments on four sticks."""
    made = forge({"F32": tiny_model(seed)}, segment_bytes=4096, **bundle)
    assert len(made.manifest.artifacts[0].segments) >= VOLUMES
    return spread(made, folder, VOLUMES)


def staged(desk: Desk) -> list[str]:
    return sorted(path.suffix for path in desk.store.paths.staging.iterdir())


def test_all_sticks_at_once_are_one_bundle(desk: Desk, tmp_path: Path) -> None:
    _, media = in_volumes(tmp_path)
    receipt = desk.take(media[2], others=(media[0], media[3], media[1]))
    assert receipt.changed
    assert desk.names() == ["demo:latest"]
    assert staged(desk) == []


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(order=st.lists(st.integers(0, VOLUMES - 1), min_size=1, max_size=9))
def test_sticks_in_any_order_and_again_until_all_were_there(
    tmp_path_factory: pytest.TempPathFactory, order: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("sticks")
    desk = make_desk(folder)
    bundle, media = in_volumes(folder)
    seen: set[int] = set()
    for number in order:
        seen.add(number)
        if len(seen) < VOLUMES:
            with pytest.raises(MissingVolumeError) as caught:
                desk.take(media[number])
            for other in range(VOLUMES):
                assert (f"SATCHEL-{other + 1}" in str(caught.value)) == (other not in seen)
            assert "of 4 (prod 1)" in str(caught.value)
            assert desk.names() == []
            continue
        desk.take(media[number])
    if len(seen) == VOLUMES:
        assert desk.names() == ["demo:latest"]
        (model,) = desk.store.list()
        digest = bundle.manifest.artifacts[0].digest
        assert model.model_path.name == f"sha256-{digest.hex}"
        assert staged(desk) == []


def test_at_a_terminal_the_next_stick_is_waited_for(desk: Desk, tmp_path: Path) -> None:
    _, media = in_volumes(tmp_path)
    slot = tmp_path / "slot"

    def put_in(number: int) -> bool:
        shutil.rmtree(slot, ignore_errors=True)
        shutil.copytree(media[number], slot)
        return True

    put_in(1)
    for number in (0, 0, 3, 2):
        desk.observer.answers.append(lambda number=number: put_in(number))  # type: ignore[misc]
    assert desk.take(slot).changed
    assert [need.split("put in ")[1].split(" of")[0] for need in desk.observer.needs] == [
        "SATCHEL-1, SATCHEL-3 and SATCHEL-4",
        "SATCHEL-3 and SATCHEL-4",
        "SATCHEL-3 and SATCHEL-4",
        "SATCHEL-3",
    ]


def test_a_good_copy_on_another_stick_stands_in_for_a_damaged_one(
    desk: Desk, tmp_path: Path
) -> None:
    bundle = forge()
    bad, good = tmp_path / "bad", tmp_path / "good"
    bundle.write(bad)
    bundle.write(good)
    flip(bundle.segment_path(bad), 5000)
    flip(bundle.segment_path(good), 100)
    bundle.index_path(bad).write_bytes(b"rotten")
    assert desk.take(bad, others=(good,)).changed


def test_the_front_of_a_segment_that_was_cut_off_serves(desk: Desk, tmp_path: Path) -> None:
    bundle = forge()
    first, second = tmp_path / "first", tmp_path / "second"
    bundle.write(first)
    bundle.write(second)
    path = bundle.segment_path(first)
    path.write_bytes(path.read_bytes()[:5000])
    flip(bundle.segment_path(second), 0)
    assert desk.take(first, others=(second,)).changed


def test_junk_and_other_bundles_do_not_confuse(desk: Desk, tmp_path: Path) -> None:
    bundle, media = in_volumes(tmp_path)
    for stick in media:
        (stick / "._holiday.jpg").write_bytes(b"junk")
        (stick / "System Volume Information").mkdir()
    other = forge(seq=9).signed_by(STRANGER)
    other.write(media[0])
    with pytest.raises(SeveralBundlesError) as caught:
        desk.take(media[0], others=tuple(media[1:]))
    assert "prod-000001, prod-000009" in str(caught.value)
    # A bundle that is named by its directory decides; the stick's other one is not looked at.
    assert desk.take(bundle.directory(media[0]), others=tuple(media[1:])).changed


def test_a_volume_of_another_bundle_brings_nothing(desk: Desk, tmp_path: Path) -> None:
    """Same channel, same number, other content: only the statement's own files count."""
    _, media = in_volumes(tmp_path / "a", seed=3)
    _, foreign = in_volumes(tmp_path / "b", seed=4)
    with pytest.raises(SeveralBundlesError):
        desk.take(media[0], others=(foreign[1],))
    with pytest.raises(MissingVolumeError):
        desk.take(media[0])
    with pytest.raises(MissingVolumeError) as caught:
        desk.take(foreign[1])
    assert "SATCHEL-1, SATCHEL-3 and SATCHEL-4" in str(caught.value)


def test_an_empty_stick_among_others_is_passed_over(desk: Desk, tmp_path: Path) -> None:
    _, media = in_volumes(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(LayoutError):
        desk.take(empty)
    assert desk.take(empty, others=tuple(media)).changed


def test_an_import_in_between_leaves_what_waits_alone(desk: Desk, tmp_path: Path) -> None:
    _, media = in_volumes(tmp_path)
    with pytest.raises(MissingVolumeError):
        desk.take(media[0])
    other = tmp_path / "other"
    desk.take(forge({"F32": tiny_model(8)}, name="other", channel="test").write(other))
    with pytest.raises(MissingVolumeError):
        desk.take(media[2])
    # The first two are not needed again.
    assert desk.take(media[1], others=(media[3],)).changed
    assert desk.names() == ["demo:latest", "other:latest"]


def test_a_newer_bundle_of_the_channel_ends_the_wait_for_an_older_one(
    desk: Desk, tmp_path: Path
) -> None:
    _, media = in_volumes(tmp_path)
    with pytest.raises(MissingVolumeError):
        desk.take(media[0])
    desk.carry(forge({"F32": tiny_model(8)}, seq=2))
    assert staged(desk) == []


def test_a_damaged_marker_or_file_is_not_believed(desk: Desk, tmp_path: Path) -> None:
    _, media = in_volumes(tmp_path)
    with pytest.raises(MissingVolumeError):
        desk.take(media[0], others=(media[1],))
    (part,) = desk.store.paths.staging.glob("*.part")
    flip(part, 10)
    with pytest.raises(MissingVolumeError) as caught:
        desk.take(media[2], others=(media[3],))
    assert "SATCHEL-1 of" in str(caught.value)
    (marker,) = desk.store.paths.staging.glob("*.marker")
    for text in ("{", "[]", '{"index":"x"}', '{"index": 1, "done": [[0, 9999999]]}'):
        marker.write_text(text)
        with pytest.raises(MissingVolumeError):
            desk.take(media[0])
    assert desk.take(media[0], others=tuple(media[1:])).changed


def test_what_waits_is_listed_and_can_be_given_up(
    desk: Desk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, media = in_volumes(tmp_path)
    where = ("--store", str(desk.store.paths.root))
    assert run(["staging", *where]) == 0
    assert capsys.readouterr().out == "no import waits\n"
    with pytest.raises(MissingVolumeError):
        desk.take(media[1])
    assert run(["staging", *where]) == 0
    shown = capsys.readouterr().out
    assert "prod:1" in shown
    assert "put in SATCHEL-1, SATCHEL-3 and SATCHEL-4 of 4 (prod 1)" in shown
    assert run(["staging", "--json", *where]) == 0
    (row,) = json.loads(capsys.readouterr().out)["imports"]
    assert row["staged_bytes"] > 0
    assert row["missing_chunks"] > 0
    assert run(["staging", "--drop", "prod:2", *where]) == 2
    assert "there are: prod:1" in capsys.readouterr().err
    assert run(["staging", "--drop", "prod:1", *where]) == 0
    assert staged(desk) == []
    assert Journal(desk.store.paths.journal).events()[-1].kind == "dropped"


def test_unfinished_imports_have_a_quota(desk: Desk, tmp_path: Path) -> None:
    _, media = in_volumes(tmp_path / "a")
    size = len(tiny_model(3))
    small = desk.configured(store__staging_limit=f"{size + 8192}")
    with pytest.raises(MissingVolumeError):
        small.take(media[0])
    _, second = in_volumes(tmp_path / "b", seed=5, seq=2)
    with pytest.raises(NoSpaceError) as caught:
        small.take(second[0])
    assert "satchel staging --drop prod:1" in caught.value.hint
    assert [job.label for job in unfinished(small.store.paths)] == ["prod:1"]
    # What waits can go on: it counts once.
    assert small.take(media[0], others=tuple(media[1:])).changed


def test_a_stick_that_gives_nothing_leaves_nothing_behind(desk: Desk, tmp_path: Path) -> None:
    bundle, media = in_volumes(tmp_path)
    for segment in bundle.manifest.artifacts[0].segments:
        bundle.blob_path(media[0], segment.digest).unlink(missing_ok=True)
    with pytest.raises(MissingBlobError):
        desk.take(media[0])
    assert staged(desk) == []


def test_verify_takes_several_sticks_and_says_what_is_missing(desk: Desk, tmp_path: Path) -> None:
    _, media = in_volumes(tmp_path)
    assert desk.check(media[0], others=tuple(media[1:])).findings == ()
    findings = desk.check(media[0], others=tuple(media[2:])).findings
    assert findings
    assert all(isinstance(one, BundleError) and one.exit_code == 10 for one in findings)
