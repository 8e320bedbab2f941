"""What must hold between the fields of a statement: order, uniqueness, references, sums. Pure."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import Final

from bundler.format.digest import Digest
from bundler.format.errors import ManifestError, UnsupportedError
from bundler.format.manifest import Artifact, Manifest, Model, sum_totals

_PARITY_SCHEME: Final = "pq-2"
_MAX_GROUP: Final = 255
"""Larger groups have no Q (`bundler.format.parity`)."""
_KNOWN_MEDIA: Final = "application/vnd.gguf"


def check_closure(manifest: Manifest) -> None:
    """Refuse a statement whose fields contradict each other.

    Raises:
        ManifestError: something is twice, out of order, missing, left over, or summed wrongly.
    """
    _check_sorted("artifacts", [one.digest for one in manifest.artifacts])
    _check_sorted("blobs", [one.digest for one in manifest.blobs])
    _check_models(manifest.models)
    _check_references(manifest)
    for position, artifact in enumerate(manifest.artifacts):
        _check_segments(artifact, f"artifacts[{position}]")
    _check_files(manifest)
    _check_unique(
        "requires.objects", "digests", [one.digest.hex for one in manifest.requires.objects]
    )
    if manifest.bundle.kind in ("full", "delta") and not manifest.models:
        raise ManifestError(at="predicate.models", expected="at least one model", found="none")
    totals = sum_totals(manifest.artifacts, manifest.blobs)
    if manifest.totals != totals:
        raise ManifestError(
            at="predicate.totals",
            expected=f"stored {totals.stored_bytes} and plain {totals.plain_bytes}",
            found=f"stored {manifest.totals.stored_bytes}, plain {manifest.totals.plain_bytes}",
        )


def _check_sorted(at: str, digests: Sequence[Digest]) -> None:
    for position, (one, following) in enumerate(itertools.pairwise(digests)):
        if one >= following:
            raise ManifestError(
                at=f"predicate.{at}[{position + 1}].digest",
                expected="digests in ascending order, each once",
                found=str(following),
            )


def _check_models(models: Sequence[Model]) -> None:
    _check_unique("models", "names", [model.name.folded() for model in models])
    for position, model in enumerate(models):
        at = f"models[{position}]"
        _check_unique(f"{at}.variants", "ids", [variant.id for variant in model.variants])
        single = [layer.role for layer in model.layers if layer.role != "license"]
        _check_unique(f"{at}.layers", "roles", single)


def _check_unique(at: str, what: str, values: Iterable[Hashable]) -> None:
    for value, times in Counter(values).items():
        if times > 1:
            shown = value if isinstance(value, str) else ":".join(map(str, _parts(value)))
            raise ManifestError(
                at=f"predicate.{at}", expected=f"distinct {what}", found=f"{shown} {times} times"
            )


def _parts(value: Hashable) -> tuple[object, ...]:
    return value if isinstance(value, tuple) else (value,)


def _check_references(manifest: Manifest) -> None:
    weights = {
        digest
        for model in manifest.models
        for variant in model.variants
        for digest in variant.artifacts()
    }
    small = {digest for model in manifest.models for digest in model.blobs()}
    _check_same("artifacts", weights, {one.digest for one in manifest.artifacts})
    _check_same("blobs", small, {one.digest for one in manifest.blobs})


def _check_same(at: str, named: set[Digest], listed: set[Digest]) -> None:
    if missing := named - listed:
        raise ManifestError(
            at=f"predicate.{at}", expected=f"an entry for {min(missing)}", found="none"
        )
    if left_over := listed - named:
        raise ManifestError(
            at=f"predicate.{at}", expected="entries that a model uses", found=str(min(left_over))
        )


def _check_segments(artifact: Artifact, at: str) -> None:
    if not artifact.segments and artifact.encoding != "delta":
        raise ManifestError(
            at=f"predicate.{at}.segments", expected="at least one segment", found="none"
        )
    _check_unique(f"{at}.segments", "digests", [one.digest.hex for one in artifact.segments])


def _check_files(manifest: Manifest) -> None:
    """Files on the medium: one size per digest, and no index that is also something else."""
    sizes: dict[Digest, int] = {one.digest: one.size_bytes for one in manifest.blobs}
    for artifact in manifest.artifacts:
        parity = artifact.parity.segments if artifact.parity is not None else ()
        for segment in artifact.segments + parity:
            if sizes.setdefault(segment.digest, segment.size_bytes) != segment.size_bytes:
                raise ManifestError(
                    at="predicate.artifacts",
                    expected=f"one size for {segment.digest}",
                    found=f"{sizes[segment.digest]} and {segment.size_bytes}",
                )
    for position, artifact in enumerate(manifest.artifacts):
        own = [("index", artifact.index)]
        if artifact.parity is not None:
            own.append(("parity.index", artifact.parity.index))
        for name, index in own:
            if index.digest in sizes:
                raise ManifestError(
                    at=f"predicate.artifacts[{position}].{name}",
                    expected="a file of its own",
                    found=f"{index.digest}, which is something else too",
                )


def refuse_reserved(manifest: Manifest) -> None:
    """Refuse features whose fields are defined but which this release does not carry out.

    Raises:
        UnsupportedError: one of them is used.
    """
    is_delta = manifest.bundle.kind == "delta"
    needs = bool(manifest.requires.objects)
    used = {
        f"kind {manifest.bundle.kind}": manifest.bundle.kind not in ("full", "delta"),
        "kind delta without required objects": is_delta and not needs,
        "required objects outside kind delta": needs and not is_delta,
        "delta encoding outside kind delta": not is_delta
        and any(one.encoding == "delta" for one in manifest.artifacts),
        "encryption": manifest.encryption is not None,
        "rollback permission": manifest.rollback is not None,
        "parity scheme": any(
            one.parity is not None
            and (one.parity.scheme != _PARITY_SCHEME or one.parity.group > _MAX_GROUP)
            for one in manifest.artifacts
        ),
        "media type": any(one.media != _KNOWN_MEDIA for one in manifest.artifacts),
    }
    for feature, is_used in used.items():
        if is_used:
            raise UnsupportedError(
                f"bundle: {feature} is defined by the format but not supported by this release",
                hint="update satchel on this machine first",
            )
