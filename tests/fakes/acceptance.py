"""Bundles with acceptance checks, honest ones and lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bundler.format.acceptance import Check, encode_checks
from bundler.format.digest import Digest
from bundler.format.manifest import BlobRef, sum_totals
from tests.fakes.forge import Forged

CANNOT_HOLD = (Check(id="nll", kind="teacher_forced", text="a b c", mean_nll=99.0, tolerance=0.1),)
"""No model is that bad."""


def with_checks(bundle: Forged, checks: Sequence[Check] | bytes) -> Forged:
    """The same bundle; every variant carries these checks, or these bytes in their place."""
    data = checks if isinstance(checks, bytes) else encode_checks(checks)
    digest = Digest.of(data)
    (model,) = bundle.manifest.models
    variants = tuple(replace(variant, acceptance=digest) for variant in model.variants)
    ref = BlobRef(digest=digest, size_bytes=len(data))
    blobs = tuple(sorted((*bundle.manifest.blobs, ref), key=lambda one: one.digest))
    changed = bundle.with_manifest(
        models=(replace(model, variants=variants),),
        blobs=blobs,
        totals=sum_totals(bundle.manifest.artifacts, blobs),
    )
    return changed.with_file(data, named=digest)
