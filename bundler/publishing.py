"""A finished bundle into an OCI registry: one manifest per model name, docs/registry.md.

Rules:
 * the files are those of the bundle directory, byte for byte; nothing is signed or repacked here;
 * the manifest of a name comes last, so a registry never names a bundle that it holds in part;
 * what the registry holds already is not sent again.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from bundler.errors import PackError
from bundler.format.digest import Digest
from bundler.format.manifest import Manifest
from bundler.format.published import (
    ARTIFACT_TYPE,
    EMPTY,
    EMPTY_TYPE,
    ENVELOPE_TYPE,
    FILE_TYPE,
    MANIFEST_TYPE,
    ROOT_TYPE,
    TITLE,
    repository_of,
)
from bundler.format.volume import ENVELOPE_NAME, ROOT_DIRECTORY, ROOT_NAME, BundleDirectory
from bundler.progress import Progress
from bundler.source.registry import Registry

MOST_ROOTS: Final = 9999
"""Of a chain; their names have at most four digits."""


def publish(
    bundle: BundleDirectory,
    manifest: Manifest,
    registry: Registry,
    names: Mapping[str, tuple[str, str]],
    progress: Progress,
) -> None:
    """Send a bundle, and give it these names.

    Args:
        bundle: where it lies, whole.
        manifest: what its envelope says; not judged here.
        registry: where to.
        names: for people → repository and tag.
        progress: is told.

    Raises:
        PackError: the registry does not take it, or a file is missing.
        MediumError: the bundle cannot be read.
    """
    small = dict(_small_files(bundle))
    files = dict(_files(manifest))
    for repository in sorted({repository for repository, _ in names.values()}):
        for data in (EMPTY, *small.values()):
            _send(registry, repository, Digest.of(data), len(data), io.BytesIO(data))
        for digest, size_bytes in files.items():
            with progress.stage(f"sending {digest.short()}", size_bytes) as advance:
                if not registry.holds(repository, digest):
                    with bundle.open_blob(digest, size_bytes=size_bytes) as file:
                        registry.put_blob(repository, digest, size_bytes, file)
                advance(size_bytes)
    document = _document(small, files)
    for repository, tag in names.values():
        registry.put_manifest(repository, tag, document, MANIFEST_TYPE)


def _send(
    registry: Registry, repository: str, digest: Digest, size_bytes: int, data: io.BytesIO
) -> None:
    if not registry.holds(repository, digest):
        registry.put_blob(repository, digest, size_bytes, data)


def _small_files(bundle: BundleDirectory) -> Iterator[tuple[str, bytes]]:
    """The envelope, and the chain of roots beside it."""
    yield ENVELOPE_NAME, bundle.read_envelope()
    for version in range(1, MOST_ROOTS + 1):
        root = bundle.read_root(version)
        if root is None:
            return
        yield f"{ROOT_DIRECTORY}/{ROOT_NAME.format(version)}", root


def _files(manifest: Manifest) -> Iterator[tuple[Digest, int]]:
    """Every file below ``blobs`` that the statement names."""
    for artifact in manifest.artifacts:
        yield artifact.index.digest, artifact.index.size_bytes
        for segment in artifact.segments:
            yield segment.digest, segment.size_bytes
    for blob in manifest.blobs:
        yield blob.digest, blob.size_bytes


def _document(small: Mapping[str, bytes], files: Mapping[Digest, int]) -> bytes:
    layers: list[dict[str, Any]] = [
        {
            "mediaType": ENVELOPE_TYPE if title == ENVELOPE_NAME else ROOT_TYPE,
            "digest": str(Digest.of(data)),
            "size": len(data),
            "annotations": {TITLE: title},
        }
        for title, data in small.items()
    ]
    layers += [
        {"mediaType": FILE_TYPE, "digest": str(digest), "size": size_bytes}
        for digest, size_bytes in files.items()
    ]
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": ARTIFACT_TYPE,
        "config": {"mediaType": EMPTY_TYPE, "digest": str(Digest.of(EMPTY)), "size": len(EMPTY)},
        "layers": layers,
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode("ascii")


def names_of(manifest: Manifest, prefix: str) -> dict[str, tuple[str, str]]:
    """Repository and tag of each model, below a repository of the registry.

    Raises:
        PackError: the name of one is no repository.
    """
    found = {}
    for model in manifest.models:
        repository, tag = repository_of(model.name)
        if repository != repository.lower() or ":" in repository:
            raise PackError(
                f"{model.name.short()}: expected lower case and no port, as registries want it"
            )
        found[model.name.short()] = (f"{prefix}{repository}", tag)
    return found
