"""Is a directory on something that is carried about? Asked of the kernel, never guessed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_CARRIED: Final = frozenset({"vfat", "msdos", "exfat", "udf", "iso9660"})
"""File systems of sticks, cards and discs."""


def is_removable(path: Path, *, system: Path = Path("/")) -> bool:
    """Whether a path lies on a removable medium, an optical disc, or a device on USB.

    Args:
        path: anything that exists.
        system: root of the kernel's files, for tests.
    """
    if _file_system(path, system) in _CARRIED:
        return True
    number = path.stat().st_dev
    device = system / "sys/dev/block" / f"{os.major(number)}:{os.minor(number)}"
    try:
        place = device.resolve(strict=True)
    except OSError:
        return False
    # A partition's flag stands with its disk.
    flags = [_read(folder / "removable") for folder in (place, place.parent)]
    return "1" in flags or any(part.startswith("usb") for part in place.parts)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _file_system(path: Path, system: Path) -> str:
    """Type of the file system a path is on: the longest mount point above it."""
    absolute = path.resolve()
    found = max(
        (one for one in _mounts(system) if absolute.is_relative_to(one[0])),
        key=lambda one: len(one[0].parts),
        default=(Path("/"), ""),
    )
    return found[1]


def _mounts(system: Path) -> Iterator[tuple[Path, str]]:
    # Source: proc_pid_mountinfo(5); the type follows the hyphen, spaces are written as octal.
    for line in _read(system / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        words = before.split()
        if len(words) > 4 and after:  # noqa: PLR2004 - the mount point is the fifth word
            point = words[4].encode().decode("unicode_escape")
            yield Path(point), after.split()[0]
