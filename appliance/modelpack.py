"""A model as an OCI artifact in the form of the CNCF's ModelPack. Pure.

The layers are bare files with their names in annotations, so ORAS writes them out as they were,
and ``satchel-bundle pack --from oci:`` reads them from a registry they were copied to.
Sources: OCI image-spec 1.1, ModelPack model-spec (specs-go/v1).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from appliance.errors import RequestError
from appliance.model import InstalledModel
from bundler.format.digest import Descriptor, Digest

WEIGHTS: Final = "application/vnd.cncf.model.weight.v1.raw"
DOCUMENT: Final = "application/vnd.cncf.model.doc.v1.raw"
LAYOUT: Final = b'{"imageLayoutVersion":"1.0.0"}'
_CONFIG: Final = "application/vnd.cncf.model.config.v1+json"
_ARTIFACT: Final = "application/vnd.cncf.model.manifest.v1+json"
_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
_INDEX: Final = "application/vnd.oci.image.index.v1+json"
_REFERENCE: Final = "org.opencontainers.image.ref.name"
_NAMES: Final = ("org.opencontainers.image.title", "org.cncf.model.filepath")
_SCALES: Final = ((10**12, "t"), (10**9, "b"), (10**6, "m"), (10**3, "k"))


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedFile:
    """A file of the artifact: what it is called when it is unpacked, and what it is."""

    name: str
    part: Descriptor


def config_of(model: InstalledModel, files: Sequence[NamedFile]) -> bytes:
    """The artifact's config; equal models give equal bytes."""
    profile = model.profile
    config: dict[str, Any] = {
        "architecture": "transformer",
        "format": "gguf",
        "paramSize": _scaled(profile.parameter_count),
        "quantization": profile.quantization,
    }
    document = {
        "descriptor": {"family": profile.architecture, "name": model.name.short()},
        "modelfs": {"type": "layers", "diffIds": [str(file.part.digest) for file in files]},
        "config": {key: value for key, value in config.items() if value},
    }
    return _json(document)


def _scaled(count: int) -> str:
    """A number of parameters with one digit after the point: ``8.0b``; small ones have none."""
    for step, letter in _SCALES:
        if count >= step:
            return f"{count / step:.1f}{letter}"
    return ""


def manifest_of(config: bytes, files: Sequence[NamedFile]) -> bytes:
    """The artifact's manifest."""
    return _json(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "artifactType": _ARTIFACT,
            "config": _descriptor(
                Descriptor(media_type=_CONFIG, digest=Digest.of(config), size_bytes=len(config))
            ),
            "layers": [
                _descriptor(file.part) | {"annotations": dict.fromkeys(_NAMES, file.name)}
                for file in files
            ],
        }
    )


def with_entry(index: bytes | None, name: str, manifest: bytes) -> bytes:
    """An index with one more manifest.

    Args:
        index: ``index.json`` as it is, or ``None`` where there is none yet.
        name: the reference, such as ``demo:latest``.
        manifest: its bytes.

    Raises:
        RequestError: it is no index, or the name stands for something else there.
    """
    entries = _entries(index)
    digest = str(Digest.of(manifest))
    for entry in entries:
        if (entry.get("annotations") or {}).get(_REFERENCE) == name:
            if entry.get("digest") == digest:
                return index or b""
            raise RequestError(
                f"{name}: is in this layout already, with other content",
                hint="name another directory with --out",
            )
    entries.append(
        {
            "mediaType": _MANIFEST,
            "artifactType": _ARTIFACT,
            "digest": digest,
            "size": len(manifest),
            "annotations": {_REFERENCE: name},
        }
    )
    return _json({"schemaVersion": 2, "mediaType": _INDEX, "manifests": entries})


def _entries(index: bytes | None) -> list[dict[str, Any]]:
    if index is None:
        return []
    try:
        value = json.loads(index)
    except (ValueError, RecursionError):
        value = None
    entries = value.get("manifests") if isinstance(value, dict) else None
    if not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
        raise RequestError(
            "index.json: expected an OCI image index, found something else",
            hint="name another directory with --out",
        )
    return entries


def _descriptor(part: Descriptor) -> dict[str, Any]:
    return {"mediaType": part.media_type, "digest": str(part.digest), "size": part.size_bytes}


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")
