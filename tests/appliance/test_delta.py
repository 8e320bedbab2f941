"""Deltas: what the site lacks comes from the medium, the rest from what it holds."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance import local
from appliance.errors import AppError, LocalObjectMissingError
from appliance.repairing import repair
from bundler.format.digest import Digest
from bundler.format.errors import BundleError, ChunkIndexError, DamagedError
from bundler.format.index import Codec, encode_index, parse_index
from bundler.format.manifest import BlobRef
from bundler.format.name import ModelName
from tests.appliance.sites import Desk, make_desk, snapshot
from tests.fakes.deltas import delta_of
from tests.fakes.forge import Forged, flip, forge, tiny_model

DEMO = ModelName.parse("demo")
OLD = tiny_model(1)
NEW = bytes(OLD[:-600]) + bytes(byte ^ 1 for byte in OLD[-600:])
"""The same header; the last tensors differ by a bit per byte."""


def codecs(bundle: Forged) -> list[Codec]:
    index = parse_index(bundle.files[bundle.manifest.artifacts[0].index.digest.hex])
    return [record.codec for record in index.records]


def weights(desk: Desk) -> bytes:
    return desk.store.resolve(DEMO).model_path.read_bytes()


def without_medium_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of segments that are opened from now on."""
    opened: list[str] = []
    original = os.open

    def watch(path: Any, *arguments: Any, **named: Any) -> int:
        opened.append(str(path))
        return original(path, *arguments, **named)

    monkeypatch.setattr(os, "open", watch)
    return opened


def test_a_delta_gives_the_same_file_as_a_full_bundle(desk: Desk) -> None:
    desk.carry(forge({"F32": OLD}))
    bundle = delta_of(NEW, OLD)
    assert {Codec.COPY, Codec.XOR} <= set(codecs(bundle))
    receipt = desk.carry(bundle)
    assert weights(desk) == NEW
    assert receipt.installed[0].weights == str(Digest.of(NEW))


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seeds=st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True),
    changes=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=5),
    chunk_bytes=st.sampled_from([64, 256, 700, 4096]),
)
def test_whatever_changed_comes_over(
    tmp_path_factory: pytest.TempPathFactory,
    seeds: list[int],
    changes: list[tuple[int, int]],
    chunk_bytes: int,
) -> None:
    desk = make_desk(tmp_path_factory.mktemp("site"))
    held = [tiny_model(seed) for seed in seeds]
    for number, data in enumerate(held, start=1):
        desk.carry(forge({"F32": data}, seq=number, name=f"old{number}"))
    new = bytearray(held[0])
    for offset, value in changes:
        new[len(new) - 1 - offset] = value
    if any(bytes(new) == one for one in held):
        new[-1] ^= 1
    desk.carry(delta_of(bytes(new), *held, seq=9, chunk_bytes=chunk_bytes))
    assert weights(desk) == bytes(new)


def test_several_files_of_the_site_serve_one_delta(desk: Desk) -> None:
    other = tiny_model(2)
    desk.carry(forge({"F32": OLD}, name="a"))
    desk.carry(forge({"F32": other}, name="b", seq=2))
    middle = len(OLD) - 1024
    new = OLD[:middle] + other[middle:]
    bundle = delta_of(new, OLD, other, seq=3)
    index = parse_index(bundle.files[bundle.manifest.artifacts[0].index.digest.hex])
    assert {one.source for one in index.records if one.codec is Codec.COPY} == {0, 1}
    desk.carry(bundle)
    assert weights(desk) == new


def test_a_file_that_is_gone_is_named_before_the_medium_is_read(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pruned between inventory and import."""
    desk.carry(forge({"F32": OLD}))
    desk.store.remove(DEMO)
    bundle = delta_of(NEW, OLD)
    directory = bundle.write(desk.medium)
    segment = bundle.manifest.artifacts[0].segments[0].digest.hex
    before = snapshot(desk.store.paths.root)
    opened = without_medium_reads(monkeypatch)
    with pytest.raises(LocalObjectMissingError) as caught:
        desk.take(directory)
    assert str(Digest.of(OLD)) in str(caught.value)
    assert "demo:latest f32 need it, the first at 0" in str(caught.value)
    assert "satchel inventory" in caught.value.hint
    assert segment not in opened
    assert snapshot(desk.store.paths.root) == before


def test_a_damaged_chunk_is_named_before_the_medium_is_read(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.carry(forge({"F32": OLD}))
    flip(desk.store.resolve(DEMO).model_path, 600)
    bundle = delta_of(NEW, OLD)
    directory = bundle.write(desk.medium)
    opened = without_medium_reads(monkeypatch)
    with pytest.raises(LocalObjectMissingError, match="the chunk at 512 is not what"):
        desk.take(directory)
    assert bundle.manifest.artifacts[0].segments[0].digest.hex not in opened


def test_a_damaged_file_that_is_mixed_is_found_by_the_result(desk: Desk) -> None:
    desk.carry(forge({"F32": OLD}))
    flip(desk.store.resolve(DEMO).model_path, len(OLD) - 1)
    with pytest.raises(BundleError, match="not what the bundle was made against"):
        desk.carry(delta_of(NEW, OLD))
    assert desk.store.resolve(DEMO).model_digest == Digest.of(OLD)


def test_a_file_that_goes_away_while_it_is_read_installs_nothing(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.carry(forge({"F32": OLD}))
    held = desk.store.resolve(DEMO).model_path
    original = local.check_local

    def check(*arguments: Any) -> None:
        original(*arguments)
        held.unlink()

    monkeypatch.setattr("appliance.intake.check_local", check)
    with pytest.raises(AppError, match="open a file the bundle copies from"):
        desk.carry(delta_of(NEW, OLD))
    assert not list(desk.store.paths.staging.glob("*.part"))


def test_damage_on_the_medium_is_refused(desk: Desk) -> None:
    desk.carry(forge({"F32": OLD}))
    bundle = delta_of(NEW, OLD)
    directory = bundle.write(desk.medium)
    flip(bundle.segment_path(desk.medium), 8)
    with pytest.raises(DamagedError):
        desk.take(directory)
    assert weights(desk) == OLD


def test_an_index_that_copies_past_the_end_of_a_file_is_refused(desk: Desk) -> None:
    desk.carry(forge({"F32": OLD}))
    bundle = delta_of(NEW, OLD)
    (artifact,) = bundle.manifest.artifacts
    index = parse_index(bundle.files[artifact.index.digest.hex])
    for edit in ({"source_off": len(OLD)}, {"source": 1}):
        data = encode_index(
            replace(index, records=(replace(index.records[0], **edit), *index.records[1:]))  # type: ignore[arg-type]
        )
        ref = BlobRef(digest=Digest.of(data), size_bytes=len(data))
        lying = bundle.with_manifest(artifacts=(replace(artifact, index=ref),)).with_file(
            data, named=ref.digest
        )
        with pytest.raises(ChunkIndexError, match=r"records\[0\]\.source"):
            desk.carry(lying)


def test_verify_tells_what_is_missing_and_what_is_right(desk: Desk) -> None:
    desk.carry(forge({"F32": OLD}))
    directory = delta_of(NEW, OLD).write(desk.medium)
    assert desk.check(directory).findings == ()
    assert desk.check(directory).checked_bytes == len(NEW)
    desk.store.remove(DEMO)
    (finding,) = desk.check(directory).findings
    assert isinstance(finding, LocalObjectMissingError)


def test_an_interrupted_delta_goes_on_from_what_was_flushed(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.carry(forge({"F32": OLD}))
    monkeypatch.setattr("appliance.copying.SYNC_BYTES", 1)
    bundle = delta_of(NEW, OLD)
    directory = bundle.write(desk.medium)
    segment = bundle.segment_path(desk.medium)
    original = os.preadv
    broken = {segment.stat().st_ino}

    def read(descriptor: int, *arguments: Any) -> int:
        if os.fstat(descriptor).st_ino in broken:
            raise OSError(5, "Input/output error")
        return original(descriptor, *arguments)

    monkeypatch.setattr(os, "preadv", read)
    with pytest.raises(BundleError, match="cannot be read"):
        desk.take(directory)
    assert list(desk.store.paths.staging.glob("*.marker"))
    broken.clear()
    desk.take(directory)
    assert weights(desk) == NEW


def test_a_delta_of_a_file_that_is_here_already_needs_nothing(desk: Desk) -> None:
    desk.carry(forge({"F32": NEW}, name="copy"))
    bundle = delta_of(NEW, NEW)
    assert set(codecs(bundle)) == {Codec.COPY}
    assert bundle.manifest.artifacts[0].segments == ()
    desk.carry(bundle)
    assert weights(desk) == NEW


def test_a_repair_takes_a_delta_whose_other_half_is_whole(desk: Desk) -> None:
    desk.carry(forge({"F32": OLD}, name="old"))
    directory = delta_of(NEW, OLD).write(desk.medium)
    desk.take(directory)
    flip(desk.store.resolve(DEMO).model_path, 700)
    whole, refusals = repair([Digest.of(NEW)], desk.medium, desk.site, lambda _: None)
    assert (whole, refusals) == ((Digest.of(NEW),), ())
    flip(desk.store.resolve(ModelName.parse("old")).model_path, 700)
    flip(desk.store.resolve(DEMO).model_path, 700)
    whole, refusals = repair([Digest.of(NEW)], desk.medium, desk.site, lambda _: None)
    assert whole == ()
    assert "not what the bundle was made against" in refusals[0]
