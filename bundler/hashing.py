"""The digest of a file that is to be packed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from bundler.errors import PackError
from bundler.format.digest import Digest
from bundler.progress import Progress

_READ_BYTES: Final = 4 << 20


def source_digest(path: Path, progress: Progress) -> Digest:
    """SHA-256 of a file, read once.

    Raises:
        PackError: it cannot be read.
    """
    found = hashlib.sha256()
    buffer = memoryview(bytearray(_READ_BYTES))
    try:
        size_bytes = path.stat().st_size
        with (
            path.open("rb", buffering=0) as file,
            progress.stage("reading source", size_bytes) as advance,
        ):
            while got := file.readinto(buffer):
                found.update(buffer[:got])
                advance(got)
    except OSError as error:
        raise PackError(f"{path}: {error.strerror}") from error
    return Digest(found.hexdigest())
