"""Read small files of /proc and /sys below a root; whatever goes wrong is an absence.

Within `watched`, every look is written down, so that a machine can be recorded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

MAX_FILE_BYTES: Final = 4 << 20
"""4 MiB. Why: /proc/cpuinfo of a machine with a thousand processors has about 2 MB."""


@dataclass(slots=True)
class Looks:
    """What an inventory looked at.

    Attributes:
        files: content of each file that was read.
        directories: directories that were listed or found.
        refused: paths that exist but could not be read, and why.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    directories: set[str] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)


_LOOKS: ContextVar[Looks | None] = ContextVar("looks", default=None)


@contextmanager
def watched() -> Iterator[Looks]:
    """Write down every look within the block."""
    looks = Looks()
    token = _LOOKS.set(looks)
    try:
        yield looks
    finally:
        _LOOKS.reset(token)


def read_bytes(root: Path, path: str) -> bytes:
    """The content of the file at the absolute ``path`` below ``root``; empty when unreadable."""
    looks = _LOOKS.get()
    try:
        with (root / path.lstrip("/")).open("rb") as file:
            content = file.read(MAX_FILE_BYTES)
    except FileNotFoundError:
        return b""
    except OSError as error:
        if looks is not None:
            looks.refused[path] = error.strerror or type(error).__name__
        return b""
    if looks is not None:
        looks.files[path] = content
    return content


def read_text(root: Path, path: str) -> str:
    """The text of the file at the absolute ``path`` below ``root``; empty when unreadable."""
    return read_bytes(root, path).decode(errors="replace").rstrip("\0")


def read_line(root: Path, path: str) -> str:
    """The stripped text of a file that holds one line; empty when unreadable."""
    return read_text(root, path).strip().strip("\0")


def read_integer(root: Path, path: str) -> int | None:
    """The number in a file; ``None`` when there is none."""
    return integer(read_line(root, path))


def integer(text: str) -> int | None:
    """A decimal number of at most 20 digits, or ``None``: no fact here is longer."""
    longest = 20
    stripped = text.strip()
    digits = stripped.removeprefix("-")
    if not digits.isascii() or not digits.isdigit() or len(digits) > longest:
        return None
    return int(stripped)


def read_table(root: Path, path: str) -> dict[str, int]:
    """A file of ``name number`` or ``name: number kB`` lines; ``kB`` becomes bytes."""
    table: dict[str, int] = {}
    for line in read_text(root, path).splitlines():
        words = line.replace(":", " ").split()
        value = integer(words[1]) if len(words) > 1 else None
        if value is not None:
            table[words[0]] = value * 1024 if words[2:3] == ["kB"] else value
    return table


def names_in(root: Path, path: str) -> tuple[str, ...]:
    """The names in a directory, sorted; none when it is unreadable."""
    directory = root / path.lstrip("/")
    try:
        entries = sorted(directory.iterdir(), key=lambda entry: entry.name)
    except OSError:
        return ()
    looks = _LOOKS.get()
    if looks is not None:
        looks.directories.add(path)
        for entry in entries:
            if entry.is_dir():
                looks.directories.add(f"{path}/{entry.name}")
            else:
                looks.files.setdefault(f"{path}/{entry.name}", b"")
    return tuple(entry.name for entry in entries)


def exists(root: Path, path: str) -> bool:
    """Whether there is something at the absolute ``path`` below ``root``."""
    target = root / path.lstrip("/")
    try:
        found = target.exists()
        directory = found and target.is_dir()
    except OSError:
        return False
    looks = _LOOKS.get()
    if looks is not None and found:
        if directory:
            looks.directories.add(path)
        else:
            looks.files.setdefault(path, b"")
    return found
