"""What must be true of a model's files before its name appears: the static gate, and the layers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from appliance import human, weights
from appliance.choice import profile_of
from appliance.errors import AppError, UnusableModelError, store_io
from appliance.model import (
    CONFIG_MEDIA,
    LAYER_MEDIA,
    MAX_TEXT_BYTES,
    encode_image,
    parse_config,
    parse_image,
    parse_messages,
    parse_parameters,
)
from bundler.format.carried import CarriedImage
from bundler.format.digest import Descriptor, Digest
from bundler.format.manifest import Artifact, Manifest, Model, Variant
from bundler.format.volume import BundleDirectory
from hwprobe.errors import GgufError
from hwprobe.gguf import ModelProfile, model_profile, read_header

_READ_BYTES = 1 << 20
_MAX_LAYERS_BYTES = 64 << 20
"""Bound on all small layers of a bundle together: they are held in memory until step 8. The same
file may be named by many models, so what the medium holds bounds nothing."""


def check_weights(path: Path, artifact: Artifact, variant: Variant) -> None:
    """Read the header of staged weights and compare it with what was signed.

    Raises:
        UnusableModelError: it is no GGUF, or not the one the statement describes.
        StoreAccessError: it cannot be read.
    """
    try:
        with store_io("read the header of a staged file"):
            header = read_header(path)
            profile = model_profile(header)
            metadata = _digest_of_head(path, header.data_offset_bytes)
    except GgufError as error:
        raise UnusableModelError(f"variant {variant.id}: {error}") from error
    weights.check_layout(header, f"variant {variant.id}")
    signed = dict(profile_of(variant).identity())
    differing = [(name, value) for name, value in profile.identity() if signed[name] != value]
    if differing:
        name, value = differing[0]
        raise UnusableModelError(
            f"variant {variant.id}: {name}: expected {signed[name]!r} as signed, found {value!r}",
            hint="the bundle was packed from another file than it was described by",
        )
    facts = artifact.gguf
    if facts is not None and (
        facts.tensors != len(header.tensors)
        or facts.architecture != profile.architecture
        or facts.metadata_digest != metadata
    ):
        raise UnusableModelError(
            f"variant {variant.id}: expected {facts.tensors} {facts.architecture} tensors behind "
            f"the signed header, found {len(header.tensors)} {profile.architecture} ones"
        )


def check_companion(path: Path, artifact: Artifact, variant: Variant) -> None:
    """Read the header of a staged file beside the weights and compare it with what was signed.

    Raises:
        UnusableModelError: it is no GGUF, or not the one the statement describes.
        StoreAccessError: it cannot be read.
    """
    try:
        with store_io("read the header of a staged file"):
            header = read_header(path)
            metadata = _digest_of_head(path, header.data_offset_bytes)
    except GgufError as error:
        raise UnusableModelError(f"variant {variant.id}: {error}") from error
    facts = artifact.gguf
    if facts is not None and (
        facts.tensors != len(header.tensors) or facts.metadata_digest != metadata
    ):
        raise UnusableModelError(
            f"variant {variant.id}: {artifact.digest.short()}: expected the signed header, "
            "found another"
        )


def companions(manifest: Manifest, variant: Variant) -> tuple[tuple[str, Artifact], ...]:
    """Kinds of layer and artifacts that go with a variant: projector, draft model and adapters."""
    optional = (("projector", variant.projector), ("draft", variant.draft))
    pairs = [(kind, digest) for kind, digest in optional if digest is not None]
    pairs += [("adapter", digest) for digest in variant.adapters]
    return tuple((kind, manifest.artifact(digest)) for kind, digest in pairs)


def check_image(
    image: CarriedImage,
    artifact: Artifact,
    beside: tuple[tuple[str, Artifact], ...],
    layers: tuple[tuple[Descriptor, bytes], ...],
) -> None:
    """Compare a carried manifest with the files of the variant it is carried for.

    Raises:
        UnusableModelError: it is none, or names other files than the statement does.
    """
    at = f"{image.model} {image.variant}: carried manifest"
    try:
        parsed = parse_image(image.manifest)
        parse_config(image.config)
    except AppError as error:
        raise UnusableModelError(f"{at}: {error}") from error
    signed = [(LAYER_MEDIA + "model", artifact.digest, artifact.size_bytes)]
    signed += [(LAYER_MEDIA + kind, one.digest, one.size_bytes) for kind, one in beside]
    signed += [(one.media_type, one.digest, one.size_bytes) for one, _ in layers]
    found = [(one.media_type, one.digest, one.size_bytes) for one in parsed.layers]
    if sorted(found) != sorted(signed):
        raise UnusableModelError(f"{at}: expected the files of the variant, found others")
    if parsed.config is None or parsed.config.digest != Digest.of(image.config):
        raise UnusableModelError(f"{at}: expected the carried config, found another")


def _digest_of_head(path: Path, size_bytes: int) -> Digest:
    hasher = hashlib.sha256()
    left = size_bytes
    with path.open("rb") as file:
        while left and (part := file.read(min(left, _READ_BYTES))):
            hasher.update(part)
            left -= len(part)
    return Digest(hasher.hexdigest())


def check_layers(manifest: Manifest) -> None:
    """Refuse layers that would be too much to hold, before any of them is read.

    Raises:
        UnusableModelError: they are.
    """
    total = sum(
        manifest.blob(layer.digest).size_bytes
        for model in manifest.models
        for layer in model.layers
    )
    if total > _MAX_LAYERS_BYTES:
        raise UnusableModelError(
            f"layers: expected at most {_MAX_LAYERS_BYTES} bytes in one bundle, found {total}"
        )


def read_layers(
    bundle: BundleDirectory, manifest: Manifest, model: Model
) -> tuple[tuple[Descriptor, bytes], ...]:
    """The small layers of a model, read once, checked, and understood as far as they must be.

    Raises:
        UnusableModelError: one is too large, or not what its role asks for.
        FormatError: one is missing, damaged, or of another size.
        MediumError: the medium cannot be read.
    """
    layers = []
    for layer in model.layers:
        size_bytes = manifest.blob(layer.digest).size_bytes
        at = f"{model.name.short()}: {layer.role} layer"
        if size_bytes > MAX_TEXT_BYTES:
            raise UnusableModelError(
                f"{at}: expected at most {MAX_TEXT_BYTES} bytes, found {size_bytes}"
            )
        data = bundle.read_blob(layer.digest, max_bytes=size_bytes, size_bytes=size_bytes)
        try:
            if layer.role == "params":
                parse_parameters((data,))
            elif layer.role == "messages":
                parse_messages(data)
            else:
                data.decode()
        except (AppError, UnicodeDecodeError) as error:
            raise UnusableModelError(f"{at}: {error}") from error
        descriptor = Descriptor(
            media_type=LAYER_MEDIA + layer.role, digest=layer.digest, size_bytes=size_bytes
        )
        layers.append((descriptor, data))
    return tuple(layers)


def config_blob(profile: ModelProfile, weights: Digest) -> bytes:
    """Ollama's config blob; equal models give equal bytes, so ids do not depend on the site."""
    config: Mapping[str, Any] = {
        "model_format": "gguf",
        "model_family": profile.architecture,
        "model_families": [profile.architecture],
        "model_type": human.count(profile.parameter_count),
        "file_type": profile.quantization,
        "context_length": profile.context_length,
        "embedding_length": profile.embedding_length,
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [str(weights)]},
    }
    return json.dumps(config, separators=(",", ":")).encode()


def model_manifest(
    artifact: Artifact,
    layers: tuple[tuple[Descriptor, bytes], ...],
    config: bytes,
    beside: tuple[tuple[str, Artifact], ...] = (),
) -> bytes:
    """The manifest file of one variant: large files first, then the layers in signed order."""
    weights = Descriptor(
        media_type=LAYER_MEDIA + "model", digest=artifact.digest, size_bytes=artifact.size_bytes
    )
    described = Descriptor(
        media_type=CONFIG_MEDIA, digest=Digest.of(config), size_bytes=len(config)
    )
    large = [
        Descriptor(media_type=LAYER_MEDIA + kind, digest=one.digest, size_bytes=one.size_bytes)
        for kind, one in beside
    ]
    return encode_image(
        config=described, layers=(weights, *large, *(descriptor for descriptor, _ in layers))
    )
