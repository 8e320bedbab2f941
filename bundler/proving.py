"""Is a medium as large as it says, and how fast is it? Both are tried, with files that go again.

A counterfeit stick takes every byte and gives back others once its real size is passed. So the
free space is filled with a pattern in which no two sectors are alike, and all of it is read again,
past the cache, after all of it was written.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bundler.errors import PackError
from bundler.format.fsio import raise_io, write_all
from bundler.format.limits import SEGMENT_BYTES
from bundler.medium import uncached
from bundler.progress import Advance, Progress
from hwprobe.quantity import Bytes

_BLOCK_BYTES: Final = 1 << 20
_PER_FILE: Final = SEGMENT_BYTES // _BLOCK_BYTES
_NAME: Final = "SATCHEL-PROOF-{:06d}.part"
_SPARE_BYTES: Final = 1 << 20
"""Left for the file system's own tables, which grow with the files."""
_SAMPLE_BYTES: Final = 64 << 20
_SAMPLE_S: Final = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What a medium does, in bytes per second, measured from start to flush."""

    write: float
    read: float


def prove_capacity(out: Path, progress: Progress) -> int:
    """Fill the free space, read it back, and take everything away again.

    Args:
        out: directory on the medium.
        progress: where stages are shown.

    Returns:
        Bytes that were written and came back.

    Raises:
        PackError: the medium gives back other bytes: it is faulty or counterfeit.
        MediumError: it cannot be read or written.
    """
    status = os.statvfs(out)
    size = status.f_bavail * status.f_frsize - _SPARE_BYTES
    blocks = max(size // _BLOCK_BYTES, 0)
    pattern = _Pattern()
    files: list[Path] = []
    try:
        with progress.stage("filling", blocks * _BLOCK_BYTES) as advance:
            written = _fill_all(out, blocks, pattern, files, advance)
        with progress.stage("reading back", written * _BLOCK_BYTES) as advance:
            for number, path in enumerate(files):
                count = min(_PER_FILE, written - number * _PER_FILE)
                _compare(path, number * _PER_FILE, count, pattern, advance)
    finally:
        for path in files:
            path.unlink(missing_ok=True)
    return written * _BLOCK_BYTES


class _Pattern:
    """Blocks in which every word tells its place; made much faster than any medium takes them."""

    def __init__(self) -> None:
        generator = np.random.Generator(np.random.PCG64(20260101))
        self._base: NDArray[np.uint64] = generator.integers(
            0, 1 << 63, size=_BLOCK_BYTES // 8, dtype=np.uint64
        )

    def block(self, number: int) -> NDArray[np.uint64]:
        """The block of that number."""
        return self._base ^ np.uint64((number + 1) * 0x9E3779B97F4A7C15 % (1 << 64))


def _fill_all(
    out: Path, blocks: int, pattern: _Pattern, files: list[Path], advance: Advance
) -> int:
    """Write blocks until there is no more room; returns how many there are."""
    written = 0
    while written < blocks:
        path = out / _NAME.format(len(files) + 1)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(path, flags, 0o600)
        except OSError as error:
            raise_io(error, path)
        files.append(path)
        try:
            for _ in range(min(_PER_FILE, blocks - written)):
                write_all(descriptor, pattern.block(written).data.cast("B"))
                written += 1
                advance(_BLOCK_BYTES)
            os.fsync(descriptor)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise_io(error, path)
            with contextlib.suppress(OSError):
                os.fsync(descriptor)
            return written
        finally:
            os.close(descriptor)
    return written


def _compare(path: Path, first: int, count: int, pattern: _Pattern, advance: Advance) -> None:
    number = first
    for data in _blocks(path):
        if number == first + count:
            return  # the block that did not fit
        if data != pattern.block(number).tobytes():
            raise PackError(
                f"{path.parent}: the medium does not give back what was written to it, "
                f"from {Bytes(number * _BLOCK_BYTES)} on",
                hint="it is faulty, or smaller than it says; use another one",
            )
        number += 1
        advance(len(data))
    if number != first + count:
        raise PackError(f"{path}: the medium lost the end of a file; use another one")


def _blocks(path: Path) -> Iterator[bytes]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            for view in uncached(descriptor, _BLOCK_BYTES):
                yield bytes(view)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise_io(error, path)


def measure_speed(out: Path) -> Speed:
    """Write and read one file of 64 MiB, or as much as 20 seconds allow; it goes again.

    Raises:
        NoSpaceError: there is no room for it.
        MediumError: the medium cannot be read or written.
    """
    pattern = _Pattern()
    path = out / _NAME.format(0)
    done = 0
    started_s = time.monotonic()
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
        try:
            while done < _SAMPLE_BYTES and time.monotonic() - started_s < _SAMPLE_S:
                write_all(descriptor, pattern.block(done // _BLOCK_BYTES).data.cast("B"))
                os.fdatasync(descriptor)
                done += _BLOCK_BYTES
        finally:
            os.close(descriptor)
        wrote_s = time.monotonic() - started_s
        started_s = time.monotonic()
        read = sum(len(block) for block in _blocks(path))
        read_s = time.monotonic() - started_s
    except OSError as error:
        raise_io(error, path)
    finally:
        path.unlink(missing_ok=True)
    return Speed(write=done / max(wrote_s, 1e-9), read=read / max(read_s, 1e-9))
