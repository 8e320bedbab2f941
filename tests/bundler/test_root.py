"""Trust roots: what makes one count, and what python-tuf says of the same bytes."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tuf.api.dsse import SimpleEnvelope
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Root as TufRoot  # type: ignore[attr-defined]

from bundler.format import envelope
from bundler.format.chain import verify_first, verify_next, walk
from bundler.format.digest import Digest
from bundler.format.envelope import KeyRole
from bundler.format.errors import (
    BadSignatureError,
    BundleError,
    ChannelRefusedError,
    EnvelopeError,
    FormatError,
    RootChainError,
    RootError,
    ThresholdError,
    TrustError,
    UnsignedError,
    UntrustedKeyError,
)
from bundler.format.keys import SigningKey
from bundler.format.root import Root, encode_root, parse_root
from tests.fakes.forge import SECOND, STRANGER, TRUSTED, forge, trusting
from tests.fakes.roots import (
    ROOT_A,
    ROOT_B,
    ROOT_C,
    ROOT_D,
    make_root,
    role,
    signed,
    signed_payload,
)

FIRST = verify_first(signed(make_root()))
DIGEST = Digest.of(b"bundle")
Edit = Callable[[dict[str, Any]], object]


def edited(edit: Edit, root: Root | None = None) -> bytes:
    members = json.loads(encode_root(root or make_root()))
    edit(members)
    return json.dumps(members).encode()


@pytest.mark.parametrize("threshold", [0, -1, True, 4, 10**9, "2", None, 2.0])
def test_a_threshold_that_makes_no_sense_is_refused(threshold: object) -> None:
    def lie(members: dict[str, Any]) -> None:
        members["roles"]["root"]["threshold"] = threshold

    with pytest.raises(FormatError):
        parse_root(edited(lie))


TRUSTED_ID = TRUSTED.public_key.key_id


def _same_key_under_two_ids(members: dict[str, Any]) -> None:
    other = "0" * 64
    members["keys"][other] = members["keys"][TRUSTED_ID]
    members["satchel"]["roles"]["bundle:prod"]["keyids"].insert(0, other)


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m.update(_type="targets"),
        lambda m: m.update(spec_version="2.0.0"),
        lambda m: m.update(version=0),
        lambda m: m.update(version=True),
        lambda m: m.update(version=1025),
        lambda m: m.update(expires="2036-02-30T00:00:00Z"),
        lambda m: m.update(unknown=1),
        lambda m: m.pop("satchel"),
        lambda m: m["satchel"].update(unknown=1),
        lambda m: m["satchel"].update(version=2),
        lambda m: m["satchel"]["roles"].update({"bundle:../x": m["roles"]["root"]}),
        lambda m: m["satchel"]["roles"].update({"emperor": m["roles"]["root"]}),
        lambda m: m["satchel"]["roles"]["bundle:prod"].update(models=[]),
        lambda m: m["satchel"]["roles"]["bundle:prod"].update(models=["a*b"]),
        lambda m: m["satchel"]["roles"]["bundle:prod"].pop("models"),
        lambda m: m["satchel"]["roles"]["bundle:prod"].update(keyids=[]),
        lambda m: m["satchel"]["roles"]["bundle:prod"].update(keyids=["0" * 64]),
        lambda m: m["satchel"]["roles"]["bundle:prod"]["keyids"].reverse(),
        lambda m: m["satchel"]["roles"]["bundle:prod"].update(keyids=[TRUSTED_ID, TRUSTED_ID]),
        lambda m: m["satchel"].update(min_seq={"prod": 0}),
        lambda m: m["satchel"].update(min_seq={"PROD": 1}),
        lambda m: m["satchel"].update(revoked_digests=["sha256:1"]),
        lambda m: m["satchel"].update(revoked_keys=[TRUSTED_ID]),
        lambda m: m["satchel"].update(revoked_keys=["x"]),
        lambda m: m["satchel"]["policy"].update(expired="brick"),
        lambda m: m["roles"].pop("timestamp"),
        lambda m: m["roles"]["targets"].update(keyids=[TRUSTED_ID]),
        lambda m: m["roles"].update(mirror={"keyids": [], "threshold": 1}),
        lambda m: m.update(keys={}),
        lambda m: m["keys"][TRUSTED_ID].update(scheme="rsassa-pss-sha256"),
        lambda m: m["keys"][TRUSTED_ID]["keyval"].update(public="00"),
        lambda m: m["keys"][TRUSTED_ID]["keyval"].update(public="00" * 32),
        lambda m: m["satchel"]["roles"].pop("bundle:prod"),  # its keys are left over
        _same_key_under_two_ids,
    ],
)
def test_what_is_no_root_is_refused(edit: Edit) -> None:
    with pytest.raises(RootError):
        parse_root(edited(edit))


def test_a_root_that_nobody_or_too_few_signed_is_refused() -> None:
    with pytest.raises(UnsignedError):
        verify_first(signed_payload(encode_root(make_root())))
    with pytest.raises(ThresholdError):
        verify_first(signed(make_root(), ROOT_A))
    with pytest.raises(ThresholdError):
        verify_first(signed(make_root(), ROOT_A, STRANGER))
    with pytest.raises(UntrustedKeyError):
        verify_first(signed(make_root(), STRANGER))


def test_one_root_key_under_two_ids_counts_once() -> None:
    members = json.loads(signed(make_root(), ROOT_A))
    again = dict(members["signatures"][0], keyid=ROOT_B.public_key.key_id)
    members["signatures"].append(again)
    with pytest.raises(TrustError):
        verify_first(json.dumps(members).encode())


def test_a_statement_is_no_root_and_a_root_no_statement() -> None:
    with pytest.raises(EnvelopeError):
        verify_first(forge().envelope())
    with pytest.raises(EnvelopeError):
        envelope.verify(signed(make_root()), keys=trusting(ROOT_A, ROOT_B), threshold=1)


def test_another_root_than_the_pinned_one_is_refused() -> None:
    with pytest.raises(RootChainError):
        verify_first(signed(make_root()), digest=DIGEST)


def test_a_successor_needs_the_threshold_of_the_old_and_of_the_new() -> None:
    new = make_root(version=2, top=(ROOT_C, ROOT_D), threshold=2)
    for keys in [(ROOT_C, ROOT_D), (ROOT_A, ROOT_C), (ROOT_A, ROOT_B), (ROOT_A, ROOT_B, ROOT_C)]:
        with pytest.raises(TrustError):
            verify_next(FIRST, signed(new, *keys))
    found = verify_next(FIRST, signed(new, ROOT_A, ROOT_C, ROOT_D))
    assert found.root == new


@pytest.mark.parametrize("version", [1, 3, 1024])
def test_a_successor_has_exactly_the_next_version(version: int) -> None:
    with pytest.raises(RootChainError, match="expected version 2"):
        verify_next(FIRST, signed(make_root(version=version)))


def test_a_successor_takes_no_revocation_and_no_floor_back() -> None:
    strict = make_root(
        revoked_keys=frozenset({STRANGER.public_key.key_id}),
        revoked_digests=frozenset({DIGEST}),
        min_seq={"prod": 7},
    )
    current = verify_first(signed(strict))
    following = replace(strict, version=2)
    lenient: list[dict[str, Any]] = [
        {"revoked_keys": frozenset()},
        {"revoked_digests": frozenset()},
        {"min_seq": {}},
        {"min_seq": {"prod": 6}},
    ]
    for change in lenient:
        with pytest.raises(RootChainError):
            verify_next(current, signed(replace(following, **change)))
    assert verify_next(current, signed(following)).root == following


def test_nothing_of_a_successor_is_parsed_before_the_old_keys_vouched_for_it() -> None:
    with pytest.raises(UntrustedKeyError):
        verify_next(FIRST, signed_payload(b"not even JSON", STRANGER))


def test_a_chain_is_walked_to_its_end_and_broken_links_are_refused() -> None:
    roots = {number: signed(make_root(version=number)) for number in range(1, 6)}
    found = walk(FIRST, roots.get)
    assert [one.root.version for one in found] == [2, 3, 4, 5]
    assert walk(found[-1], roots.get) == ()
    roots[4] = signed(make_root(version=4), ROOT_A)
    with pytest.raises(ThresholdError):
        walk(FIRST, roots.get)
    del roots[3]
    assert [one.root.version for one in walk(FIRST, roots.get)] == [2]


def test_a_bundle_needs_the_role_of_its_own_channel() -> None:
    bundle = forge(channel="prod").signed_by(SECOND).envelope()
    other = KeyRole(keys=trusting(SECOND), threshold=1)
    with pytest.raises(ChannelRefusedError):
        envelope.verify_channel(bundle, {"beta": other})
    with pytest.raises(ChannelRefusedError):
        envelope.verify_channel(bundle, {})
    mine = KeyRole(keys=trusting(TRUSTED), threshold=1)
    with pytest.raises(TrustError):
        envelope.verify_channel(bundle, {"beta": other, "prod": mine})
    both = KeyRole(keys=trusting(TRUSTED, SECOND), threshold=2)
    with pytest.raises(ThresholdError):
        envelope.verify_channel(bundle, {"prod": both})
    with pytest.raises(BadSignatureError):
        envelope.verify_channel(bundle.replace(b'"sig":"', b'"sig":"AAAA'), {"beta": other})
    assert envelope.verify_channel(bundle, {"prod": other}).signed_by == set(trusting(SECOND))


@given(st.integers(0, 3), st.binary(min_size=1, max_size=4), st.data())
@settings(max_examples=300, deadline=None)
def test_a_damaged_root_is_refused_or_means_the_same(
    kind: int, noise: bytes, data: st.DataObject
) -> None:
    whole = encode_root(make_root())
    place = data.draw(st.integers(0, len(whole) - 1))
    changed = {
        0: whole[:place],
        1: whole[:place] + noise + whole[place:],
        2: whole[:place] + noise + whole[place + len(noise) :],
        3: whole[:place] + whole[place + 1 :],
    }[kind]
    try:
        found = parse_root(changed)
    except BundleError:
        return
    assert parse_root(encode_root(found)) == found


KEYS = (ROOT_A, ROOT_B, ROOT_C, ROOT_D)


@given(
    st.sets(st.sampled_from(range(4)), min_size=1),
    st.integers(1, 4),
    st.sets(st.sampled_from(range(4))),
)
@settings(max_examples=60, deadline=None)
def test_python_tuf_agrees_on_who_signed_enough(
    members: set[int], threshold: int, signers: set[int]
) -> None:
    top = tuple(KEYS[one] for one in sorted(members))
    root = make_root(top=top, threshold=min(threshold, len(top)))
    data = signed_payload(encode_root(root), *(KEYS[one] for one in sorted(signers)))
    assert parse_root(encode_root(root)) == root
    assert _tuf_accepts(data) == _accepts(data)
    assert _accepts(data) == (len(members & signers) >= root.root.threshold)


def _accepts(data: bytes) -> bool:
    try:
        verify_first(data)
    except TrustError:
        return False
    return True


def _tuf_accepts(data: bytes) -> bool:
    found: SimpleEnvelope[TufRoot] = SimpleEnvelope.from_bytes(data)
    root = found.get_signed()
    assert "satchel" in root.unrecognized_fields
    try:
        root.verify_delegate("root", found.pae(), found.signatures)
    except UnsignedMetadataError:
        return False
    return True


@pytest.mark.parametrize(
    ("keys", "accepted"),
    [((ROOT_A, ROOT_C, ROOT_D), True), ((ROOT_C, ROOT_D), False), ((ROOT_A, ROOT_B), False)],
)
def test_python_tuf_agrees_on_a_rotation(keys: tuple[SigningKey, ...], *, accepted: bool) -> None:
    data = signed(make_root(version=2, top=(ROOT_C, ROOT_D), threshold=2), *keys)
    old: SimpleEnvelope[TufRoot] = SimpleEnvelope.from_bytes(FIRST.data)
    new: SimpleEnvelope[TufRoot] = SimpleEnvelope.from_bytes(data)
    result = new.get_signed().get_root_verification_result(
        old.get_signed(), new.pae(), new.signatures
    )
    assert result.verified is accepted
    try:
        verify_next(FIRST, data)
    except TrustError:
        assert not accepted
    else:
        assert accepted


def test_a_role_lists_names_beginnings_or_everything() -> None:
    assert role(TRUSTED, models=["*"]).allows("demo:latest")
    assert role(TRUSTED, models=["demo:latest"]).allows("demo:latest")
    assert role(TRUSTED, models=["de*"]).allows("demo:latest")
    assert not role(TRUSTED, models=["demo"]).allows("demo:latest")
    assert not role(TRUSTED).allows("demo:latest")


def test_the_payload_is_canonical() -> None:
    data = envelope.parse(FIRST.data, payload_type="application/vnd.tuf+json").payload
    assert data == encode_root(FIRST.root)
    assert base64.b64encode(data).decode() in FIRST.data.decode()
