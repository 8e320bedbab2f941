"""An Ollama store on disk, with any model and any damage.

store = OllamaStore(tmp_path / "models")
store.add("demo:v1", {"model": weights, "template": b"{{ .Prompt }}"})
store.blob(weights).unlink()
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bundler.format.name import ModelName

MEDIA = "application/vnd.ollama.image."
CONFIG = {
    "model_format": "gguf",
    "model_family": "llama",
    "model_families": ["llama"],
    "model_type": "3.07K",
    "file_type": "F32",
    "architecture": "amd64",
    "os": "linux",
    "rootfs": {"type": "layers", "diff_ids": []},
}


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class OllamaStore:
    """The directories ``manifests`` and ``blobs``, written as Ollama writes them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = root / "blobs"
        self.blobs.mkdir(parents=True)

    def add(
        self,
        name: str,
        layers: Sequence[tuple[str, bytes]],
        *,
        config: dict[str, Any] | None = None,
    ) -> bytes:
        """Store a model; returns its manifest."""
        written = json.dumps(CONFIG if config is None else config).encode()
        document = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": self.put("application/vnd.docker.container.image.v1+json", written),
            "layers": [self.put(MEDIA + kind, data) for kind, data in layers],
        }
        manifest = json.dumps(document, separators=(",", ":")).encode()
        path = self.manifest(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(manifest)
        return manifest

    def put(self, media_type: str, data: bytes) -> dict[str, Any]:
        """Store a blob; returns its descriptor."""
        self.blob(data).write_bytes(data)
        return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}

    def blob(self, data: bytes) -> Path:
        """Where a blob of these bytes stands."""
        return self.blobs / digest_of(data).replace(":", "-")

    def manifest(self, name: str) -> Path:
        """Where the manifest of a name stands."""
        return self.root.joinpath("manifests", *ModelName.parse(name).parts())
