"""The folder of computed prompts: what lies in it, and how it stays within its limit.

Only names that `server.runner.statefile` gives are looked at and removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from server.runner import statefile

_LOCK = "lock"
_OPEN_LOCK = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


def sweep(folder: Path, limit_bytes: int) -> None:
    """Remove what killed runners left, and the longest unused files beyond a limit.

    To be called while no runner runs. An error of the disk leaves things as they are.
    """
    if not folder.is_dir():
        return
    with contextlib.suppress(OSError), locked(folder):
        for found in os.scandir(folder):
            if statefile.is_partial(found.name):
                unlink(Path(found.path))
        make_room(folder, limit_bytes)


def make_room(
    folder: Path, limit_bytes: int, *, before_s: float = float("inf"), besides: str = ""
) -> bool:
    """Remove the longest unused files until the rest is within a limit.

    Args:
        folder: where they are.
        limit_bytes: most that the rest may take.
        before_s: files used at this time or later stay.
        besides: this one does not count; it is about to be replaced.

    Returns:
        False, and nothing is removed, if that is not enough.
    """
    others = sorted(
        (file for file in files(folder) if file.name != besides), key=lambda file: file.used_s
    )
    excess = sum(file.size_bytes for file in others) - limit_bytes
    going = []
    for file in others:
        if excess <= 0 or file.used_s >= before_s:
            break
        excess -= file.size_bytes
        going.append(file.name)
    if excess > 0:
        return False
    for name in going:
        unlink(folder / name)
    return True


@dataclass(frozen=True, slots=True)
class File:
    """A file of any binding; ``used_s`` in seconds since 1970."""

    name: str
    size_bytes: int
    used_s: float


def files(folder: Path) -> list[File]:
    """The files of all bindings; none if there is no folder."""
    found = []
    with contextlib.suppress(OSError):
        for file in os.scandir(folder):
            if statefile.is_name(file.name):
                with contextlib.suppress(OSError):
                    status = file.stat(follow_symlinks=False)
                    found.append(File(file.name, status.st_size, status.st_mtime))
    return found


def unlink(path: Path) -> None:
    """Remove a file, if it is there and can be."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only one who adds or removes."""
    descriptor = os.open(folder / _LOCK, _OPEN_LOCK, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
