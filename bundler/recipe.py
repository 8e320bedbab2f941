"""The recipe of a bundle: one digest over every input that decides its content."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from bundler.format.digest import Digest
from bundler.format.statement import format_time
from bundler.format.strict import encode_json
from bundler.hashing import source_digest
from bundler.plan import PackRequest
from bundler.progress import Silent


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
        "volume_bytes": request.volume_bytes,
        "parity": request.parity,
        "projector": str(source_digest(request.projector, silent)) if request.projector else "",
        "draft": str(source_digest(request.draft, silent)) if request.draft else "",
        "adapters": [str(source_digest(path, silent)) for path in request.adapters],
        "root": len(request.roots),
        "bom": request.bom,
        "model_card": str(Digest.of(request.model_card)) if request.model_card else "",
        "oms": request.oms_key.hint if request.oms_key else "",
        "accept": [
            [one.id, one.kind, one.text, one.max_tokens, one.schema, f"{one.tolerance:.6f}"]
            for one in request.accept
        ]
        or ["built-in"]
        if request.accept is not None
        else [],
        "against": str(request.against.digest) if request.against else "",
        "relatives": [str(one.object.digest) for one in request.against.relatives]
        if request.against
        else [],
        "image": [str(Digest.of(image.manifest)), str(Digest.of(image.config))] if image else [],
    }
