"""Read small files of /proc and /sys below a root; whatever goes wrong is an absence."""

from __future__ import annotations

from pathlib import Path
from typing import Final

MAX_FILE_BYTES: Final = 4 << 20
"""4 MiB. Why: /proc/cpuinfo of a machine with a thousand processors has about 2 MB."""


def read_text(root: Path, path: str) -> str:
    """The text of the file at the absolute ``path`` below ``root``; empty when unreadable."""
    try:
        with (root / path.lstrip("/")).open("rb") as file:
            return file.read(MAX_FILE_BYTES).decode(errors="replace").rstrip("\0")
    except OSError:
        return ""


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
    try:
        return tuple(sorted(entry.name for entry in (root / path.lstrip("/")).iterdir()))
    except OSError:
        return ()


def exists(root: Path, path: str) -> bool:
    """Whether there is something at the absolute ``path`` below ``root``."""
    try:
        return (root / path.lstrip("/")).exists()
    except OSError:
        return False
