"""Documents about a model that other tools read: a CycloneDX ML-BOM and an OMS signature.

The BOM says what the packer can check against bytes: names, digests, sizes, formats, licences as
they were given, and what the weights were made from. The signature is OpenSSF's model signing
v1.0, by a key on an elliptic curve, over the files as ``satchel export --as gguf`` names them.
Sources: cyclonedx.org, specification 1.6; model_signing's documentation of its format.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import uuid
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, Final

from bundler.errors import PackError
from bundler.format.digest import Digest
from bundler.format.envelope import PAYLOAD_TYPE, pae
from bundler.format.manifest import Artifact, Evidence, Source, Variant
from bundler.format.name import ModelName
from bundler.format.statement import format_time
from bundler.medium import Sink
from bundler.omskey import OmsKey
from bundler.plan import PackRequest

_OMS_PREDICATE: Final = "https://model_signing/signature/v1.0"
_OMS_BUNDLE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"


def make_evidence(
    request: PackRequest,
    stored: Sequence[tuple[Variant, Artifact]],
    companions: Sequence[Artifact],
    sink: Sink,
) -> tuple[Evidence, dict[Digest, int]]:
    """Write the documents that were asked for.

    Returns:
        Where they are, and their sizes in bytes.

    Raises:
        PackError: a signature was asked for over several variants, or its key is of no use.
    """
    written = {}

    def put(data: bytes | None) -> Digest | None:
        if data is None:
            return None
        written[sink.put(data).digest] = len(data)
        return Digest.of(data)

    evidence = Evidence(
        mlbom=put(ml_bom(request, stored, companions) if request.bom else None),
        model_card=put(request.model_card),
        oms=put(_signature(request, stored, companions) if request.oms_key else None),
        source=request.origin,
    )
    return evidence, written


def ml_bom(
    request: PackRequest,
    stored: Sequence[tuple[Variant, Artifact]],
    companions: Sequence[Artifact],
) -> bytes:
    """A CycloneDX 1.6 document with one component per file; equal inputs give equal bytes."""
    name = request.name.short()
    described = {"name": name, **({"version": request.version} if request.version else {})}
    components = [
        _component(f"variant:{variant.id}", f"{name} {variant.id}", artifact, request)
        | {"properties": _properties(variant, artifact)}
        for variant, artifact in stored
    ]
    components += [
        _component(f"companion:{one.digest.hex[:12]}", f"{name} companion", one, request)
        for one in companions
    ]
    document: dict[str, Any] = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": format_time(request.issued),
            "tools": {
                "components": [
                    {
                        "type": "application",
                        "name": "satchel-bundle",
                        "version": version("satchel"),
                    }
                ]
            },
            "component": {"type": "machine-learning-model", "bom-ref": "model", **described},
        },
        "components": components,
        "dependencies": [{"ref": "model", "dependsOn": [one["bom-ref"] for one in components]}],
    }
    number = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).digest()[:16]
    document["serialNumber"] = f"urn:uuid:{uuid.UUID(bytes=number, version=5)}"
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def _component(ref: str, name: str, artifact: Artifact, request: PackRequest) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": ref,
        "name": name,
        "hashes": [{"alg": "SHA-256", "content": artifact.digest.hex}],
    }
    if request.licences:
        component["licenses"] = [{"expression": " AND ".join(request.licences)}]
    if artifact.gguf is not None:
        component["modelCard"] = {
            "modelParameters": {"modelArchitecture": artifact.gguf.architecture}
        }
    if request.origin is not None:
        component["pedigree"] = {"ancestors": [_ancestor(request.origin)]}
    return component


def _ancestor(source: Source) -> dict[str, Any]:
    ancestor: dict[str, Any] = {"type": "machine-learning-model", "name": source.uri}
    if source.revision:
        ancestor["version"] = source.revision
    if source.digest is not None:
        ancestor["hashes"] = [{"alg": "SHA-256", "content": source.digest.hex}]
    return ancestor


def _properties(variant: Variant, artifact: Artifact) -> list[dict[str, str]]:
    values = {
        "quantization": variant.quantization,
        "size_bytes": str(artifact.size_bytes),
        "parameters": str(variant.profile.get("parameter_count", "")),
        "context_length": str(variant.profile.get("context_length", "")),
    }
    return [{"name": f"satchel:{name}", "value": value} for name, value in values.items() if value]


def _signature(
    request: PackRequest,
    stored: Sequence[tuple[Variant, Artifact]],
    companions: Sequence[Artifact],
) -> bytes:
    if len(stored) != 1:
        raise PackError(
            f"oms-key: expected one variant, found {len(stored)}",
            hint="the signature is over all files of one directory; pack the variants one by one",
        )
    assert request.oms_key is not None
    kinds = ["projector"] * bool(request.projector) + ["draft"] * bool(request.draft)
    kinds += ["adapter"] * (len(companions) - len(kinds))
    stem = export_stem(request.name)
    files = [(f"{stem}.gguf", stored[0][1].digest)]
    for place, (kind, artifact) in enumerate(zip(kinds, companions, strict=True)):
        number = kinds[: place + 1].count(kind)
        middle = f".{kind}" if number == 1 else f"-{number}.{kind}"
        files.append((f"{stem}{middle}.gguf", artifact.digest))
    return oms_signature(stem, files, request.oms_key)


def export_stem(name: ModelName) -> str:
    """How `satchel export` calls a model's files."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name.short())


def oms_signature(name: str, files: Sequence[tuple[str, Digest]], key: OmsKey) -> bytes:
    """A signature in the form of model_signing 1.0, the same for the same key and files."""
    ordered = sorted(files)
    together = hashlib.sha256(b"".join(digest.raw for _, digest in ordered)).hexdigest()
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": together}}],
        "predicateType": _OMS_PREDICATE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [],
            },
            "resources": [
                {"name": file, "algorithm": "sha256", "digest": digest.hex}
                for file, digest in ordered
            ],
        },
    }
    payload = json.dumps(statement, sort_keys=True).encode()
    made = key.sign(pae(PAYLOAD_TYPE, payload))
    bundle = {
        "mediaType": _OMS_BUNDLE,
        "verificationMaterial": {
            "publicKey": {"hint": key.hint},
            "tlogEntries": [],
        },
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(made).decode(), "keyid": ""}],
        },
    }
    return json.dumps(bundle, sort_keys=True).encode() + b"\n"
