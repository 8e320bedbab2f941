"""Every bound of signed documents: what is just beyond it is refused there, and by that rule.

Deleting any one of these checks fails a test of this file (`tests/mutants.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from bundler.format import envelope
from bundler.format.carried import EXTENSION, read_images
from bundler.format.chain import parse_root_envelope
from bundler.format.chunks import ChunkDecoder
from bundler.format.closure import check_closure
from bundler.format.digest import Digest
from bundler.format.envelope import KeyRole
from bundler.format.errors import (
    ChunkIndexError,
    DamagedError,
    EnvelopeError,
    FieldError,
    JsonError,
    LayoutError,
    ManifestError,
    ModelNameError,
    RootError,
    ThresholdError,
    UntrustedKeyError,
)
from bundler.format.index import (
    ChunkRecord,
    Codec,
    Filter,
    encode_index,
    parse_index,
)
from bundler.format.limits import (
    MAX_ARTIFACT_BYTES,
    MAX_CHANNELS,
    MAX_INDEX_BYTES,
    MAX_INTEGER,
    MAX_REVOKED,
    MAX_ROOT_BYTES,
    MAX_ROOT_ENVELOPE_BYTES,
    MAX_ROOT_KEYS,
    MAX_SEGMENT_BYTES,
    MAX_SEGMENTS,
    MAX_STRING_BYTES,
)
from bundler.format.name import ModelName
from bundler.format.root import encode_root, parse_root
from bundler.format.statement import _read_predicate, parse_manifest, parse_time
from bundler.format.strict import Reader
from bundler.format.volume import find_bundles
from tests.fakes.forge import SECOND, STRANGER, TRUSTED, forge, trusting
from tests.fakes.roots import ROOT_A, make_root, signed_payload

HEX = "a" * 64
DIGEST = f"sha256:{HEX}"
OBJECT = {"digest": DIGEST, "size": 1}
SEGMENT = {"digest": DIGEST, "size": 1, "volume": 1}
PARITY = {"scheme": "pq-2", "group": 64, "index": OBJECT, "segments": [SEGMENT]}
ENCRYPTION = {
    "scheme": "aes-256-gcm-chunk",
    "recipients": [{"site": "a", "kem": "hpke-p256", "enc": "x", "wrapped": "x"}],
}
ROLLBACK = {"from_seq": 2, "to_seq": 1}


def predicate() -> dict[str, Any]:
    """A statement's predicate in which every optional member is there."""
    honest = forge(layers=[("license", b"MIT")])
    found: dict[str, Any] = json.loads(honest.payload())["predicate"]
    found.update(encryption=json.loads(json.dumps(ENCRYPTION)), rollback=dict(ROLLBACK))
    found["artifacts"][0]["parity"] = json.loads(json.dumps(PARITY))
    found["requires"]["objects"] = [dict(OBJECT)]
    return found


def put(members: Any, path: str, value: object) -> None:
    """Set a member by its path, as refusals name it; ``=N`` makes N copies of the first item."""
    *above, last = path.replace("]", "").replace("[", ".").split(".")
    for name in above:
        members = members[int(name) if name.isdigit() else name]
    if isinstance(value, str) and value.startswith("="):
        value = [members[last][0]] * int(value[1:])
    members[last] = value


ARTIFACT = "artifacts[0]"
MODEL = "models[0]"
VARIANT = "models[0].variants[0]"


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("models", "=1025", "a list"),
        ("blobs", "=65537", "a list"),
        ("artifacts", "=4097", "a list"),
        ("bundle.audience", "=1025", "a list"),
        ("bundle.supersedes", [1] * 1025, "a list"),
        ("bundle.seq", 0, "an integer from 1"),
        ("bundle.issued", "2026-13-01T00:00:00Z", "a time"),
        ("bundle.issued", "2026-1-01T00:00:00Z", "text of the form"),
        ("bundle.refresh_by", "soon", "text of the form"),
        ("bundle.expires", "soon", "text of the form"),
        ("bundle.notes", "n" * 4097, "bytes of text"),
        ("requires.objects", "=4097", "a list"),
        ("requires.objects[0].size", MAX_ARTIFACT_BYTES + 1, "an integer"),
        ("requires.objects[0].size", 0, "an integer"),
        (f"{ARTIFACT}.index.size", MAX_INDEX_BYTES + 1, "an integer"),
        (f"{ARTIFACT}.index.size", 0, "an integer"),
        (f"{ARTIFACT}.size", MAX_ARTIFACT_BYTES + 1, "an integer"),
        (f"{ARTIFACT}.media", "not a type", "text of the form"),
        (f"{ARTIFACT}.gguf.architecture", "a b", "text of the form"),
        (f"{ARTIFACT}.segments", "=65537", "a list"),
        (f"{ARTIFACT}.segments[0].size", 0, "an integer"),
        (f"{ARTIFACT}.segments[0].size", MAX_SEGMENT_BYTES + 1, "an integer"),
        (f"{ARTIFACT}.segments[0].volume", 0, "an integer"),
        (f"{ARTIFACT}.segments[0].volume", MAX_SEGMENTS + 1, "an integer"),
        (f"{ARTIFACT}.parity.scheme", "P Q", "text of the form"),
        (f"{ARTIFACT}.parity.group", 0, "an integer"),
        (f"{ARTIFACT}.parity.group", 1025, "an integer"),
        (f"{ARTIFACT}.parity.segments", "=65537", "a list"),
        (f"{MODEL}.name", "n" * 1025, "bytes of text"),
        (f"{MODEL}.family", "a b", "text of the form"),
        (f"{MODEL}.licences", ["x"] * 1025, "a list"),
        (f"{MODEL}.layers", "=1025", "a list"),
        (f"{MODEL}.variants", "=65", "a list"),
        (f"{MODEL}.variants", [], "a list"),
        (f"{MODEL}.evidence.slsa", [DIGEST] * 1025, "a list"),
        (f"{VARIANT}.id", "A", "text of the form"),
        (f"{VARIANT}.quantization", "a b", "text of the form"),
        (f"{VARIANT}.prefer", 1001, "an integer"),
        (f"{VARIANT}.adapters", [DIGEST] * 1025, "a list"),
        ("totals.stored", MAX_INTEGER + 1, "an integer"),
        ("totals.plain", MAX_INTEGER + 1, "an integer"),
        ("encryption.scheme", "A B", "text of the form"),
        ("encryption.recipients", "=1025", "a list"),
        ("encryption.recipients[0].kem", "A B", "text of the form"),
        ("encryption.recipients[0].enc", "x" * (MAX_STRING_BYTES + 1), "bytes of text"),
        ("encryption.recipients[0].wrapped", "x" * (MAX_STRING_BYTES + 1), "bytes of text"),
        ("rollback.from_seq", 0, "an integer"),
        ("rollback.to_seq", 0, "an integer"),
        ("format.version", 0, "an integer"),
        ("format.min_reader", 0, "an integer"),
        ("format.critical", ["x"] * 1025, "a list"),
    ],
)
def test_a_field_of_the_statement_ends_at_its_bound(
    path: str, value: object, expected: str
) -> None:
    members = predicate()
    with Reader(members, "predicate") as reader:
        _read_predicate(reader)  # as it is, it is read
    put(members, path, value)
    with pytest.raises(FieldError) as caught, Reader(members, "predicate") as reader:
        _read_predicate(reader)
    assert caught.value.at == f"predicate.{path}"
    assert caught.value.expected.startswith(expected) or expected in caught.value.expected


@pytest.mark.parametrize(
    ("edit", "at"),
    [
        (lambda s: s.update(predicateType="x" * 257), "predicateType"),
        (lambda s: s["subject"][0].update(name="n" * 513), "subject[0].name"),
        (lambda s: s["subject"][0]["digest"].update(sha256="A" * 64), "subject[0].digest.sha256"),
    ],
)
def test_members_around_the_predicate_end_at_their_bounds(
    edit: Callable[[dict[str, Any]], object], at: str
) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_manifest(forge().edited(edit).payload())
    assert caught.value.at == at
    assert "text" in caught.value.expected


def test_a_payload_is_at_most_four_mebibytes() -> None:
    with pytest.raises(JsonError, match="at most 4194304 bytes"):
        parse_manifest(b" " * ((4 << 20) + 1))


def test_a_time_without_its_zeros_is_none() -> None:
    with pytest.raises(ValueError, match="expected YYYY"):
        parse_time("2026-1-2T00:00:00Z")


ROLE = "satchel.roles.bundle:prod"
KEY_ID = TRUSTED.public_key.key_id


def root_members() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(encode_root(make_root()))
    return found


def put_root(members: dict[str, Any], path: str, value: object) -> None:
    *above, last = path.split(".") if ":" not in path else path.replace(":prod", "|prod").split(".")
    inner: Any = members
    for name in above:
        inner = inner[name.replace("|", ":")]
    inner[last.replace("|", ":")] = value


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("keys", {str(one): {} for one in range(MAX_ROOT_KEYS + 1)}, "1 to 64 keys"),
        ("keys", {}, "1 to 64 keys"),
        ("roles.root.keyids", [f"{one:064x}" for one in range(65)], "a list"),
        ("roles.root.keyids", [], "a list"),
        ("roles.root.keyids", ["X" * 64], "text of the form"),
        ("roles.root.keyids", ["0" * 64], "keys of this root"),
        ("roles.root.threshold", 0, "an integer"),
        ("roles.targets.threshold", 0, "an integer"),
        ("roles.targets.threshold", 2, "an integer"),
        (f"{ROLE}.models", ["m" * 257], "bytes of text"),
        (f"{ROLE}.models", ["m"] * 257, "a list"),
        (f"{ROLE}.models", [], "a list"),
        ("satchel.version", 0, "an integer"),
        ("satchel.version", 2, "an integer"),
        ("satchel.issued", "2026-1-20T00:00:00Z", "text of the form"),
        ("expires", "soon", "text of the form"),
        ("satchel.revoked_digests", [DIGEST] * (MAX_REVOKED + 1), "a list"),
        ("satchel.revoked_keys", [HEX] * (MAX_REVOKED + 1), "a list"),
        ("satchel.revoked_keys", ["x"], "text of the form"),
        ("satchel.roles", {str(one): {} for one in range(MAX_CHANNELS + 1)}, "at most 256 roles"),
        ("satchel.min_seq", {str(one): 1 for one in range(MAX_CHANNELS + 1)}, "at most 256"),
        ("satchel.min_seq", {"prod": 0}, "an integer"),
        ("version", 0, "an integer"),
        ("version", 1025, "an integer"),
        ("spec_version", "2.0", "text of the form"),
    ],
)
def test_a_field_of_a_root_ends_at_its_bound(path: str, value: object, expected: str) -> None:
    members = root_members()
    put_root(members, path, value)
    with pytest.raises(RootError) as caught:
        parse_root(json.dumps(members).encode())
    assert caught.value.at.split("[")[0] in (path, f"{path}.prod")
    assert caught.value.expected.startswith(expected) or expected in caught.value.expected


def test_a_key_of_a_root_is_under_its_own_id() -> None:
    members = root_members()
    members["keys"]["0" * 64] = members["keys"].pop(KEY_ID)
    with pytest.raises(RootError, match="own id"):
        parse_root(json.dumps(members).encode())


def test_a_root_is_at_most_512_kibibytes() -> None:
    with pytest.raises(JsonError, match="at most 524288 bytes"):
        parse_root(b" " * (MAX_ROOT_BYTES + 1))
    with pytest.raises(EnvelopeError, match="at most"):
        parse_root_envelope(signed_payload(b" " * (MAX_ROOT_BYTES + 1), ROOT_A))


def test_an_envelope_is_three_levels_deep() -> None:
    deep = b'{"payload":"","payloadType":"x","signatures":[[{"a":1}]]}'
    with pytest.raises(JsonError, match="at most 3 levels"):
        envelope.parse(deep)


def test_no_statement_is_parsed_before_the_role_that_lacks_least_is_satisfied() -> None:
    """Every signature is good, no role is satisfied, and the payload is not even JSON."""
    junk = envelope.sign(b"not JSON", [SECOND])
    roles = {"prod": KeyRole(keys=trusting(TRUSTED, SECOND), threshold=2)}
    with pytest.raises(ThresholdError):
        envelope.verify_channel(junk, roles)
    with pytest.raises(UntrustedKeyError):
        envelope.verify_channel(envelope.sign(b"not JSON", [STRANGER]), roles)


def test_texts_of_a_carried_image_are_texts() -> None:
    honest = {"model": "demo", "variant": "f32", "manifest": "{}", "config": "{}"}
    assert len(read_images({EXTENSION: [honest]})) == 1
    with pytest.raises(ManifestError, match="a text"):
        read_images({EXTENSION: [{**honest, "config": 1}]})
    with pytest.raises(ManifestError, match="a list"):
        read_images({EXTENSION: [honest] * 1025})


def test_a_statement_without_models_and_a_model_without_its_files_are_refused() -> None:
    manifest = forge(layers=[("license", b"MIT")]).manifest
    empty = replace(manifest, models=(), artifacts=(), blobs=())
    with pytest.raises(ManifestError, match="at least one model"):
        check_closure(empty)
    with pytest.raises(ManifestError, match="an entry for"):
        check_closure(replace(manifest, blobs=()))


def test_a_choice_is_one_of_the_texts() -> None:
    with pytest.raises(ManifestError, match="one of a"), Reader({"x": ["a"]}, "") as reader:
        reader.choice("x", ("a",))


def test_a_name_has_no_digest() -> None:
    with pytest.raises(ModelNameError, match="no digest"):
        ModelName.parse("demo@sha256")


HONEST = forge(encoding="zstd-frames", segment_bytes=10_000)
INDEX = parse_index(HONEST.files[HONEST.manifest.artifacts[0].index.digest.hex])
RAW = parse_index((plain := forge()).files[plain.manifest.artifacts[0].index.digest.hex])
COPY = replace(
    RAW.records[0],
    codec=Codec.COPY,
    stored_len=0,
    segment=0,
    seg_off=0,
    stored_digest=bytes(32),
)


def with_record(record: ChunkRecord) -> bytes:
    return encode_index(replace(RAW, records=(record, *RAW.records[1:])))


def test_an_index_ends_at_its_bounds() -> None:
    with pytest.raises(ChunkIndexError, match="at most 268435456"):
        parse_index(bytes(MAX_INDEX_BYTES + 1))
    twice = replace(INDEX, segments=(INDEX.segments[0], *INDEX.segments))
    with pytest.raises(ChunkIndexError, match="each segment once"):
        parse_index(encode_index(twice))
    beyond = replace(RAW, file_size_bytes=RAW.records[0].plain_len - 1)
    with pytest.raises(ChunkIndexError, match=r"records\[0\].plain_len.*an end at"):
        parse_index(encode_index(replace(beyond, records=(RAW.records[0], RAW.records[1]))))


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (replace(COPY, stored_len=1), "no stored bytes"),
        (replace(COPY, segment=1), "no stored bytes"),
        (replace(COPY, seg_off=1), "no stored bytes"),
        (replace(COPY, filter=Filter.PLANES_2), "no stored bytes"),
        (replace(COPY, stored_digest=b"x" * 32), "no stored bytes"),
        (replace(RAW.records[0], source=1), "0 without a local object"),
        (replace(RAW.records[0], source_off=1), "0 without a local object"),
        (replace(RAW.records[0], filter=Filter.PLANES_2), "0 with codec 0"),
        (replace(RAW.records[0], plain_digest=b"x" * 32), "the stored digest with codec 0"),
        (replace(RAW.records[0], stored_len=1), str(RAW.records[0].plain_len)),
    ],
)
def test_a_record_has_what_its_codec_asks_for(record: ChunkRecord, expected: str) -> None:
    with pytest.raises(ChunkIndexError, match=expected):
        parse_index(with_record(record))


def test_a_frame_that_says_its_size_and_gives_another_is_damaged() -> None:
    """The content size is right, one block says less: nothing but the count finds it out."""
    plain = b"abcdefgh" * 4
    for length in (len(plain) - 1, len(plain) + 1):
        body = plain[:length] if length < len(plain) else plain + b"x"
        # Magic, descriptor (one byte of content size, single segment), then one last raw block.
        frame = b"\x28\xb5\x2f\xfd\x20" + bytes([len(plain)])
        frame += (1 | len(body) << 3).to_bytes(3, "little") + body
        record = replace(
            RAW.records[0],
            codec=Codec.ZSTD,
            filter=Filter.NONE,
            plain_off=0,
            plain_len=len(plain),
            stored_len=len(frame),
            stored_digest=Digest.of(frame).raw,
            plain_digest=Digest.of(plain).raw,
        )
        with pytest.raises(DamagedError):
            ChunkDecoder(1 << 16).decode(record, frame)


def test_a_root_on_a_medium_is_at_most_two_mebibytes(tmp_path: Any) -> None:
    directory = forge().write(tmp_path)
    (directory / "root").mkdir()
    (directory / "root" / "1.root.dsse.json").write_bytes(b" " * (MAX_ROOT_ENVELOPE_BYTES + 1))
    (bundle,) = find_bundles(tmp_path)
    with pytest.raises(LayoutError):
        bundle.read_root(1)
