"""The file system that models are kept on, and how fast it is read."""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path
from typing import Final

from hwprobe.inventory.files import read_integer, read_text
from hwprobe.machine import Disk

READ_BYTES: Final = 256 << 20
"""Most bytes read to measure. Why: two seconds on a fast card, and past any cache on a disk."""
_STEP_BYTES: Final = 4 << 20
_SYS_BLOCK = Path("/sys/dev/block")


def read_disk(path: Path) -> Disk:
    """Size and room of this machine's file system at ``path``, or at its nearest parent."""
    directory = path
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    try:
        room = os.statvfs(directory)
        number = directory.stat().st_dev
    except OSError:
        return Disk(path=str(path))
    numbers = f"{os.major(number)}:{os.minor(number)}"
    device = _block_device(numbers)
    spins = read_integer(Path("/"), f"{device}/queue/rotational") if device else None
    return Disk(
        path=str(path),
        total_bytes=room.f_blocks * room.f_frsize,
        free_bytes=room.f_bavail * room.f_frsize,
        rotational=bool(spins) if spins is not None else None,
        device=device.name if device else "",
        filesystem=_filesystem(numbers),
    )


def read_speed(file: Path, *, most_bytes: int = READ_BYTES) -> float:
    """Read a file past the page cache; bytes per second. Takes as long as it takes.

    Raises:
        OSError: it cannot be read, or is empty.
    """
    descriptor = _open_direct(file)
    buffer = mmap.mmap(-1, _STEP_BYTES)  # page-aligned, as direct reads need it
    try:
        done, started = 0, time.perf_counter()
        while done < most_bytes:
            count = os.readv(descriptor, [buffer])
            if not count:
                break
            done += count
        seconds = time.perf_counter() - started
    finally:
        os.close(descriptor)
        buffer.close()
    if not done:
        raise OSError(f"{file}: empty, so its reading cannot be measured")
    return done / max(seconds, 1e-9)


def _open_direct(file: Path) -> int:
    """Without the page cache; where the file system cannot, with the cache dropped first."""
    try:
        return os.open(file, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return descriptor


def _block_device(numbers: str) -> Path | None:
    """The whole disk's directory in sysfs; ``None`` for file systems without one."""
    try:
        device = (_SYS_BLOCK / numbers).resolve(strict=True)
    except OSError:
        return None
    return device.parent if (device / "partition").exists() else device


def _filesystem(numbers: str) -> str:
    for line in read_text(Path("/"), "/proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        if len(fields) > 2 and fields[2] == numbers:  # noqa: PLR2004 - the device's place
            return next(iter(after.split()), "")
    return ""
