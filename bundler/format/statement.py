"""Read the signed statement strictly: every member known, every reference closed. Pure.

`format` is read first: a bundle that needs a newer reader is refused as such, not as malformed.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, Final, cast

from bundler.format.closure import check_closure, refuse_reserved
from bundler.format.digest import Digest
from bundler.format.errors import ManifestError, ModelNameError, UnsupportedError
from bundler.format.limits import (
    FORMAT_VERSION,
    MAX_ARTIFACT_BYTES,
    MAX_ARTIFACTS,
    MAX_BLOB_BYTES,
    MAX_BLOBS,
    MAX_INDEX_BYTES,
    MAX_INTEGER,
    MAX_MODELS,
    MAX_NOTES_BYTES,
    MAX_PAYLOAD_BYTES,
    MAX_SEGMENT_BYTES,
    MAX_SEGMENTS,
    MAX_STRING_BYTES,
    MAX_VARIANTS,
)
from bundler.format.manifest import (
    PREDICATE_TYPE,
    ROLES,
    STATEMENT_TYPE,
    Artifact,
    BlobRef,
    Builder,
    BundleInfo,
    Encoding,
    Encryption,
    Evidence,
    FormatInfo,
    GgufFacts,
    Kind,
    Layer,
    Manifest,
    Model,
    Parity,
    Recipient,
    Requires,
    Role,
    Rollback,
    Segment,
    Source,
    Totals,
    Variant,
    subjects,
)
from bundler.format.name import ModelName
from bundler.format.strict import Reader, describe, parse_json

CHANNEL_PATTERN: Final = r"[a-z0-9][a-z0-9.-]{0,31}"
LOGICAL_NAME_PATTERN: Final = r"[a-z0-9][a-z0-9._+-]{0,127}"
SITE_PATTERN: Final = r"\*|[a-z0-9][a-z0-9._+-]{0,127}"
_WORD_PATTERN: Final = r"[A-Za-z0-9][A-Za-z0-9._+/-]{0,127}"
_UUID_PATTERN: Final = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
TIME_PATTERN: Final = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
_TIME_FORMAT: Final = "%Y-%m-%dT%H:%M:%SZ"
_APPLIANCE_PATTERN: Final = r"\d{1,5}\.\d{1,5}\.\d{1,5}"
_ENGINE_PATTERN: Final = r"b\d{1,9}"
_PREDICATE_FAMILY: Final = PREDICATE_TYPE.removesuffix("1")
_MAX_LIST: Final = 1_024
_KNOWN_CRITICAL: Final[frozenset[str]] = frozenset()
_PREFER_MOST: Final = 1_000


def parse_time(text: str) -> datetime:
    """A time of the statement as an aware value.

    Raises:
        ValueError: not ``YYYY-MM-DDThh:mm:ssZ``, or no such time.
    """
    if not re.fullmatch(TIME_PATTERN, text, re.ASCII):
        msg = f"time: expected YYYY-MM-DDThh:mm:ssZ, found {text[:40]!r}"
        raise ValueError(msg)
    return datetime.strptime(text, _TIME_FORMAT).replace(tzinfo=UTC)


def format_time(moment: datetime) -> str:
    """An aware time as the statement writes it; fractions of a second are dropped."""
    return moment.astimezone(UTC).strftime(_TIME_FORMAT)


def parse_manifest(payload: bytes) -> Manifest:
    """Read the payload of an envelope. Only `envelope.verify` makes the result trusted.

    Raises:
        JsonError: not strict JSON, or over 4 MiB.
        UnsupportedError: a newer reader is needed, or a reserved feature is used.
        ManifestError: a member is missing, unknown, of the wrong type, out of range, or
            refers to something that is not there.
    """
    members = parse_json(payload, max_bytes=MAX_PAYLOAD_BYTES)
    with Reader(members, "") as reader:
        reader.choice("_type", (STATEMENT_TYPE,))
        _check_predicate_type(reader)
        manifest = reader.object("predicate", _read_predicate)
        named = reader.objects("subject", _read_subject, at_most=MAX_BLOBS)
    check_closure(manifest)
    if named != subjects(manifest):
        raise ManifestError(
            at="subject", expected="one subject per artifact, in order", found=describe(list(named))
        )
    refuse_reserved(manifest)
    return manifest


def _check_predicate_type(reader: Reader) -> None:
    found = reader.text("predicateType", max_bytes=256)
    if found == PREDICATE_TYPE:
        return
    if found.startswith(_PREDICATE_FAMILY):
        raise UnsupportedError(
            f"bundle format: expected {PREDICATE_TYPE}, found {describe(found)}",
            hint="update satchel on this machine first",
        )
    reader.refuse("predicateType", PREDICATE_TYPE, found)


def _read_subject(reader: Reader) -> tuple[str, Digest]:
    name = reader.text("name", max_bytes=512)
    raw = reader.object("digest", lambda inner: inner.text("sha256", pattern="[0-9a-f]{64}"))
    return name, Digest(raw)


def _read_predicate(reader: Reader) -> Manifest:
    return Manifest(
        format=reader.object("format", _read_format),
        bundle=reader.object("bundle", _read_bundle),
        requires=reader.object("requires", _read_requires),
        models=reader.objects("models", _read_model, at_most=MAX_MODELS),
        artifacts=reader.objects("artifacts", _read_artifact, at_most=MAX_ARTIFACTS),
        blobs=reader.objects("blobs", _read_blob, at_most=MAX_BLOBS),
        totals=reader.object("totals", _read_totals),
        encryption=reader.optional(
            "encryption", lambda name: reader.object(name, _read_encryption)
        ),
        rollback=reader.optional("rollback", lambda name: reader.object(name, _read_rollback)),
        builder=reader.object("builder", _read_builder),
        extensions=reader.anything("extensions"),
    )


def _read_format(reader: Reader) -> FormatInfo:
    version = reader.integer("version", at_least=1)
    min_reader = reader.integer("min_reader", at_least=1)
    if min_reader > FORMAT_VERSION:
        raise UnsupportedError(
            f"bundle format: expected a reader of version {min_reader}, this one knows "
            f"{FORMAT_VERSION}",
            hint="update satchel on this machine first",
        )
    critical = reader.items("critical", Reader.text, at_most=_MAX_LIST)
    unknown = sorted(set(critical) - _KNOWN_CRITICAL)
    if unknown:
        raise UnsupportedError(
            f"bundle format: critical feature {describe(unknown[0])} is not known here",
            hint="update satchel on this machine first",
        )
    return FormatInfo(version=version, min_reader=min_reader, critical=critical)


def _read_bundle(reader: Reader) -> BundleInfo:
    return BundleInfo(
        id=reader.text("id", pattern=_UUID_PATTERN),
        channel=reader.text("channel", pattern=CHANNEL_PATTERN),
        seq=reader.integer("seq", at_least=1),
        kind=cast("Kind", reader.choice("kind", ("full", "delta", "repair", "trust"))),
        issued=_time(reader, "issued"),
        refresh_by=reader.optional("refresh_by", lambda name: _time(reader, name)),
        expires=reader.optional("expires", lambda name: _time(reader, name)),
        audience=reader.items("audience", _site, at_most=_MAX_LIST, at_least=1),
        supersedes=reader.items("supersedes", _sequence, at_most=_MAX_LIST),
        notes=reader.text("notes", max_bytes=MAX_NOTES_BYTES, empty=True),
    )


def _time(reader: Reader, name: str) -> str:
    text = reader.text(name, pattern=TIME_PATTERN)
    try:
        parse_time(text)
    except ValueError:
        reader.refuse(name, "a time that exists", text)
    return text


def _site(reader: Reader, name: str) -> str:
    return reader.text(name, pattern=SITE_PATTERN)


def _sequence(reader: Reader, name: str) -> int:
    return reader.integer(name, at_least=1)


def _read_requires(reader: Reader) -> Requires:
    return Requires(
        appliance=reader.optional(
            "appliance", lambda name: reader.text(name, pattern=_APPLIANCE_PATTERN)
        ),
        engine=reader.optional("engine", lambda name: reader.text(name, pattern=_ENGINE_PATTERN)),
        root_version=reader.integer("root_version"),
        objects=reader.objects("objects", _read_object, at_most=MAX_ARTIFACTS),
    )


def _read_object(reader: Reader) -> BlobRef:
    size_bytes = reader.integer("size", at_least=1, at_most=MAX_ARTIFACT_BYTES)
    return BlobRef(digest=reader.digest("digest"), size_bytes=size_bytes)


def _read_blob(reader: Reader) -> BlobRef:
    size_bytes = reader.integer("size", at_most=MAX_BLOB_BYTES)
    return BlobRef(digest=reader.digest("digest"), size_bytes=size_bytes)


def _read_index(reader: Reader) -> BlobRef:
    size_bytes = reader.integer("size", at_least=1, at_most=MAX_INDEX_BYTES)
    return BlobRef(digest=reader.digest("digest"), size_bytes=size_bytes)


def _read_model(reader: Reader) -> Model:
    return Model(
        name=_model_name(reader),
        version=reader.text("version", empty=True),
        family=reader.text("family", pattern=_WORD_PATTERN),
        licences=reader.items("licences", Reader.text, at_most=_MAX_LIST),
        layers=reader.objects("layers", _read_layer, at_most=_MAX_LIST),
        variants=reader.objects("variants", _read_variant, at_most=MAX_VARIANTS, at_least=1),
        modelfile=reader.optional("modelfile", reader.digest),
        evidence=reader.object("evidence", _read_evidence),
    )


def _model_name(reader: Reader) -> ModelName:
    text = reader.text("name", max_bytes=1_024)
    try:
        name = ModelName.parse(text)
    except ModelNameError as error:
        raise ManifestError(
            at=reader.path("name"), expected="a model name", found=describe(text)
        ) from error
    if name.short() != text:
        reader.refuse("name", f"the short form {name.short()}", text)
    return name


def _read_layer(reader: Reader) -> Layer:
    role = cast("Role", reader.choice("role", ROLES))
    return Layer(role=role, digest=reader.digest("digest"))


def _read_variant(reader: Reader) -> Variant:
    return Variant(
        id=reader.text("id", pattern=LOGICAL_NAME_PATTERN),
        quantization=reader.text("quantization", pattern=_WORD_PATTERN),
        artifact=reader.digest("artifact"),
        prefer=reader.integer("prefer", at_most=_PREFER_MOST),
        profile=_profile(reader),
        projector=reader.optional("projector", reader.digest),
        adapters=reader.items("adapters", Reader.digest, at_most=_MAX_LIST),
        draft=reader.optional("draft", reader.digest),
        acceptance=reader.optional("acceptance", reader.digest),
    )


def _profile(reader: Reader) -> dict[str, Any]:
    profile = reader.anything("profile")
    for name, value in profile.items():
        values = value if isinstance(value, list) else [value]
        if any(isinstance(item, dict | list) for item in values):
            reader.refuse("profile", f"plain values, {name[:40]!a} among them", value)
    return profile


def _read_evidence(reader: Reader) -> Evidence:
    return Evidence(
        mlbom=reader.optional("mlbom", reader.digest),
        model_card=reader.optional("model_card", reader.digest),
        oms=reader.optional("oms", reader.digest),
        slsa=reader.items("slsa", Reader.digest, at_most=_MAX_LIST),
        source=reader.optional("source", lambda name: reader.object(name, _read_source)),
    )


def _read_source(reader: Reader) -> Source:
    return Source(
        uri=reader.text("uri", max_bytes=2_048),
        revision=reader.text("revision", empty=True),
        digest=reader.optional("digest", reader.digest),
    )


def _read_artifact(reader: Reader) -> Artifact:
    return Artifact(
        digest=reader.digest("digest"),
        size_bytes=reader.integer("size", at_least=1, at_most=MAX_ARTIFACT_BYTES),
        media=reader.text("media", pattern=_WORD_PATTERN),
        encoding=cast("Encoding", reader.choice("encoding", ("identity", "zstd-frames", "delta"))),
        index=reader.object("index", _read_index),
        gguf=reader.optional("gguf", lambda name: reader.object(name, _read_gguf)),
        segments=reader.objects("segments", _read_segment, at_most=MAX_SEGMENTS),
        parity=reader.optional("parity", lambda name: reader.object(name, _read_parity)),
    )


def _read_gguf(reader: Reader) -> GgufFacts:
    return GgufFacts(
        tensors=reader.integer("tensors"),
        metadata_digest=reader.digest("metadata_digest"),
        architecture=reader.text("architecture", pattern=_WORD_PATTERN),
    )


def _read_segment(reader: Reader) -> Segment:
    return Segment(
        digest=reader.digest("digest"),
        size_bytes=reader.integer("size", at_least=1, at_most=MAX_SEGMENT_BYTES),
        volume=reader.integer("volume", at_least=1, at_most=MAX_SEGMENTS),
    )


def _read_parity(reader: Reader) -> Parity:
    return Parity(
        scheme=reader.text("scheme", pattern=LOGICAL_NAME_PATTERN),
        group=reader.integer("group", at_least=1, at_most=_MAX_LIST),
        index=reader.object("index", _read_index),
        segments=reader.objects("segments", _read_segment, at_most=MAX_SEGMENTS),
    )


def _read_totals(reader: Reader) -> Totals:
    return Totals(
        stored_bytes=reader.integer("stored", at_most=MAX_INTEGER),
        plain_bytes=reader.integer("plain", at_most=MAX_INTEGER),
    )


def _read_encryption(reader: Reader) -> Encryption:
    return Encryption(
        scheme=reader.text("scheme", pattern=LOGICAL_NAME_PATTERN),
        recipients=reader.objects("recipients", _read_recipient, at_most=_MAX_LIST),
    )


def _read_recipient(reader: Reader) -> Recipient:
    return Recipient(
        site=_site(reader, "site"),
        kem=reader.text("kem", pattern=LOGICAL_NAME_PATTERN),
        enc=reader.text("enc", max_bytes=MAX_STRING_BYTES),
        wrapped=reader.text("wrapped", max_bytes=MAX_STRING_BYTES),
    )


def _read_rollback(reader: Reader) -> Rollback:
    return Rollback(
        from_seq=reader.integer("from_seq", at_least=1),
        to_seq=reader.integer("to_seq", at_least=1),
    )


def _read_builder(reader: Reader) -> Builder:
    return Builder(
        tool=reader.text("tool"),
        reproducible=reader.boolean("reproducible"),
        recipe=reader.digest("recipe"),
    )
