"""Media that lie: unreadable ranges, other bytes at every read, a stick that goes away."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance import reading, rebuilding
from appliance.errors import AppError
from bundler.format.errors import BundleError, MediumError, MissingVolumeError
from bundler.format.name import ModelName
from tests.appliance.sites import Desk, make_desk, snapshot
from tests.fakes.forge import Forged, forge, spread, tiny_model

pytestmark = pytest.mark.faults

ROOT = Path(__file__).resolve().parents[2]
DEMO = (ROOT / "tests/demo-model/demo-f16.gguf").read_bytes()
Lie = Callable[[io.FileIO, memoryview, int], None]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return make_desk(tmp_path)


def lying(monkeypatch: pytest.MonkeyPatch, lie: Lie) -> None:
    """Every read of a chunk goes through this."""
    monkeypatch.setattr(reading, "fill", lie)
    monkeypatch.setattr(rebuilding, "fill", lie)


honest = reading.fill


def fails(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def test_ranges_that_cannot_be_read_are_passed_over_and_the_rest_is_kept(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = forge({"F32": tiny_model(2)})
    directory = bundle.write(desk.medium)
    bad = range(8192, 12288)
    reads: list[int] = []

    def lie(file: io.FileIO, view: memoryview, offset: int) -> None:
        reads.append(offset)
        if offset < bad.stop and offset + len(view) > bad.start:
            raise fails(errno.EIO)
        honest(file, view, offset)

    lying(monkeypatch, lie)
    with pytest.raises(MediumError, match="cannot be read"):
        desk.take(directory)
    # The bad place was tried again, and what comes after it was read.
    assert reads.count(8192) > 1
    assert max(reads) > bad.stop
    monkeypatch.undo()
    again: list[int] = []

    def watched(file: io.FileIO, view: memoryview, offset: int) -> None:
        again.append(offset)
        honest(file, view, offset)

    lying(monkeypatch, watched)
    assert desk.take(directory).changed
    assert again == [8192]


def test_a_read_that_succeeds_the_second_time_is_enough(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: dict[int, int] = {}

    def lie(file: io.FileIO, view: memoryview, offset: int) -> None:
        tries[offset] = tries.get(offset, 0) + 1
        if tries[offset] == 1:
            raise fails(errno.EIO)
        honest(file, view, offset)
        if tries[offset] == 2:
            view[0] ^= 1  # a bad contact: other bytes this time

    lying(monkeypatch, lie)
    assert desk.carry(forge()).changed
    assert set(tries.values()) == {3}


def test_other_bytes_at_every_read_never_come_in(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Firmware may give good bytes to whoever checks and bad ones to whoever copies."""
    chance = random.Random(7)

    def lie(file: io.FileIO, view: memoryview, offset: int) -> None:
        honest(file, view, offset)
        if chance.random() < 0.5:
            view[chance.randrange(len(view))] ^= 1 << chance.randrange(8)

    lying(monkeypatch, lie)
    bundle = forge({"F32": tiny_model(3)})
    directory = bundle.write(desk.medium)
    for _ in range(12):
        try:
            desk.take(directory)
            break
        except (AppError, BundleError):
            assert desk.names() == []
    model = desk.store.resolve(ModelName.parse("demo"))
    assert model.model_path.read_bytes() == tiny_model(3)


def test_a_stick_that_goes_away_is_given_up_soon_and_taken_up_later(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = forge({"F16": DEMO}, chunk_bytes=16384)
    directory = bundle.write(desk.medium)
    reads = 0

    def lie(file: io.FileIO, view: memoryview, offset: int) -> None:
        nonlocal reads
        reads += 1
        if reads > 100:
            raise fails(errno.ENODEV)
        honest(file, view, offset)

    lying(monkeypatch, lie)
    with pytest.raises(MediumError):
        desk.take(directory)
    # Not every one of hundreds of chunks is tried three times on a stick that is gone.
    assert reads < 100 + 3 * 64 * 2
    monkeypatch.undo()
    assert desk.take(directory).changed


def test_a_slow_medium_gives_the_same_model(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few bytes at a time, as a dying stick reads."""

    def lie(file: io.FileIO, view: memoryview, offset: int) -> None:
        while view:
            got = os.preadv(file.fileno(), [view[:7]], offset)
            view, offset = view[got:], offset + got

    lying(monkeypatch, lie)
    assert desk.carry(forge()).changed


def test_wrapped_capacity_is_found_chunk_by_chunk(desk: Desk) -> None:
    """A counterfeit stick: the second half of every file is its first half again."""
    bundle = forge({"F32": tiny_model(4)})
    directory = bundle.write(desk.medium)
    path = bundle.segment_path(desk.medium)
    data = path.read_bytes()
    half = len(data) // 8192 * 4096
    path.write_bytes((data[:half] * 3)[: len(data)])
    with pytest.raises(BundleError, match="chunk at"):
        desk.take(directory)
    findings = desk.check(directory).findings
    assert f"chunk at {half}:" in str(findings[0])


# Every byte of a bundle in volumes: changed, dropped, cut off


def _every(path: Path, step: int) -> range:
    return range(0, path.stat().st_size, step)


@pytest.mark.parametrize("way", ["flip", "drop", "cut"])
def test_no_damage_anywhere_gives_another_model(tmp_path: Path, way: str) -> None:
    """Either found, or of no effect: then another medium carries the same file.

    SATCHEL_EVERY_BYTE=1 takes every byte, else a few of each file.
    """
    made = forge({"F32": tiny_model(5)}, segment_bytes=8192)
    _, media = spread(made, tmp_path, 3)
    segments = {one.digest.hex for one in made.manifest.artifacts[0].segments}
    desk = make_desk(tmp_path)
    pristine = snapshot(desk.store.paths.root)
    files = sorted(path for stick in media for path in stick.rglob("*") if path.is_file())
    thorough = os.environ.get("SATCHEL_EVERY_BYTE")
    counts = {"refused": 0, "whole": 0}
    for path in files:
        data = path.read_bytes()
        step = 1 if thorough else max(1, len(data) // 6)
        for at in _every(path, step):
            if way == "flip":
                path.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
            else:
                path.write_bytes(data[:at] + (data[at + 1 :] if way == "drop" else b""))
            findings = _findings(desk, media)
            assert findings or path.name not in segments
            counts["refused" if findings else "whole"] += 1
        path.write_bytes(data)
    assert snapshot(desk.store.paths.root) == pristine
    assert desk.take(media[0], others=tuple(media[1:])).changed
    assert counts["refused"] > counts["whole"]
    print(way, counts)  # noqa: T201 - the thorough run's figures


def _findings(desk: Desk, media: list[Path]) -> tuple[Exception, ...]:
    try:
        return desk.check(media[0], others=tuple(media[1:])).findings
    except (AppError, BundleError) as error:
        return (error,)


# Killed between sticks


def test_killed_at_any_stick_the_import_goes_on_with_the_next(tmp_path: Path) -> None:
    chance = random.Random(11)
    for trial in range(6):
        folder = tmp_path / str(trial)
        desk = make_desk(folder)
        made: Forged = forge({"F16": DEMO}, chunk_bytes=1 << 18, segment_bytes=1 << 20)
        _, media = spread(made, folder, 4)
        order = chance.sample(range(4), 4)
        for number in order:
            killed = _run(desk, media[number], chance.randint(20, 120))
            assert killed.returncode in (-signal.SIGKILL, 0, 1), killed.stderr
            with (
                pytest.raises(MissingVolumeError)
                if number != order[-1]
                else contextlib.nullcontext()
            ):
                desk.take(media[number])
        model = desk.store.resolve(ModelName.parse("demo"))
        assert model.model_path.read_bytes() == DEMO
        assert list(desk.store.paths.staging.iterdir()) == []


def _run(desk: Desk, medium: Path, limit: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            *("-m", "tests.appliance.killed_import"),
            *(str(limit), str(medium), str(desk.store.paths.root)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
