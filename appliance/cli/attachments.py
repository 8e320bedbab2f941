"""Images named in a message: Ollama's clients send the files, not their paths."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from appliance.errors import RequestError

MAX_IMAGE_BYTES: Final = 100 << 20
"""Largest file that is attached, as Ollama has it."""
_PATH: Final = re.compile(
    r"(?:[a-zA-Z]:)?(?:\./|/|\\|~/)[\S\\ ]+?\.(?:jpg|jpeg|png|webp)\b", re.IGNORECASE
)


def names_images(text: str) -> bool:
    """Whether the message names a file that could be attached."""
    return any(True for _ in _files(text))


def attach(text: str) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """The message without the paths, the images in base64, and what to say about each.

    A path that names no file stays in the text.

    Raises:
        RequestError: a file cannot be read, or is too large.
    """
    images: list[str] = []
    said: list[str] = []
    for written, path in _files(text):
        images.append(base64.b64encode(_read(path)).decode())
        said.append(f"Added image '{path}'")
        text = text.replace(written, "").strip()
    return text, tuple(images), tuple(said)


def _files(text: str) -> Iterator[tuple[str, Path]]:
    for written in _PATH.findall(text):
        path = Path(written.replace("\\ ", " ")).expanduser()
        if path.is_file():
            yield written, path


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_IMAGE_BYTES:
            raise RequestError(f"{path}: expected at most {MAX_IMAGE_BYTES >> 20} MiB")
        return path.read_bytes()
    except OSError as error:
        raise RequestError(f"{path}: {error.strerror}") from error
