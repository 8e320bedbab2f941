"""What JSON says of an installed model."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from appliance.journal import timestamp
from appliance.model import InstalledModel


def model_json(model: InstalledModel) -> dict[str, Any]:
    """One model: names, digests, sizes, where it came from."""
    origin = model.provenance
    return {
        "name": model.name.short(),
        "digest": model.digest.hex,
        "size": model.size_bytes,
        "modified_at": timestamp(model.modified_at_s),
        "weights": str(model.model_digest),
        "details": dict(model.config),
        "made_here": None if model.creation is None else asdict(model.creation),
        "bundle": None
        if origin is None
        else {
            "id": origin.bundle_id,
            "channel": origin.channel,
            "seq": origin.seq,
            "variant": origin.variant,
            "signed_by": list(origin.signed_by),
            "imported_at": origin.imported_at,
        },
    }
