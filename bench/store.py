"""Lay a model into a store of its own, in Ollama's layout, which `satchel-server` reads.

The weights are linked, not copied, so both sides map the very same file.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from bench import models

_MEDIA = "application/vnd.ollama.image."
_MANIFEST_MEDIA = "application/vnd.docker.distribution.manifest.v2+json"
_CONFIG_MEDIA = "application/vnd.docker.container.image.v1+json"
_READ_BYTES = 1 << 20


def add(root: Path, name: str) -> None:
    """Add a model of `models.MODELS` to the store at ``root``, under its own name.

    Raises:
        OSError: the store cannot be written.
    """
    weights = models.ensure(name)
    digest = sha256(weights)
    blob = root / "blobs" / f"sha256-{digest}"
    blob.parent.mkdir(parents=True, exist_ok=True)
    if not blob.exists():
        os.link(weights, blob)
    config = _blob(root, json.dumps({"model_format": "gguf", "model_family": "llama"}).encode())
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST_MEDIA,
        "config": {"mediaType": _CONFIG_MEDIA, **config},
        "layers": [
            {
                "mediaType": f"{_MEDIA}model",
                "digest": f"sha256:{digest}",
                "size": weights.stat().st_size,
            }
        ],
    }
    reference = root / "manifests" / "registry.ollama.ai" / "library" / name / "latest"
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(json.dumps(manifest))


def sha256(path: Path) -> str:
    """The digest of a file, in hexadecimal."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_READ_BYTES):
            total.update(data)
    return total.hexdigest()


def _blob(root: Path, data: bytes) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    path = root / "blobs" / f"sha256-{digest}"
    if not path.exists():
        path.write_bytes(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}
