"""The recipe of a bundle: one digest over every input that decides its content."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from bundler.errors import PackError
from bundler.format.digest import Digest
from bundler.format.statement import format_time
from bundler.format.strict import encode_json
from bundler.plan import PackRequest
from bundler.progress import Progress, Silent

_READ_BYTES: Final = 4 << 20


def recipe_digest(request: PackRequest, source: Digest) -> Digest:
    """Digest of the request, with the digest of its source file in the file's place."""
    inputs: dict[str, Any] = {
        "v": 1,
        "source": str(source),
        "quantizations": [name.upper() for name in request.quantizations],
        "include_source": request.include_source,
        "name": request.name.short(),
        "channel": request.channel,
        "seq": request.seq,
        "layers": [[role, str(Digest.of(data))] for role, data in request.layers],
        "modelfile": str(Digest.of(request.modelfile or b"")),
        "licences": list(request.licences),
        "version": request.version,
        "audience": list(request.audience),
        "notes": request.notes,
        "refresh_by": request.refresh_by,
        "expires": request.expires,
        "issued": format_time(request.issued) if request.reproducible else None,
        "tool": version("satchel"),
        "engine": version("llama-cpp-python"),
    }
    inputs |= {name: value for name, value in _beside(request).items() if value}
    return Digest.of(encode_json(inputs))


def _beside(request: PackRequest) -> dict[str, Any]:
    """What a model brings along from where it was; empty for a lone file."""
    silent = Silent()
    image = request.image
    return {
        "origin": [request.origin.uri, request.origin.revision] if request.origin else [],
        "projector": str(source_digest(request.projector, silent)) if request.projector else "",
        "adapters": [str(source_digest(path, silent)) for path in request.adapters],
        "root": len(request.roots),
        "image": [str(Digest.of(image.manifest)), str(Digest.of(image.config))] if image else [],
    }


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
