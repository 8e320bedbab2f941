"""Bundles in volumes and with parity, as the packer writes them and an import reads them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.asking import repair_request
from appliance.cli import run as run_satchel
from appliance.repairing import repair
from bundler.cli import run as run_bundle
from bundler.errors import BundleExistsError, PackError
from bundler.format import envelope
from bundler.format.digest import Digest
from bundler.format.errors import DamagedError, MissingVolumeError, RepairRequestError
from bundler.format.manifest import volume_count
from bundler.format.parity import Accumulator, block_lengths, group_members, recover
from bundler.format.repair import LackedFile, RepairRequest, Run, read_request, write_request
from bundler.format.statement import parse_manifest
from bundler.format.volume import BundleDirectory
from bundler.pack import Packed, pack
from bundler.plan import make_plan
from bundler.progress import Silent
from bundler.source.gguf_file import open_gguf
from bundler.volumes import SIZES, parse_size
from tests.appliance.sites import Desk, make_desk
from tests.bundler.test_pack import DEMO, request_for
from tests.fakes.forge import TRUSTED, flip

VOLUME = 3 << 20


def packed(tmp_path: Path, **fields: Any) -> Packed:
    given = {"source": DEMO, "volume_bytes": VOLUME, "parity": True, **fields}
    request = request_for(tmp_path, **given)
    request.out.mkdir(exist_ok=True)
    opened = open_gguf(request.source)
    plan = make_plan(request, opened.profile, chunks=len(opened.cuts))
    return pack(request, plan, Silent())


def volumes(made: Packed) -> list[Path]:
    count = volume_count(made.manifest)
    return [made.request.volume_root(number) for number in range(1, count + 1)]


def tree(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


# Volumes


def test_volumes_are_below_their_size_and_carry_what_an_import_needs(tmp_path: Path) -> None:
    made = packed(tmp_path)
    media = volumes(made)
    assert len(media) > 2
    for root in media:
        assert sum(map(len, tree(root).values())) <= VOLUME
        assert (root / "SATCHEL-README.txt").is_file()
        bundle = BundleDirectory(next((root / "satchel").iterdir()))
        manifest = parse_manifest(envelope.parse(bundle.read_envelope()).payload)
        assert manifest == made.manifest
        for artifact in manifest.artifacts:
            bundle.read_blob(artifact.index.digest)
            assert artifact.parity is not None
            bundle.read_blob(artifact.parity.index.digest)
    desk = make_desk(tmp_path)
    with pytest.raises(MissingVolumeError, match="SATCHEL-2"):
        desk.take(media[0])
    assert desk.take(media[-1], others=tuple(media[1:-1])).changed
    (model,) = desk.store.list()
    assert model.model_path.read_bytes() == DEMO.read_bytes()


def test_names_are_safe_on_every_file_system(tmp_path: Path) -> None:
    made = packed(tmp_path)
    for root in volumes(made):
        assert len(root.name) <= 11
        assert root.name == root.name.upper()
        for path in root.rglob("*"):
            names = [one.name for one in path.parent.iterdir()]
            assert len({name.casefold() for name in names}) == len(names)
            assert all(c.isascii() and (c.isalnum() or c in ".-") for c in path.name)
            assert not path.name.endswith(".")


def test_equal_inputs_make_equal_volumes(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        packed(folder)
    assert tree(one / "stick") == tree(other / "stick")


def test_packed_again_the_volumes_are_checked_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    made = packed(tmp_path)
    assert packed(tmp_path).was_there
    last = made.manifest.artifacts[0].segments[-1]
    path = made.request.volume_directory(last.volume) / "blobs/sha256" / last.digest.hex
    flip(path, 7)
    with pytest.raises(DamagedError):
        packed(tmp_path)


def test_a_failure_removes_every_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bundler.committing.read_back", _fails)
    with pytest.raises(DamagedError):
        packed(tmp_path)
    assert tree(tmp_path / "stick") == {}
    assert list((tmp_path / "stick").iterdir()) == []


def _fails(*_: object) -> None:
    raise DamagedError("the medium does not give back what was written to it")


@pytest.mark.parametrize("text", ["", "four", "1", "-4G", "4 parsec", "100K"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(PackError, match="volume-size"):
        parse_size(text)


def test_sizes_have_names() -> None:
    assert parse_size("DVD") == SIZES["dvd"] == 4_700_372_992
    assert parse_size("4G") == 4 << 30
    assert parse_size("700 MB") == 700_000_000


def test_a_volume_too_small_for_a_chunk_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PackError, match="volume-size"):
        packed(tmp_path, volume_bytes=600 << 10)
    assert list((tmp_path / "stick").iterdir()) == []


# Parity


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_two_of_a_group_come_back(data: st.DataObject) -> None:
    members = data.draw(st.lists(st.binary(max_size=70), min_size=1, max_size=12))
    size = max(1, *map(len, members))
    whole = Accumulator(size)
    for member in reversed(members):
        whole.add(member)
    p, q = whole.p.tobytes(), whole.q.tobytes()
    # The definition, byte by byte.
    for at in range(size):
        total, weighted = 0, 0
        for number, member in enumerate(members):
            byte = member[at] if at < len(member) else 0
            total ^= byte
            for _ in range(number):
                byte = (byte << 1) ^ (0x11D if byte & 0x80 else 0)
            weighted ^= byte
        assert (p[at], q[at]) == (total, weighted)
    everything = [*range(len(members)), "p", "q"]
    lost = data.draw(st.sets(st.sampled_from(everything), max_size=3))
    known = Accumulator(size)
    for number in reversed(range(len(members))):
        known.add(b"" if number in lost else members[number])
    numbers = sorted(one for one in lost if isinstance(one, int))
    found = recover(numbers, known, None if "p" in lost else p, None if "q" in lost else q)
    if len(lost) > 2 and numbers:
        possible = len(numbers) == 1 and not {"p", "q"} <= lost
        assert possible or found is None
        return
    assert found is not None
    for number in numbers:
        assert found[number].tobytes() == members[number].ljust(size, b"\0")


def test_groups_are_interleaved_and_cover_every_chunk_once() -> None:
    for count in (1, 2, 63, 64, 65, 129, 1000):
        groups = -(-count // 64)
        seen = sorted(place for g in range(groups) for place in group_members(g, count, 64))
        assert seen == list(range(count))
        assert len(block_lengths([5] * count, 64)) == groups


def desk_and_bundle(tmp_path: Path, **fields: Any) -> tuple[Desk, Packed, Path]:
    made = packed(tmp_path, volume_bytes=0, **fields)
    return make_desk(tmp_path), made, made.directory / "blobs" / "sha256"


def test_a_hole_in_the_middle_of_a_segment_is_rebuilt(tmp_path: Path) -> None:
    desk, made, blobs = desk_and_bundle(tmp_path)
    (segment,) = made.manifest.artifacts[0].segments
    path = blobs / segment.digest.hex
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    data[0] ^= 1
    path.write_bytes(data)
    receipt = desk.take(tmp_path / "stick")
    assert receipt.changed
    (model,) = desk.store.list()
    assert model.model_path.read_bytes() == DEMO.read_bytes()
    assert list(desk.store.paths.staging.iterdir()) == []


def test_more_damage_than_parity_gives_back_is_refused(tmp_path: Path) -> None:
    desk, made, blobs = desk_and_bundle(tmp_path)
    (segment,) = made.manifest.artifacts[0].segments
    path = blobs / segment.digest.hex
    data = bytearray(path.read_bytes())
    for at in range(0, len(data), len(data) // 40):
        data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedError):
        desk.take(tmp_path / "stick")
    assert desk.names() == []


def test_damaged_parity_does_not_harm_and_a_check_reports_it(tmp_path: Path) -> None:
    desk, made, blobs = desk_and_bundle(tmp_path)
    parity = made.manifest.artifacts[0].parity
    assert parity is not None
    flip(blobs / parity.segments[0].digest.hex, 3)
    findings = desk.check(tmp_path / "stick").findings
    assert findings
    assert {one.hint for one in findings} == {
        "a block of parity; the model itself is not concerned"
    }
    assert desk.take(tmp_path / "stick").changed


def test_verify_says_which_chunks_parity_gives_back(tmp_path: Path) -> None:
    desk, made, blobs = desk_and_bundle(tmp_path)
    (segment,) = made.manifest.artifacts[0].segments
    flip(blobs / segment.digest.hex, 3)
    (finding,) = desk.check(tmp_path / "stick").findings
    assert "parity gives this chunk back" in finding.hint
    assert desk.store.list() == ()


# Repair requests


def broken(path: Path, every: int) -> None:
    data = bytearray(path.read_bytes())
    for at in range(0, len(data), every):
        data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("beside", [False, True])
def test_what_parity_cannot_give_is_asked_for_and_comes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], *, beside: bool
) -> None:
    desk, made, blobs = desk_and_bundle(tmp_path)
    good = tmp_path / "good"
    shutil.copytree(tmp_path / "stick", good)
    path = blobs / made.manifest.artifacts[0].segments[0].digest.hex
    broken(path, path.stat().st_size // 9)
    with pytest.raises(DamagedError):
        desk.take(tmp_path / "stick")
    where = ("--store", str(desk.store.paths.root))
    request = tmp_path / "site.repair"
    assert run_satchel(["repair-request", "--out", str(request), *where]) == 0
    assert "chunks of main 1" in capsys.readouterr().err
    assert request.stat().st_size < 8192
    target = tmp_path / "stick" if beside else tmp_path / "answer"
    target.mkdir(exist_ok=True)
    answer = ["repair", str(good), "--answer", str(request), "--out", str(target)]
    assert run_bundle(answer) == 0
    assert f"safe to remove: {target}" in capsys.readouterr().out
    if not beside:
        assert sum(map(len, tree(target).values())) < sum(map(len, tree(good).values()))
    assert desk.take(target).changed
    (model,) = desk.store.list()
    assert model.model_path.read_bytes() == DEMO.read_bytes()
    assert run_satchel(["repair-request", "--out", str(request), *where]) == 2


def test_a_repair_is_refused_where_it_makes_no_sense(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    desk, made, blobs = desk_and_bundle(tmp_path)
    path = blobs / made.manifest.artifacts[0].segments[0].digest.hex
    broken(path, path.stat().st_size // 9)
    with pytest.raises(DamagedError):
        desk.take(tmp_path / "stick")
    request = repair_request("", desk.site)
    file = tmp_path / "site.repair"
    target = tmp_path / "answer"
    target.mkdir()
    answer = ["repair", str(tmp_path / "stick"), "--answer", str(file), "--out", str(target)]
    # The only copy is damaged in the same places.
    file.write_bytes(write_request(request, None))
    assert run_bundle(answer) == 10
    assert "this copy is damaged" in capsys.readouterr().err
    # Another statement, another file, chunks that are not there.
    (lacked,) = request.files
    for wrong in (
        replace(request, statement=Digest.of(b"another")),
        replace(request, files=(replace(lacked, digest=Digest.of(b"x")),)),
        replace(request, files=(replace(lacked, missing=(Run(first=0, end=10**6),)),)),
    ):
        file.write_bytes(write_request(wrong, None))
        assert run_bundle(answer) != 0
        assert "repair: expected" in capsys.readouterr().err
    # The envelope of a bundle is no request.
    file.write_bytes((tmp_path / "stick/satchel/main-000001/bundle.dsse.json").read_bytes())
    assert run_bundle(answer) == 10


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50)), min_size=1, max_size=5),
    st.integers(1, 2**53 - 1),
)
def test_requests_are_read_as_they_were_written(steps: list[tuple[int, int]], seq: int) -> None:
    runs, at = [], 0
    for gap, length in steps:
        runs.append(Run(first=at + gap, end=at + gap + length))
        at = runs[-1].end
    request = RepairRequest(
        site="site-1",
        made_at="2026-11-21T02:00:00Z",
        statement=Digest.of(b"s"),
        channel="main",
        seq=seq,
        files=(LackedFile(digest=Digest.of(b"f"), index=Digest.of(b"i"), missing=tuple(runs)),),
    )
    assert read_request(write_request(request, TRUSTED)) == request
    backwards = tuple(reversed(runs))
    if len(runs) > 1:
        lie = replace(request, files=(replace(request.files[0], missing=backwards),))
        with pytest.raises(RepairRequestError, match="ascending"):
            read_request(write_request(lie, None))


# Copies


def test_a_volume_is_copied_and_read_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = packed(tmp_path)
    media = []
    for number, root in enumerate(volumes(made)):
        media.append(tmp_path / f"usb{number}")
        media[-1].mkdir()
        assert run_bundle(["copy", str(root), "--out", str(media[-1])]) == 0
        assert f"safe to remove: {media[-1]}" in capsys.readouterr().out
        ours, theirs = tree(root), tree(media[-1])
        assert {k: v for k, v in ours.items() if not k.endswith("volume.json")} == theirs
    desk = make_desk(tmp_path)
    assert desk.take(media[0], others=tuple(media[1:])).changed
    assert (
        run_bundle(["copy", str(media[0]), "--out", str(media[0])]) == BundleExistsError.exit_code
    )


def test_a_damaged_file_is_not_copied(tmp_path: Path) -> None:
    made = packed(tmp_path, volume_bytes=0)
    segment = made.manifest.artifacts[0].segments[0]
    flip(made.directory / "blobs/sha256" / segment.digest.hex, 100)
    target = tmp_path / "usb"
    target.mkdir()
    assert run_bundle(["copy", str(tmp_path / "stick"), "--out", str(target)]) == 10
    assert list(target.iterdir()) == []


# Scrub


def test_a_rotten_blob_is_renewed_from_a_medium_that_parity_makes_good(tmp_path: Path) -> None:
    desk, made, blobs = desk_and_bundle(tmp_path)
    assert desk.take(tmp_path / "stick").changed
    artifact = made.manifest.artifacts[0]
    rotten = desk.store.paths.blob(artifact.digest)
    rotten.chmod(0o644)
    flip(rotten, 5000)
    flip(blobs / artifact.segments[0].digest.hex, 9)
    whole, refusals = repair([artifact.digest], tmp_path / "stick", desk.site, lambda _: None)
    assert (whole, refusals) == ((artifact.digest,), ())
    assert rotten.read_bytes() == DEMO.read_bytes()
