"""An installed model: what a name in the store stands for, read once and then a plain value."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from appliance.errors import StoreCorruptError
from bundler.format.digest import Descriptor, Digest
from bundler.format.errors import FormatError
from bundler.format.name import ModelName
from hwprobe.gguf import ModelProfile, model_profile, read_header

MANIFEST_MEDIA = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG_MEDIA = "application/vnd.docker.container.image.v1+json"
LAYER_MEDIA = "application/vnd.ollama.image."
"""Prefix of every layer's media type; Ollama's registry protocol."""

MAX_MANIFEST_BYTES = 1 << 20
MAX_TEXT_BYTES = 16 << 20
"""Largest template, licence or other text layer read into memory; real ones are below 100 KiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where a model came from.

    Attributes:
        bundle_id: the signed id of the bundle.
        channel: its channel, and ``seq`` its number there.
        statement: digest of the signed bytes.
        signed_by: key ids of the trusted keys that signed.
        variant: which variant of the bundle this is.
        imported_at: wall time of the import, RFC 3339.
    """

    bundle_id: str
    channel: str
    seq: int
    statement: str
    signed_by: tuple[str, ...]
    variant: str
    imported_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Creation:
    """That a model was made here, and of what.

    Attributes:
        base: name of the model it was made from, or empty.
        weights: ``signed`` if it was made only of weights that came in signed bundles.
        created_at: wall time, RFC 3339.
    """

    base: str
    weights: Literal["signed", "unsigned"]
    created_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The record of origin of one manifest.

    Attributes:
        provenance: the signed bundle that it, or the model it was made from, came in.
        creation: that it was made here.
    """

    provenance: Provenance | None = None
    creation: Creation | None = None

    def encode(self) -> bytes:
        """As a file; ``parse_origin(o.encode()) == o``.

        An imported model's record is its provenance, as earlier releases wrote it.
        """
        if self.creation is None and self.provenance is not None:
            value = asdict(self.provenance)
        else:
            value = asdict(self)
        return json.dumps(value, indent=1).encode() + b"\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A parsed manifest: the config descriptor, if any, and the layers in order."""

    config: Descriptor | None
    layers: tuple[Descriptor, ...]

    @property
    def size_bytes(self) -> int:
        """All layers and the config, as ``list`` shows it."""
        return sum(part.size_bytes for part in self.parts)

    @property
    def parts(self) -> tuple[Descriptor, ...]:
        """Everything the manifest refers to."""
        return self.layers if self.config is None else (self.config, *self.layers)

    def of(self, kind: str) -> tuple[Descriptor, ...]:
        """The layers of one kind: ``model``, ``template``, ``license`` and so on."""
        return tuple(layer for layer in self.layers if layer.media_type == LAYER_MEDIA + kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledModel:
    """One model of the store.

    Attributes:
        name: its name, in the store's spelling.
        digest: SHA-256 of the manifest file; the first twelve digits are the id ``list`` shows.
        size_bytes: all its files together.
        modified_at_s: wall time at which the name last changed, in seconds since the epoch.
        model_path: the weights, a GGUF file.
        model_digest: SHA-256 of the weights.
        template: the Go template, or ``None`` when only the GGUF has one.
        system: the default system message.
        parameters: default options as Ollama's JSON has them; ``stop`` is a list.
        licenses: full texts.
        messages: pairs of role and text that open every conversation.
        adapters: LoRA files, and ``projectors`` multimodal ones.
        drafts: small models that propose tokens; the first is used.
        config: Ollama's config blob: ``model_family``, ``model_type``, ``file_type`` and so on.
        provenance: the signed bundle that it, or the model it was made from, came in.
        creation: that it was made here, and of what.
    """

    name: ModelName
    digest: Digest
    size_bytes: int
    modified_at_s: float
    model_path: Path
    model_digest: Digest
    template: str | None
    system: str
    parameters: Mapping[str, Any]
    licenses: tuple[str, ...]
    messages: tuple[tuple[str, str], ...]
    adapters: tuple[Path, ...]
    projectors: tuple[Path, ...]
    config: Mapping[str, Any]
    provenance: Provenance | None
    drafts: tuple[Path, ...] = ()
    creation: Creation | None = None

    @property
    def signed(self) -> bool:
        """Whether its weights came in signed bundles, or were made of such alone."""
        made_of = "signed" if self.creation is None else self.creation.weights
        return self.provenance is not None and made_of == "signed"

    @property
    def profile(self) -> ModelProfile:
        """What the weights' header says; read once per blob and process.

        Raises:
            GgufError: the file is not a GGUF.
            OSError: it cannot be read.
        """
        return _profile(self.model_path)


@functools.lru_cache(maxsize=256)
def _profile(model_path: Path) -> ModelProfile:
    """Cached by path: a blob's path holds its digest, and blobs never change."""
    return model_profile(read_header(model_path))


def parse_image(data: bytes) -> Image:
    """Read a manifest as Ollama and other tools write it; unknown keys are ignored.

    Raises:
        StoreCorruptError: it is no manifest, or not one of a GGUF model.
    """
    try:
        value = json.loads(data)
        config = value.get("config")
        layers = tuple(_descriptor(layer) for layer in value["layers"])
        image = Image(config=_descriptor(config) if config else None, layers=layers)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, FormatError) as error:
        raise StoreCorruptError(f"not a model manifest: {type(error).__name__}: {error}") from error
    if not image.of("model"):
        raise StoreCorruptError("the manifest has no model layer")
    return image


def _descriptor(value: Mapping[str, Any]) -> Descriptor:
    size = value["size"]
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ValueError(f"size: expected a whole number, found {size!r}")
    digest = Digest.parse(str(value["digest"]).lower().replace("sha256-", "sha256:"))
    return Descriptor(media_type=str(value["mediaType"]), digest=digest, size_bytes=size)


def encode_image(*, config: Descriptor, layers: Iterable[Descriptor]) -> bytes:
    """Write a manifest with Ollama's keys in Ollama's order; equal models give equal bytes."""
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_MEDIA,
        "config": _encode_descriptor(config),
        "layers": [_encode_descriptor(layer) for layer in layers],
    }
    return json.dumps(document, separators=(",", ":")).encode()


def _encode_descriptor(part: Descriptor) -> dict[str, Any]:
    return {"mediaType": part.media_type, "digest": str(part.digest), "size": part.size_bytes}


def parse_parameters(texts: Iterable[bytes]) -> Mapping[str, Any]:
    """Merge the ``params`` layers; a later one wins.

    Raises:
        StoreCorruptError: one is not a JSON object.
    """
    merged: dict[str, Any] = {}
    for text in texts:
        value = _json(text, "params")
        if not isinstance(value, dict):
            raise StoreCorruptError("params layer: expected a JSON object")
        merged.update(value)
    return merged


def parse_messages(text: bytes) -> tuple[tuple[str, str], ...]:
    """Read a ``messages`` layer.

    Raises:
        StoreCorruptError: it is not a JSON list of roles and texts.
    """
    value = _json(text, "messages")
    try:
        return tuple((str(message["role"]), str(message["content"])) for message in value)
    except (TypeError, KeyError) as error:
        raise StoreCorruptError("messages layer: expected objects with role and content") from error


def parse_config(text: bytes) -> Mapping[str, Any]:
    """Read the config blob; anything but an object counts as empty, as other tools write such."""
    value = _json(text, "config")
    return value if isinstance(value, dict) else {}


def _json(text: bytes, kind: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StoreCorruptError(f"{kind} layer: not valid JSON") from error


def parse_origin(data: bytes) -> Origin:
    """Read a record of origin.

    Raises:
        StoreCorruptError: it is not one.
    """
    try:
        value = json.loads(data)
        if "creation" not in value:
            return Origin(provenance=_provenance(value))
        creation, provenance = value["creation"], value["provenance"]
        return Origin(
            provenance=None if provenance is None else _provenance(provenance),
            creation=None if creation is None else Creation(**creation),
        )
    except (ValueError, TypeError, KeyError) as error:
        raise StoreCorruptError("not a record of provenance") from error


def _provenance(value: Mapping[str, Any]) -> Provenance:
    return Provenance(**{**value, "signed_by": tuple(value["signed_by"])})
