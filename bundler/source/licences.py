"""The licence texts that lie beside a model."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from bundler.layers import Layers

_NAMES: Final = ("license", "licence", "copying", "notice", "use_policy")
_MAX_BYTES: Final = 1 << 20


def is_licence(name: str) -> bool:
    """Whether a file name is that of a licence text: ``LICENSE``, ``LICENSE.txt`` and so on."""
    stem, _, suffix = name.lower().partition(".")
    return stem in _NAMES and suffix in ("", "txt", "md")


def licence_layers(directory: Path) -> Layers:
    """A layer for each licence text of a directory, in the order of the names."""
    found = []
    for path in sorted(directory.iterdir()):
        if is_licence(path.name) and path.is_file() and path.stat().st_size <= _MAX_BYTES:
            data = path.read_bytes()
            try:
                data.decode("utf-8")
            except UnicodeDecodeError:
                continue
            found.append(data)
    return tuple(("license", data) for data in dict.fromkeys(found) if data)
