"""The statement of a bundle: what was stored and what was asked for, as fields to be signed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from bundler.evidence import make_evidence
from bundler.format.carried import CarriedImage, write_images
from bundler.format.digest import Digest
from bundler.format.manifest import (
    Artifact,
    BlobRef,
    Builder,
    BundleInfo,
    Layer,
    Manifest,
    Model,
    Requires,
    Variant,
    identified,
    sum_totals,
)
from bundler.format.statement import format_time
from bundler.medium import Sink
from bundler.plan import PackRequest


def make_statement(
    request: PackRequest,
    recipe: Digest,
    stored: Sequence[tuple[Variant, Artifact]],
    companions: Sequence[Artifact],
    sink: Sink,
    *,
    objects: tuple[BlobRef, ...] = (),
) -> Manifest:
    """Write the small files, and say what the bundle holds.

    Args:
        request: what was asked for.
        recipe: digest over everything that decided the content.
        stored: variants and their weights, in the order they were packed.
        companions: large files that go with every variant, in the request's order.
        sink: where small files go.
        objects: files the target must hold, by number; with any, the bundle is a delta.
    """
    layers = tuple(Layer(role=role, digest=sink.put(data).digest) for role, data in request.layers)
    blobs = {
        layer.digest: len(data) for layer, (_, data) in zip(layers, request.layers, strict=True)
    }
    accepted = [one.acceptance for one, _ in stored if one.acceptance is not None]
    blobs |= {digest: sink.written[digest] for digest in accepted}
    modelfile = None
    if request.modelfile is not None:
        modelfile = sink.put(request.modelfile).digest
        blobs[modelfile] = len(request.modelfile)
    # More bits are closer to what was trained: the larger of two that fit is preferred.
    ranked = sorted(stored, key=lambda pair: pair[1].size_bytes)
    digests = [artifact.digest for artifact in companions]
    projector = digests.pop(0) if request.projector else None
    draft = digests.pop(0) if request.draft else None
    variants = {
        variant.id: replace(
            variant,
            prefer=10 * (rank + 1),
            projector=projector,
            draft=draft,
            adapters=tuple(digests),
        )
        for rank, (variant, _) in enumerate(ranked)
    }
    evidence, documents = make_evidence(request, stored, companions, sink)
    blobs |= documents
    model = Model(
        name=request.name,
        version=request.version,
        family=stored[0][1].gguf.architecture if stored[0][1].gguf else "unknown",
        licences=request.licences,
        layers=layers,
        variants=tuple(variants[variant.id] for variant, _ in stored),
        modelfile=modelfile,
        evidence=evidence,
    )
    every = [*(artifact for _, artifact in stored), *companions]
    by_digest = {artifact.digest: artifact for artifact in every}
    artifacts = tuple(by_digest[digest] for digest in sorted(by_digest))
    small = tuple(BlobRef(digest=one, size_bytes=blobs[one]) for one in sorted(blobs))
    return identified(
        Manifest(
            bundle=BundleInfo(
                channel=request.channel,
                seq=request.seq,
                kind="delta" if objects else "full",
                issued=format_time(request.issued),
                refresh_by=request.refresh_by,
                expires=request.expires,
                audience=request.audience,
                notes=request.notes,
            ),
            requires=Requires(root_version=len(request.roots), objects=objects),
            models=(model,),
            artifacts=artifacts,
            blobs=small,
            totals=sum_totals(artifacts, small),
            builder=Builder(
                tool=f"satchel-bundle {version('satchel')}",
                reproducible=request.reproducible,
                recipe=recipe,
            ),
            extensions=_carried(request, stored),
        )
    )


def _carried(request: PackRequest, stored: Sequence[tuple[Variant, Artifact]]) -> dict[str, Any]:
    """The source's own manifest, for the variant that is the source itself."""
    image = request.image
    if image is None:
        return {}
    named = request.origin.digest if request.origin else None
    return write_images(
        CarriedImage(
            model=request.name.short(),
            variant=variant.id,
            manifest=image.manifest,
            config=image.config,
        )
        for variant, artifact in stored
        if artifact.digest == named
    )
