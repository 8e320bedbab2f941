"""The file system that models are kept on."""

from __future__ import annotations

import os
from pathlib import Path

from hwprobe.inventory.files import read_integer
from hwprobe.machine import Disk


def read_disk(root: Path, path: Path) -> Disk:
    """Size and room of the file system at ``path`` below ``root``, or at its nearest parent."""
    directory = root / str(path).lstrip("/")
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    try:
        room = os.statvfs(directory)
        device = directory.stat().st_dev
    except OSError:
        return Disk(path=str(path))
    number = f"{os.major(device)}:{os.minor(device)}"
    rotational = [
        read_integer(root, f"/sys/dev/block/{number}/{where}/rotational")
        for where in ("queue", "../queue")
    ]
    known = [value for value in rotational if value is not None]
    return Disk(
        path=str(path),
        total_bytes=room.f_blocks * room.f_frsize,
        free_bytes=room.f_bavail * room.f_frsize,
        rotational=bool(known[0]) if known else None,
    )
