"""The signed statement as values, and its writing. Reading stands in `statement`. Pure.

Every field of docs/bundle-format.md, section 5, is here, those reserved for later included.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from bundler.format.digest import Digest
from bundler.format.limits import FORMAT_VERSION
from bundler.format.name import ModelName
from bundler.format.strict import encode_json

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://satchel.invalid/bundle/v1"
MEDIA_GGUF: Final = "application/vnd.gguf"

Kind = Literal["full", "delta", "repair", "trust"]
Encoding = Literal["identity", "zstd-frames", "delta"]
Role = Literal["template", "system", "params", "messages", "license"]

ROLES: Final[tuple[Role, ...]] = ("template", "system", "params", "messages", "license")


def layer_media_type(role: Role) -> str:
    """Ollama's media type of a layer."""
    return f"application/vnd.ollama.image.{role}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatInfo:
    """Which readers may read on."""

    version: int = FORMAT_VERSION
    min_reader: int = FORMAT_VERSION
    critical: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleInfo:
    """Which bundle this is; times are RFC 3339 texts in UTC.

    Attributes:
        id: UUID text, derived from the rest of the statement by `identified`.
        channel: the line of bundles it belongs to.
        seq: its place in that line.
        audience: site names, or ``("*",)``.
    """

    id: str = ""
    channel: str
    seq: int
    kind: Kind = "full"
    issued: str
    refresh_by: str | None = None
    expires: str | None = None
    audience: tuple[str, ...] = ("*",)
    supersedes: tuple[int, ...] = ()
    notes: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobRef:
    """A file by digest and size in bytes."""

    digest: Digest
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Requires:
    """What the target must have before it reads on."""

    appliance: str | None = None
    engine: str | None = None
    root_version: int = 0
    objects: tuple[BlobRef, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A small file that goes into the store as an Ollama layer."""

    role: Role
    digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One quantization of a model.

    Attributes:
        profile: the model profile without its chat template, as JSON values.
        prefer: of two variants that fit, the higher is chosen; 0 to 1 000.
    """

    id: str
    quantization: str
    artifact: Digest
    prefer: int = 0
    profile: Mapping[str, Any] = field(default_factory=dict)
    projector: Digest | None = None
    adapters: tuple[Digest, ...] = ()
    draft: Digest | None = None
    acceptance: Digest | None = None

    def artifacts(self) -> tuple[Digest, ...]:
        """Every artifact that belongs to this variant, the weights first."""
        optional = tuple(one for one in (self.projector, self.draft) if one is not None)
        return (self.artifact, *optional, *self.adapters)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where the weights came from, in the packer's words."""

    uri: str
    revision: str
    digest: Digest | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Documents about the model that travel with it; carried, not judged."""

    mlbom: Digest | None = None
    model_card: Digest | None = None
    oms: Digest | None = None
    slsa: tuple[Digest, ...] = ()
    source: Source | None = None

    def digests(self) -> tuple[Digest, ...]:
        """Every blob referred to."""
        optional = (self.mlbom, self.model_card, self.oms)
        return (*(one for one in optional if one is not None), *self.slsa)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One model in several variants, and what is common to them."""

    name: ModelName
    version: str = ""
    family: str
    licences: tuple[str, ...] = ()
    layers: tuple[Layer, ...] = ()
    variants: tuple[Variant, ...]
    modelfile: Digest | None = None
    evidence: Evidence = field(default_factory=Evidence)

    def blobs(self) -> tuple[Digest, ...]:
        """Every blob this model refers to; one may occur twice."""
        modelfile = (self.modelfile,) if self.modelfile is not None else ()
        acceptance = tuple(v.acceptance for v in self.variants if v.acceptance is not None)
        layers = tuple(layer.digest for layer in self.layers)
        return (*layers, *modelfile, *acceptance, *self.evidence.digests())


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A file on the medium that holds stored bytes."""

    digest: Digest
    size_bytes: int
    volume: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufFacts:
    """What can be said of a GGUF file without reading its tensors."""

    tensors: int
    metadata_digest: Digest
    architecture: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """Recovery data: two blocks for every ``group`` chunks (`bundler.format.parity`)."""

    scheme: str
    group: int
    index: BlobRef
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A large file that travels in segments; its identity is the digest of its plain bytes."""

    digest: Digest
    size_bytes: int
    media: str = MEDIA_GGUF
    encoding: Encoding
    index: BlobRef
    gguf: GgufFacts | None = None
    segments: tuple[Segment, ...]
    parity: Parity | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Exact sums, in bytes: on the medium, and of all artifacts unpacked."""

    stored_bytes: int
    plain_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipient:
    """A site that can unwrap the bundle's key; reserved."""

    site: str
    kem: str
    enc: str
    wrapped: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Encryption:
    """How segments are encrypted; reserved."""

    scheme: str
    recipients: tuple[Recipient, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollback:
    """A signed permission to take a channel back once; reserved."""

    from_seq: int
    to_seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Builder:
    """What made the bundle. Two bundles of one recipe carry the same models."""

    tool: str
    reproducible: bool
    recipe: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The whole statement. ``parse_manifest(encode_manifest(m)) == m``."""

    format: FormatInfo = field(default_factory=FormatInfo)
    bundle: BundleInfo
    requires: Requires = field(default_factory=Requires)
    models: tuple[Model, ...]
    artifacts: tuple[Artifact, ...]
    blobs: tuple[BlobRef, ...] = ()
    totals: Totals
    encryption: Encryption | None = None
    rollback: Rollback | None = None
    builder: Builder
    extensions: Mapping[str, Any] = field(default_factory=dict)

    def artifact(self, digest: Digest) -> Artifact:
        """The artifact of that digest; a parsed statement has every one its models name."""
        return next(one for one in self.artifacts if one.digest == digest)

    def blob(self, digest: Digest) -> BlobRef:
        """The blob of that digest; a parsed statement has every one its models name."""
        return next(one for one in self.blobs if one.digest == digest)


def volume_count(manifest: Manifest) -> int:
    """On how many volumes a bundle was planned to go."""
    segments = (
        segment
        for artifact in manifest.artifacts
        for segment in artifact.segments + (artifact.parity.segments if artifact.parity else ())
    )
    return max((segment.volume for segment in segments), default=1)


def sum_totals(artifacts: tuple[Artifact, ...], blobs: tuple[BlobRef, ...]) -> Totals:
    """Bytes on the medium, each distinct file once, and bytes of all artifacts unpacked."""
    files = {one.digest: one.size_bytes for one in blobs}
    for artifact in artifacts:
        files[artifact.index.digest] = artifact.index.size_bytes
        segments = artifact.segments
        if artifact.parity is not None:
            files[artifact.parity.index.digest] = artifact.parity.index.size_bytes
            segments += artifact.parity.segments
        files.update((segment.digest, segment.size_bytes) for segment in segments)
    plain_bytes = sum(one.size_bytes for one in artifacts)
    return Totals(stored_bytes=sum(files.values()), plain_bytes=plain_bytes)


def identified(manifest: Manifest) -> Manifest:
    """The statement with its id: a version 8 UUID over the predicate without an id."""
    unnamed = replace(manifest, bundle=replace(manifest.bundle, id=""))
    number = int.from_bytes(hashlib.sha256(encode_json(_predicate(unnamed))).digest()[:16])
    number = number & ~(0xF << 76) | 8 << 76  # version 8: custom
    number = number & ~(3 << 62) | 2 << 62  # variant of RFC 9562
    return replace(manifest, bundle=replace(manifest.bundle, id=str(uuid.UUID(int=number))))


def subjects(manifest: Manifest) -> tuple[tuple[str, Digest], ...]:
    """Names and digests the statement is about, as in-toto wants them said."""
    names = {
        variant.artifact: f"{model.name.model}-{model.name.tag}.{variant.id}.gguf"
        for model in reversed(manifest.models)
        for variant in reversed(model.variants)
    }
    files = tuple((names.get(one.digest, one.digest.hex), one.digest) for one in manifest.artifacts)
    return files or tuple((one.digest.hex, one.digest) for one in manifest.blobs)


def encode_manifest(manifest: Manifest) -> bytes:
    """Write the statement canonically: the payload to be signed.

    Raises:
        JsonError: a value is outside what strict JSON allows.
    """
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [
            {"name": name, "digest": {"sha256": digest.hex}} for name, digest in subjects(manifest)
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": _predicate(manifest),
    }
    return encode_json(statement)


_RENAMED: Final = {"size_bytes": "size", "stored_bytes": "stored", "plain_bytes": "plain"}
_OPEN: Final = ("profile", "extensions")


def _predicate(manifest: Manifest) -> dict[str, Any]:
    return {name: _plain(name, getattr(manifest, name)) for name in manifest.__slots__}


def _plain(name: str, value: Any) -> Any:
    """JSON values of a field: the members of the format are the fields of these classes."""
    if name in _OPEN or value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Digest):
        return str(value)
    if isinstance(value, ModelName):
        return value.short()
    if isinstance(value, tuple):
        return [_plain("", item) for item in value]
    return {
        _RENAMED.get(slot, slot): _plain(slot, getattr(value, slot)) for slot in value.__slots__
    }
