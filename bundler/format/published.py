"""How a bundle lies in an OCI registry; normative in docs/registry.md. Pure.

What a registry says is believed as little as a medium: from its manifest a reader takes the
envelope and the roots, and everything else by the digests that the signed statement names.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from bundler.format.digest import Digest
from bundler.format.errors import DigestFormatError, LayoutError
from bundler.format.limits import MAX_ENVELOPE_BYTES, MAX_ROOT_ENVELOPE_BYTES
from bundler.format.name import DEFAULT_HOST, ModelName
from bundler.format.volume import ENVELOPE_NAME, ROOT_DIRECTORY, ROOT_NAME

MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT_TYPE: Final = "application/vnd.satchel.bundle.v1"
ENVELOPE_TYPE: Final = "application/vnd.satchel.envelope.v1+json"
ROOT_TYPE: Final = "application/vnd.satchel.root.v1+json"
FILE_TYPE: Final = "application/vnd.satchel.file.v1"
EMPTY_TYPE: Final = "application/vnd.oci.empty.v1+json"
EMPTY: Final = b"{}"
TITLE: Final = "org.opencontainers.image.title"
"""Annotation of a layer: its path in the bundle directory. Source: OCI image specification."""

_MAX_ROOTS: Final = 1024
"""Layers that are read as roots; a site that changes them monthly takes 85 years."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedFile:
    """A file of a bundle that is needed before anything is trusted.

    Attributes:
        path: below the bundle directory.
        digest: what the registry calls it.
        size_bytes: as the registry says.
    """

    path: str
    digest: Digest
    size_bytes: int


def repository_of(name: ModelName) -> tuple[str, str]:
    """Repository and tag of a model: ``library/demo`` and ``latest``, as Ollama has them.

    Names of another host than Ollama's have it in front: ``hf.co/org/repo``.
    """
    host = "" if name.host == DEFAULT_HOST else f"{name.host}/"
    return f"{host}{name.namespace}/{name.model}", name.tag


def read_published(data: bytes) -> tuple[PublishedFile, ...]:
    """The envelope and the roots that a manifest names; the envelope first.

    Raises:
        LayoutError: it is no manifest of a bundle.
    """
    try:
        value: Any = json.loads(data)
        layers = value["layers"] if value.get("artifactType") == ARTIFACT_TYPE else []
        found = [_file(layer) for layer in layers if layer.get("mediaType") in _TYPES]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise LayoutError("registry: expected the manifest of a bundle, found another") from error
    except DigestFormatError as error:
        raise LayoutError(f"registry: {error}") from error
    envelopes = [one for one in found if one.path == ENVELOPE_NAME]
    roots = {one.path: one for one in found if one.path != ENVELOPE_NAME}
    if len(envelopes) != 1:
        raise LayoutError(
            f"registry: expected one signed envelope, found {len(envelopes) or 'none'}",
            hint="only bundles come in; satchel-bundle publish puts them into a registry",
        )
    chain: list[PublishedFile] = []
    while len(chain) < _MAX_ROOTS:
        root = roots.get(_root_path(len(chain) + 1))
        if root is None:
            break
        chain.append(root)
    return (*envelopes, *chain)


def _root_path(version: int) -> str:
    return f"{ROOT_DIRECTORY}/{ROOT_NAME.format(version)}"


_TYPES: Final = {ENVELOPE_TYPE: MAX_ENVELOPE_BYTES, ROOT_TYPE: MAX_ROOT_ENVELOPE_BYTES}


def _file(layer: dict[str, Any]) -> PublishedFile:
    kind, size_bytes = layer["mediaType"], layer["size"]
    most = _TYPES[kind]
    if (
        isinstance(size_bytes, bool)
        or not isinstance(size_bytes, int)
        or not 0 < size_bytes <= most
    ):
        raise LayoutError(f"registry: expected {kind} of at most {most} bytes, found {size_bytes}")
    title = ENVELOPE_NAME if kind == ENVELOPE_TYPE else str(layer["annotations"][TITLE])
    return PublishedFile(path=title, digest=Digest.parse(layer["digest"]), size_bytes=size_bytes)
