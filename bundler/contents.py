"""What a bundle says it holds, as text and as JSON. Its signatures are not judged here."""

from __future__ import annotations

from typing import Any

from bundler.format.keys import key_words
from bundler.format.manifest import Manifest, Model
from bundler.signing import OpenedEnvelope
from hwprobe.quantity import Bytes


def contents_json(opened: OpenedEnvelope) -> dict[str, Any]:
    """The contents for machines; sizes in bytes."""
    manifest = opened.manifest
    return {
        "trusted": False,
        "bundle": {
            "id": manifest.bundle.id,
            "channel": manifest.bundle.channel,
            "seq": manifest.bundle.seq,
            "issued": manifest.bundle.issued,
            "refresh_by": manifest.bundle.refresh_by,
            "expires": manifest.bundle.expires,
            "audience": list(manifest.bundle.audience),
            "notes": manifest.bundle.notes,
        },
        "signatures": [
            {"key_id": one.key_id, "words": key_words(one.key_id)}
            for one in opened.envelope.signatures
        ],
        "models": [_model_json(manifest, model) for model in manifest.models],
        "stored_bytes": manifest.totals.stored_bytes,
        "plain_bytes": manifest.totals.plain_bytes,
        "builder": manifest.builder.tool,
    }


def _model_json(manifest: Manifest, model: Model) -> dict[str, Any]:
    return {
        "name": model.name.short(),
        "version": model.version,
        "family": model.family,
        "licences": list(model.licences),
        "layers": [
            {
                "role": layer.role,
                "digest": str(layer.digest),
                "size_bytes": manifest.blob(layer.digest).size_bytes,
            }
            for layer in model.layers
        ],
        "variants": [
            {
                "id": variant.id,
                "quantization": variant.quantization,
                "prefer": variant.prefer,
                "digest": str(variant.artifact),
                "size_bytes": manifest.artifact(variant.artifact).size_bytes,
                "stored_bytes": _stored_bytes(manifest, variant.artifact),
                "encoding": manifest.artifact(variant.artifact).encoding,
            }
            for variant in model.variants
        ],
    }


def _stored_bytes(manifest: Manifest, digest: Any) -> int:
    return sum(segment.size_bytes for segment in manifest.artifact(digest).segments)


def contents_lines(opened: OpenedEnvelope) -> tuple[str, ...]:
    """The contents for people. Texts of the bundle are escaped: nobody has vouched for them."""
    shown = contents_json(opened)
    bundle = shown["bundle"]
    lines = [
        f"bundle     {bundle['channel']} {bundle['seq']}, issued {bundle['issued']}",
        f"id         {bundle['id']}",
        f"for        {', '.join(bundle['audience'])}",
        f"size       {Bytes(shown['stored_bytes'])} here, {Bytes(shown['plain_bytes'])} unpacked",
    ]
    if bundle["notes"]:
        lines.append(f"notes      {ascii(bundle['notes'])[1:-1]}")
    for model in shown["models"]:
        lines.append(f"model      {model['name']} ({model['family']})")
        lines.extend(
            f"  variant  {variant['id']:<10} {Bytes(variant['size_bytes'])}, "
            f"{Bytes(variant['stored_bytes'])} here, {variant['encoding']}"
            for variant in model["variants"]
        )
        lines.extend(
            f"  layer    {layer['role']:<10} {Bytes(layer['size_bytes'])}"
            for layer in model["layers"]
        )
    signatures = shown["signatures"]
    for place, one in enumerate(signatures or [None]):
        label = "signed by" if place == 0 else ""
        who = f"{one['key_id'][:16]} {one['words']}" if one else "nobody"
        lines.append(f"{label:<10} {who}")
    lines.append("nothing above was verified: satchel verify does that, on the target")
    return tuple(lines)
