from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundler.format import envelope
from bundler.format.errors import (
    BadSignatureError,
    BundleError,
    EnvelopeError,
    JsonError,
    ThresholdError,
    UnsignedError,
    UntrustedKeyError,
)
from bundler.format.keys import KeyId, PublicKey, SigningKey
from tests.fakes.forge import SECOND, STRANGER, TRUSTED, forge, trusting

HONEST = forge()
PAYLOAD = HONEST.payload()
SIGNED = HONEST.envelope()


def changed(data: bytes, edit: Callable[[dict[str, Any]], object]) -> bytes:
    members = json.loads(data)
    edit(members)
    return json.dumps(members).encode()


def test_an_unsigned_bundle_is_refused() -> None:
    with pytest.raises(UnsignedError):
        envelope.verify(envelope.sign(PAYLOAD, []), keys=trusting(TRUSTED), threshold=1)


def test_a_bundle_signed_by_a_stranger_is_refused() -> None:
    with pytest.raises(UntrustedKeyError):
        envelope.verify(envelope.sign(PAYLOAD, [STRANGER]), keys=trusting(TRUSTED), threshold=1)


def test_a_stranger_under_a_trusted_key_id_is_refused() -> None:
    def lie(members: dict[str, Any]) -> None:
        members["signatures"][0]["keyid"] = TRUSTED.public_key.key_id

    forged = changed(envelope.sign(PAYLOAD, [STRANGER]), lie)
    with pytest.raises(BadSignatureError):
        envelope.verify(forged, keys=trusting(TRUSTED), threshold=1)


def test_a_payload_changed_after_signing_is_refused() -> None:
    def lie(members: dict[str, Any]) -> None:
        payload = base64.b64decode(members["payload"]).replace(b'"seq":1', b'"seq":2')
        members["payload"] = base64.b64encode(payload).decode()

    with pytest.raises(BadSignatureError):
        envelope.verify(changed(SIGNED, lie), keys=trusting(TRUSTED), threshold=1)


def test_a_signature_over_another_payload_type_is_refused() -> None:
    message = envelope.pae("application/vnd.tuf+json", PAYLOAD)

    def lie(members: dict[str, Any]) -> None:
        members["signatures"][0]["sig"] = base64.b64encode(TRUSTED.sign(message)).decode()

    with pytest.raises(BadSignatureError):
        envelope.verify(changed(SIGNED, lie), keys=trusting(TRUSTED), threshold=1)


@pytest.mark.parametrize("raw", [PAYLOAD, b""])
def test_a_signature_over_the_bare_payload_is_refused(raw: bytes) -> None:
    def lie(members: dict[str, Any]) -> None:
        members["signatures"][0]["sig"] = base64.b64encode(TRUSTED.sign(raw)).decode()

    with pytest.raises(BadSignatureError):
        envelope.verify(changed(SIGNED, lie), keys=trusting(TRUSTED), threshold=1)


def test_one_signature_does_not_meet_a_threshold_of_two() -> None:
    with pytest.raises(ThresholdError, match="expected 2 trusted keys, found 1"):
        envelope.verify(SIGNED, keys=trusting(TRUSTED, SECOND), threshold=2)


def test_one_key_that_signed_twice_counts_once() -> None:
    def lie(members: dict[str, Any]) -> None:
        members["signatures"] *= 2

    with pytest.raises(ThresholdError):
        envelope.verify(changed(SIGNED, lie), keys=trusting(TRUSTED, SECOND), threshold=2)


def test_one_key_under_two_key_ids_counts_once() -> None:
    def lie(members: dict[str, Any]) -> None:
        members["signatures"].append(members["signatures"][0] | {"keyid": "0" * 64})

    with pytest.raises(ThresholdError):
        envelope.verify(changed(SIGNED, lie), keys=trusting(TRUSTED, SECOND), threshold=2)


def test_one_key_trusted_under_two_key_ids_counts_once() -> None:
    keys = {KeyId("0" * 64): TRUSTED.public_key, KeyId("1" * 64): TRUSTED.public_key}
    with pytest.raises(ThresholdError):
        envelope.verify(SIGNED, keys=keys, threshold=2)


def test_a_strangers_signature_does_not_count_towards_the_threshold() -> None:
    with pytest.raises(ThresholdError):
        envelope.verify(
            envelope.sign(PAYLOAD, [TRUSTED, STRANGER]),
            keys=trusting(TRUSTED, SECOND),
            threshold=2,
        )


@pytest.mark.parametrize("threshold", [0, -1, True, False])
def test_a_threshold_below_one_is_refused(threshold: int) -> None:
    with pytest.raises(ThresholdError, match="expected an integer from 1"):
        envelope.verify(SIGNED, keys=trusting(TRUSTED), threshold=threshold)


def test_a_threshold_above_all_keys_is_never_met() -> None:
    with pytest.raises(ThresholdError):
        envelope.verify(SIGNED, keys=trusting(TRUSTED), threshold=10**9)


def test_nobody_trusted_means_nothing_accepted() -> None:
    with pytest.raises(UntrustedKeyError):
        envelope.verify(SIGNED, keys={}, threshold=1)


def test_a_signature_that_does_not_verify_does_not_spoil_the_others() -> None:
    def lie(members: dict[str, Any]) -> None:
        members["signatures"].insert(0, {"keyid": SECOND.public_key.key_id, "sig": "AAAA"})

    verified = envelope.verify(changed(SIGNED, lie), keys=trusting(TRUSTED, SECOND), threshold=1)
    assert verified.signed_by == {TRUSTED.public_key.key_id}


def test_a_wrong_key_id_is_only_a_hint() -> None:
    def edit(members: dict[str, Any]) -> None:
        members["signatures"][0]["keyid"] = "0" * 64

    verified = envelope.verify(changed(SIGNED, edit), keys=trusting(TRUSTED), threshold=1)
    assert verified.signed_by == {TRUSTED.public_key.key_id}


def test_a_signature_under_another_trusted_key_id_counts_for_its_own_key() -> None:
    def edit(members: dict[str, Any]) -> None:
        members["signatures"][0]["keyid"] = SECOND.public_key.key_id

    data = changed(envelope.sign(PAYLOAD, [TRUSTED]), edit)
    verified = envelope.verify(data, keys=trusting(TRUSTED, SECOND), threshold=1)
    assert verified.signed_by == {TRUSTED.public_key.key_id}
    with pytest.raises(BadSignatureError):
        envelope.verify(data, keys=trusting(TRUSTED, SECOND), threshold=2)


def test_nothing_in_the_payload_is_read_before_the_signature_was_accepted() -> None:
    garbage = envelope.sign(b"\xff not json", [STRANGER])
    with pytest.raises(UntrustedKeyError):
        envelope.verify(garbage, keys=trusting(TRUSTED), threshold=1)
    with pytest.raises(JsonError):
        envelope.verify(
            envelope.sign(b"\xff not json", [TRUSTED]), keys=trusting(TRUSTED), threshold=1
        )


@pytest.mark.parametrize(
    "edit",
    [
        lambda e: e.pop("payload"),
        lambda e: e.pop("payloadType"),
        lambda e: e.pop("signatures"),
        lambda e: e.update(extra=1),
        lambda e: e.update(payloadType="application/json"),
        lambda e: e.update(payload="not base64!"),
        lambda e: e.update(payload=e["payload"] + "\n"),
        lambda e: e.update(payload="QQ"),
        lambda e: e.update(payload="QR=="),
        lambda e: e.update(payload=7),
        lambda e: e.update(signatures={}),
        lambda e: e.update(signatures=[1]),
        lambda e: e["signatures"][0].update(sig="!"),
        lambda e: e["signatures"][0].update(keyid="short"),
        lambda e: e["signatures"][0].update(keyid=e["signatures"][0]["keyid"].upper()),
        lambda e: e["signatures"][0].update(alg="none"),
        lambda e: e.update(signatures=e["signatures"] * 65),
    ],
)
def test_what_is_no_envelope_is_refused(edit: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(EnvelopeError):
        envelope.verify(changed(SIGNED, edit), keys=trusting(TRUSTED), threshold=1)


def test_an_envelope_over_eight_mebibytes_is_refused() -> None:
    with pytest.raises(JsonError, match="at most"):
        envelope.parse(SIGNED + b" " * (8 << 20))


def test_a_payload_over_four_mebibytes_is_not_signed() -> None:
    with pytest.raises(EnvelopeError, match="at most"):
        envelope.sign(b"x" * ((4 << 20) + 1), [TRUSTED])


@pytest.mark.parametrize(
    ("member", "size", "at"),
    [("payload", (4 << 20) + 1, "payload"), ("sig", (8 << 10) + 1, "signatures[0].sig")],
)
def test_a_member_that_is_too_large_is_refused_before_it_is_verified(
    member: str, size: int, at: str
) -> None:
    def edit(members: dict[str, Any]) -> None:
        owner = members if member == "payload" else members["signatures"][0]
        owner[member] = base64.b64encode(bytes(size)).decode()

    with pytest.raises(EnvelopeError) as caught:
        envelope.parse(changed(SIGNED, edit))
    assert f"malformed envelope: {at}: expected at most" in str(caught.value)


def test_a_payload_of_four_mebibytes_fits_an_envelope() -> None:
    payload = b"x" * (4 << 20)
    assert envelope.parse(envelope.sign(payload, [TRUSTED])).payload == payload


def test_signatures_are_added_not_replaced() -> None:
    first = envelope.parse(SIGNED)
    both = envelope.add_signatures(first, [SECOND])
    verified = envelope.verify(envelope.encode(both), keys=trusting(TRUSTED, SECOND), threshold=2)
    assert verified.signed_by == {TRUSTED.public_key.key_id, SECOND.public_key.key_id}
    assert verified.payload == PAYLOAD
    assert envelope.add_signatures(both, [TRUSTED]) == both


def test_a_sixty_fifth_signature_is_refused() -> None:
    keys = [SigningKey.from_seed(bytes([number]) * 32) for number in range(65)]
    with pytest.raises(EnvelopeError, match="at most 64"):
        envelope.sign(PAYLOAD, keys)


def test_the_encoding_that_is_signed_is_dsses() -> None:
    # The example of the DSSE specification, protocol.md.
    assert envelope.pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_no_changed_envelope_means_something_else(data: st.DataObject) -> None:
    """Flip, drop, repeat or cut any byte: refused, or the very payload that was signed."""
    mutated = mutate(data, SIGNED)
    try:
        verified = envelope.verify(mutated, keys=trusting(TRUSTED), threshold=1)
    except BundleError:
        return
    assert verified.payload == PAYLOAD


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_a_changed_statement_is_refused_or_a_statement(data: st.DataObject) -> None:
    """A signer may sign nonsense: it is refused, and no other exception escapes."""
    signed = envelope.sign(mutate(data, PAYLOAD), [TRUSTED])
    try:
        verified = envelope.verify(signed, keys=trusting(TRUSTED), threshold=1)
    except BundleError:
        return
    assert verified.manifest.models


def mutate(data: st.DataObject, original: bytes) -> bytes:
    at = data.draw(st.integers(0, len(original) - 1))
    match data.draw(st.sampled_from(["flip", "drop", "repeat", "cut", "insert", "digit"])):
        case "flip":
            changed = bytes([original[at] ^ data.draw(st.integers(1, 255))])
            return original[:at] + changed + original[at + 1 :]
        case "drop":
            return original[:at] + original[at + 1 :]
        case "repeat":
            return original[: at + 1] + original[at:]
        case "cut":
            return original[:at]
        case "insert":
            return original[:at] + data.draw(st.binary(min_size=1, max_size=4)) + original[at:]
        case _:
            return (
                original[:at]
                + data.draw(st.sampled_from([b"0", b'"', b"}", b"["]))
                + original[at + 1 :]
            )


def test_a_verified_manifest_is_made_in_one_place_only() -> None:
    root = Path(__file__).parents[2]
    makers = [
        (path.relative_to(root), line.strip())
        for package in ("hwprobe", "bundler", "appliance", "server")
        for path in sorted((root / package).rglob("*.py"))
        for line in path.read_text().splitlines()
        if "VerifiedManifest(" in line
    ]
    assert [str(path) for path, _ in makers] == ["bundler/format/envelope.py"]


def test_a_public_key_that_is_no_point_verifies_nothing() -> None:
    assert not PublicKey(b"\xff" * 32).verify(b"\0" * 64, b"")
