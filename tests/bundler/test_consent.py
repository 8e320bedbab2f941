"""Approvals and permits: verified first, then read, and only as what they are."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundler.format import envelope
from bundler.format.consent import (
    APPROVAL_TYPE,
    PERMIT_TYPE,
    Approval,
    Permit,
    approve,
    parse_permit,
    permit,
    verify_approval,
    verify_permit,
)
from bundler.format.digest import Digest
from bundler.format.envelope import Envelope, KeyRole, add_signatures, encode
from bundler.format.errors import (
    BundleError,
    ConsentError,
    EnvelopeError,
    OtherConsentError,
    ThresholdError,
    UnsignedError,
    UntrustedKeyError,
)
from bundler.format.keys import SigningKey
from tests.fakes.forge import STRANGER, trusting
from tests.fakes.roots import signed_payload

ALICE = SigningKey.from_seed(b"A" * 32)
BOB = SigningKey.from_seed(b"B" * 32)
APPROVAL = Approval(statement=Digest.of(b"x"), site="site-1", at="2026-11-22T00:00:00Z")
ROLE = KeyRole(keys=trusting(ALICE, BOB), threshold=2)


def test_an_approval_is_verified_before_it_is_read() -> None:
    good = approve(APPROVAL, [ALICE, BOB, STRANGER])
    found = verify_approval(good, ROLE, statement=APPROVAL.statement, site="site-1")
    assert found == set(trusting(ALICE, BOB))
    with pytest.raises(UnsignedError):
        verify_approval(approve(APPROVAL, []), ROLE, statement=APPROVAL.statement, site="site-1")
    with pytest.raises(UntrustedKeyError):
        verify_approval(
            approve(APPROVAL, [STRANGER]), ROLE, statement=APPROVAL.statement, site="site-1"
        )
    for statement, site in ((Digest.of(b"y"), "site-1"), (APPROVAL.statement, "site-2")):
        with pytest.raises(OtherConsentError):
            verify_approval(good, ROLE, statement=statement, site=site)
    with pytest.raises(EnvelopeError):
        verify_approval(
            signed_payload(b"{}", ALICE), ROLE, statement=APPROVAL.statement, site="site-1"
        )


@pytest.mark.parametrize(
    "payload",
    [
        b"{}",
        b'{"approves":"sha256:1","at":"2026-11-22T00:00:00Z","site":""}',
        b'{"approves":"sha256:%b","at":"2026-02-30T00:00:00Z","site":""}' % (b"a" * 64),
        b'{"approves":"sha256:%b","at":"2026-11-22T00:00:00Z","site":"A B"}' % (b"a" * 64),
        b'{"approves":"sha256:%b","at":"2026-11-22T00:00:00Z","site":"","x":1}' % (b"a" * 64),
    ],
)
def test_what_is_no_approval_is_refused(payload: bytes) -> None:
    empty = Envelope(payload_type=APPROVAL_TYPE, payload=payload, signatures=())
    data = encode(add_signatures(empty, [ALICE]))
    with pytest.raises(ConsentError):
        verify_approval(data, ROLE, statement=APPROVAL.statement, site="")


PERMIT = Permit(
    statement=Digest.of(b"x"),
    channel="prod",
    seq=7,
    instead_of=9,
    audience=("site-1", "site-2"),
    issued="2026-11-22T00:00:00Z",
    expires="2026-12-22T00:00:00Z",
)


def test_a_permit_needs_the_threshold_of_its_role() -> None:
    found = verify_permit(permit(PERMIT, [ALICE, BOB]), ROLE)
    assert found.permit == PERMIT
    assert found.signed_by == set(trusting(ALICE, BOB))
    with pytest.raises(ThresholdError):
        verify_permit(permit(PERMIT, [ALICE, STRANGER]), ROLE)
    with pytest.raises(EnvelopeError):
        verify_permit(approve(APPROVAL, [ALICE, BOB]), ROLE)


@given(st.binary(max_size=200))
def test_any_signed_bytes_are_a_consent_or_refused(noise: bytes) -> None:
    for kind in (APPROVAL_TYPE, PERMIT_TYPE):
        empty = Envelope(payload_type=kind, payload=noise, signatures=())
        data = encode(add_signatures(empty, [ALICE, BOB]))
        with pytest.raises(BundleError):
            verify_permit(data, ROLE)
        with pytest.raises(BundleError):
            verify_approval(data, ROLE, statement=APPROVAL.statement, site="site-1")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("permits", "sha256:1", "sha256"),
        ("channel", "A B", "text of the form"),
        ("seq", 0, "an integer"),
        ("instead_of", 0, "an integer"),
        ("audience", [], "a list"),
        ("audience", ["a"] * 1025, "a list"),
        ("audience", ["A B"], "text of the form"),
        ("issued", "2026-1-22T00:00:00Z", "text of the form"),
        ("expires", "2026-02-30T00:00:00Z", "a time"),
    ],
)
def test_a_field_of_a_permit_ends_at_its_bound(name: str, value: object, expected: str) -> None:
    members = json.loads(envelope.parse(permit(PERMIT, []), payload_type=PERMIT_TYPE).payload)
    assert parse_permit(json.dumps(members).encode()) == PERMIT
    with pytest.raises(ConsentError) as caught:
        parse_permit(json.dumps({**members, name: value}).encode())
    assert caught.value.at.split("[")[0] == name
    assert expected in caught.value.expected
