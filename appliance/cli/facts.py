"""What JSON says of an installed model."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from appliance.journal import timestamp
from appliance.layout import Paths
from appliance.model import InstalledModel


def model_json(model: InstalledModel, *, revoked: str = "") -> dict[str, Any]:
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
        "revoked": revoked or None,
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


def revocations(paths: Paths, models: Iterable[InstalledModel]) -> dict[str, str]:
    """Short name → why a model would not come in any more; empty where it would.

    Raises:
        StoreError: the trust policy cannot be read.
    """
    asked = tuple(models)
    found = {model.name.short(): "" for model in asked}
    if any(model.provenance for model in asked) and _anything_revoked(paths):
        from appliance.revoked import Revocations  # noqa: PLC0415 - brings cryptography: slow

        known = Revocations(paths)
        found.update((model.name.short(), known.why(model)) for model in asked)
    return found


def _anything_revoked(paths: Paths) -> bool:
    """Whether the policy may revoke anything; what cannot be read may."""
    try:
        value = json.loads((paths.trust / "policy.json").read_bytes())
        return bool(value["root"] or value["revoked"])
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError):
        return True
