r"""Machines as trees of files: ``recorded("pi5-8gb", tmp_path)`` is a root for the inventory.

A ``.tree`` file holds many small ones: ``=== /path`` starts a file, and its text follows; ``\0``
stands for a NUL. The trees are written by hand after public dumps and documents of such machines:
they were not recorded on one.
"""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent


def recorded_files(name: str) -> dict[str, str]:
    """The files of the machine called ``name``, by absolute path."""
    files: dict[str, str] = {}
    path = ""
    for line in (_HERE / f"{name}.tree").read_text(encoding="utf-8").splitlines(keepends=True):
        if line.startswith("=== "):
            path = line.removeprefix("=== ").strip()
            files[path] = ""
        else:
            files[path] += line.replace("\\0", "\0")
    return files


def plant(files: dict[str, str], root: Path) -> Path:
    """Write ``files`` below ``root``; the root."""
    for path, text in files.items():
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return root


def recorded(name: str, root: Path) -> Path:
    """The machine called ``name``, planted below ``root``."""
    return plant(recorded_files(name), root)
