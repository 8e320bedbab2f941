"""Documents that came with a model: kept beside it, shown, carried out again, and judged by nobody.

They lie below the manifest's digest and go when the model's record of origin goes.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping
from typing import Any

from appliance.errors import UnusableModelError, store_io
from appliance.layout import Paths
from bundler.format import fsio
from bundler.format.digest import Digest
from bundler.format.errors import BundleError
from bundler.format.manifest import Manifest, Model
from bundler.format.volume import BundleDirectory

BOM = "bom.cdx.json"
MODEL_CARD = "model-card"
OMS = "oms.sig"
SOURCE = "source.json"
NAMES = (BOM, MODEL_CARD, OMS, SOURCE)
_MAX_BYTES = 8 << 20


def read_evidence(bundle: BundleDirectory, manifest: Manifest, model: Model) -> dict[str, bytes]:
    """The documents of a model, by name; read before anything large is copied.

    Raises:
        UnusableModelError: they are too large together.
        FormatError: one is missing or damaged.
        MediumError: the medium cannot be read.
    """
    named = {
        BOM: model.evidence.mlbom,
        MODEL_CARD: model.evidence.model_card,
        OMS: model.evidence.oms,
    }
    listed = {name: manifest.blob(digest) for name, digest in named.items() if digest is not None}
    total = sum(blob.size_bytes for blob in listed.values())
    if total > _MAX_BYTES:
        raise UnusableModelError(
            f"{model.name.short()}: evidence: expected at most {_MAX_BYTES} bytes, found {total}"
        )
    found = {
        name: bundle.read_blob(blob.digest, max_bytes=blob.size_bytes, size_bytes=blob.size_bytes)
        for name, blob in listed.items()
    }
    source = model.evidence.source
    if source is not None:
        members = {
            "uri": source.uri,
            "revision": source.revision,
            "digest": str(source.digest) if source.digest else None,
            "licences": list(model.licences),
        }
        found[SOURCE] = json.dumps(members, indent=1).encode() + b"\n"
    return found


def keep_evidence(paths: Paths, manifest: Digest, documents: Mapping[str, bytes]) -> None:
    """Write them, durably; the caller holds the store's lock.

    Raises:
        NoSpaceError: there is no room.
        StoreAccessError: they cannot be written.
    """
    if not documents:
        return
    folder = paths.evidence(manifest)
    with store_io("keep what came with a model"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in documents.items():
            fsio.atomic_write(folder / name, data)


def kept_evidence(paths: Paths, manifest: Digest) -> dict[str, bytes]:
    """What came with a model, by name; what cannot be read is left out.

    A damaged document is no reason not to serve the model.
    """
    found = {}
    for name in NAMES:
        with contextlib.suppress(BundleError, OSError):
            path = paths.evidence(manifest) / name
            found[name] = fsio.read_bounded(path, max_bytes=_MAX_BYTES)
    return found


def drop_evidence(paths: Paths, manifest: Digest) -> None:
    """Remove what came with a model that is gone."""
    shutil.rmtree(paths.evidence(manifest), ignore_errors=True)


def source_of(documents: Mapping[str, bytes]) -> dict[str, Any]:
    """Where the weights came from, in the packer's words; empty if nobody said."""
    try:
        value = json.loads(documents.get(SOURCE, b"{}"))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
