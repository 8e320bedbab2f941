"""A full disk refuses an import with exit code 13 and leaves the store as it was."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.errors import NoSpaceError
from tests.appliance.sites import Desk, make_desk, snapshot
from tests.fakes.forge import forge, tiny_model
from tests.fakes.small_disk import small_disk

pytestmark = pytest.mark.faults

WEIGHTS = (Path(__file__).resolve().parents[2] / "tests/demo-model/demo-f16.gguf").read_bytes()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    with small_disk(tmp_path / "disk", "24m") as mounted:
        yield mounted


@pytest.fixture
def small(disk: Path) -> Desk:
    """A site on it, with one model installed."""
    desk = make_desk(disk)
    desk.carry(forge({"F32": tiny_model(1)}, seq=1))
    return desk


def fill(disk: Path, *, leave_bytes: int) -> Path:
    """Take all room but this much, to the page."""
    status = os.statvfs(disk)
    filler = disk / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, status.f_bavail * status.f_frsize - leave_bytes)
    return filler


def test_full_disk_is_refused_before_anything_is_copied(small: Desk, disk: Path) -> None:
    bundle = forge({"F16": WEIGHTS}, seq=2, chunk_bytes=1 << 20).write(disk.parent / "stick")
    fill(disk, leave_bytes=len(WEIGHTS) - 4096)
    before = snapshot(small.store.paths.root)
    with pytest.raises(NoSpaceError) as caught:
        small.take(bundle)
    assert caught.value.exit_code == 13
    assert snapshot(small.store.paths.root) == before


def test_disk_that_fills_while_copying_leaves_the_store_as_it_was(small: Desk, disk: Path) -> None:
    bundle = forge({"F16": WEIGHTS}, seq=2, chunk_bytes=1 << 20).write(disk.parent / "stick")
    # Room for the weights to the page, and for nothing beside them.
    rounded = -(-len(WEIGHTS) // 4096) * 4096
    filler = fill(disk, leave_bytes=rounded)
    before = snapshot(small.store.paths.root)
    with pytest.raises(NoSpaceError) as caught:
        small.take(bundle)
    assert caught.value.exit_code == 13
    assert snapshot(small.store.paths.root) == before
    assert small.names() == ["demo:latest"]
    filler.unlink()
    assert small.take(bundle).changed


def test_full_disk_still_lets_a_model_be_removed(small: Desk, disk: Path) -> None:
    from bundler.format.name import ModelName

    fill(disk, leave_bytes=0)
    small.store.remove(ModelName.parse("demo"))
    assert small.names() == []
