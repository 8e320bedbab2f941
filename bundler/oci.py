"""The OCI image layout around a bundle, for registries and copying tools. None of it is trusted."""

from __future__ import annotations

import json
from typing import Any, Final

from bundler.format.digest import Digest
from bundler.format.manifest import Artifact, BlobRef, Manifest, Model, layer_media_type
from bundler.medium import Sink

OCI_LAYOUT: Final = b'{"imageLayoutVersion":"1.0.0"}'
_INDEX: Final = "application/vnd.oci.image.index.v1+json"
_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
_EMPTY: Final = "application/vnd.oci.empty.v1+json"
_ARTIFACT: Final = "application/vnd.satchel.artifact.v1"
_WEIGHTS: Final = "application/vnd.cncf.model.weight.v1.raw"
_SEGMENT: Final = "application/vnd.satchel.segment.v1"
_CHUNK_INDEX: Final = "application/vnd.satchel.index.v1"


def write_oci(manifest: Manifest, sink: Sink) -> bytes:
    """Put one OCI manifest per artifact into the sink, and give the content of ``index.json``.

    Raises:
        NoSpaceError: the medium is full.
        MediumError: it cannot be written.
    """
    empty = sink.put(b"{}")
    entries: list[dict[str, Any]] = []
    for model in manifest.models:
        for variant in model.variants:
            document = _json(_manifest(manifest, model, variant.artifact, empty))
            stored = sink.put(document)
            name = f"{model.name.short()}-{variant.id}"
            entries.append(
                _descriptor(_MANIFEST, stored.digest, stored.size_bytes)
                | {"annotations": {"org.opencontainers.image.ref.name": name}}
            )
    return _json({"schemaVersion": 2, "mediaType": _INDEX, "manifests": entries})


def _manifest(manifest: Manifest, model: Model, digest: Digest, empty: BlobRef) -> dict[str, Any]:
    artifact = manifest.artifact(digest)
    layers = [
        _descriptor(_segment_type(artifact), one.digest, one.size_bytes)
        for one in artifact.segments
    ]
    layers.append(_descriptor(_CHUNK_INDEX, artifact.index.digest, artifact.index.size_bytes))
    for layer in model.layers:
        size_bytes = manifest.blob(layer.digest).size_bytes
        layers.append(_descriptor(layer_media_type(layer.role), layer.digest, size_bytes))
    return {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "artifactType": _ARTIFACT,
        "config": _descriptor(_EMPTY, empty.digest, empty.size_bytes),
        "layers": layers,
    }


def _segment_type(artifact: Artifact) -> str:
    """A whole, unencoded GGUF is a layer that other model tools can use as it is."""
    whole = artifact.encoding == "identity" and len(artifact.segments) == 1
    return _WEIGHTS if whole and artifact.segments[0].digest == artifact.digest else _SEGMENT


def _descriptor(media_type: str, digest: Digest, size_bytes: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": str(digest), "size": size_bytes}


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")
