"""A model of an OCI or Ollama registry, downloaded into a cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bundler.errors import PackError
from bundler.format.digest import Digest
from bundler.format.manifest import Source
from bundler.hashing import source_digest
from bundler.progress import Progress
from bundler.source.image import Image, parse_image
from bundler.source.material import Material
from bundler.source.ollama_store import image_material
from bundler.source.reference import RegistryReference
from bundler.source.registry import Registry
from bundler.source.split import merge, read_shards, shard_names


def open_registry(
    reference: RegistryReference, registry: Registry, cache: Path, work: Path, progress: Progress
) -> Material:
    """Download a model, check every byte, and give what is to be packed.

    Args:
        reference: what to download.
        registry: where from.
        cache: keeps finished and unfinished blobs between runs.
        work: where shards are merged.
        progress: downloading is shown.

    Raises:
        SourceDamagedError: the registry gives other bytes than its manifest names.
        ForeignLayoutError: the weights are in a layout only Ollama's engine reads.
        PackError: it does not answer, or the image is of no GGUF model.
        NoSpaceError: cache or work directory are full.
    """
    data = registry.manifest(reference)
    image = parse_image(data, f"oci:{reference}")
    models = image.every("model")
    titles = [layer.title.rpartition("/")[2] for layer in models]
    split = len(models) > 1 and sorted(titles) == sorted(shard_names(titles[0]))
    if len(models) > 1 and not split and not image.is_ollama:
        raise PackError(
            f"oci:{reference}: expected one GGUF file, found {len(models)}: "
            f"{', '.join(title or '(no name)' for title in titles[:6])}",
            hint="push each of them under a tag of its own",
        )
    parts = {part.digest: part for part in image.parts}
    files: dict[Digest, Path] = {}
    total = sum(part.size_bytes for part in parts.values())
    with progress.stage("downloading", total) as advance:
        for digest, part in parts.items():
            files[digest] = registry.blob(
                reference.repository, digest, part.size_bytes, cache / "blobs", advance
            )
    if split:
        image, files = _merged(image, files, work, progress)
    origin = Source(
        uri=f"oci://{reference}", revision=str(Digest.of(data)), digest=image.weights.digest
    )
    return image_material(image, files, origin=origin, name=reference.model_name)


def _merged(
    image: Image, files: dict[Digest, Path], work: Path, progress: Progress
) -> tuple[Image, dict[Digest, Path]]:
    """The image with its shards as one layer."""
    for layer in image.every("model"):
        # The blobs go by their digests; shards are known by their names.
        (work / layer.title.rpartition("/")[2]).symlink_to(files[layer.digest].resolve())
    shards = read_shards(work / image.weights.title.rpartition("/")[2])
    target = work / "merged.gguf"
    merge(shards, target, progress)
    whole = replace(
        image.weights, digest=source_digest(target, progress), size_bytes=target.stat().st_size
    )
    others = tuple(layer for layer in image.layers if layer.kind != "model")
    return replace(image, layers=(whole, *others)), {**files, whole.digest: target}
