"""Where a root has a role ``rollback``, an older bundle needs a permit that names it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.cli import run as satchel
from appliance.errors import ExpiredError, OlderBundleError, SequenceReuseError, WrongSiteError
from appliance.policyfile import load_policy
from bundler.cli import run
from bundler.format.consent import PERMIT_TYPE, Permit, permit, verify_permit
from bundler.format.digest import Digest
from bundler.format.envelope import Envelope, KeyRole, add_signatures, encode
from bundler.format.errors import (
    BundleError,
    ConsentError,
    OtherConsentError,
    ThresholdError,
    TrustError,
    UntrustedKeyError,
)
from bundler.format.keys import SigningKey
from bundler.format.root import Root
from tests.appliance.sites import Desk, pin, snapshot
from tests.fakes.forge import STRANGER, TRUSTED, forge, tiny_model, trusting
from tests.fakes.roots import make_root, role

ALICE = SigningKey.from_seed(b"A" * 32)
BOB = SigningKey.from_seed(b"B" * 32)
OLD = forge({"F32": tiny_model(1)}, seq=7)


def with_rollback(**others: Any) -> Root:
    keys = (*make_root().keys, ALICE.public_key, BOB.public_key)
    return make_root(
        keys=tuple(sorted(keys, key=lambda key: key.key_id)),
        roles={**make_root().roles, "rollback": role(ALICE, BOB, threshold=2)},
        **others,
    )


@pytest.fixture
def ahead(desk: Desk) -> Desk:
    """A site that has 9, under a root with a role for rollbacks."""
    pin(desk, with_rollback())
    desk.carry(forge({"F32": tiny_model(2)}, seq=9))
    return desk


def consent(**others: object) -> Permit:
    value = Permit(
        statement=Digest.of(OLD.payload()),
        channel="prod",
        seq=7,
        instead_of=9,
        audience=("*",),
        issued="2026-11-21T00:00:00Z",
        expires="2026-12-01T00:00:00Z",
    )
    return replace(value, **others)  # type: ignore[arg-type]


def carried(desk: Desk, data: bytes) -> Path:
    directory = OLD.write(desk.medium)
    (directory / "rollback.dsse.json").write_bytes(data)
    return directory


def test_a_word_of_the_operator_is_not_enough(ahead: Desk) -> None:
    directory = OLD.write(ahead.medium)
    for allowed in ("", "prod:7"):
        with pytest.raises(OlderBundleError) as caught:
            ahead.take(directory, allow_rollback=allowed)
        assert "permit" in caught.value.hint


def test_a_permit_lets_exactly_that_bundle_in_once(ahead: Desk) -> None:
    directory = carried(ahead, permit(consent(), [ALICE, BOB]))
    assert ahead.check(directory).findings == ()
    receipt = ahead.take(directory)
    assert receipt.changed
    assert "by a permit" in receipt.warnings[0]
    (model,) = ahead.store.list()
    assert model.model_path.read_bytes() == tiny_model(1)
    policy = load_policy(ahead.store.paths.trust)
    assert policy.highest("prod") == 9
    assert len(policy.permits) == 1
    with pytest.raises(OtherConsentError, match="used"):
        ahead.take(directory)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (permit(consent(), [ALICE]), ThresholdError),
        (permit(consent(), [STRANGER, TRUSTED]), UntrustedKeyError),
        (permit(consent(), []), TrustError),
        (permit(consent(statement=Digest.of(b"other")), [ALICE, BOB]), OtherConsentError),
        (permit(consent(seq=6), [ALICE, BOB]), OtherConsentError),
        (permit(consent(channel="lab"), [ALICE, BOB]), OtherConsentError),
        (permit(consent(instead_of=8), [ALICE, BOB]), OtherConsentError),
        (permit(consent(audience=("site-2",)), [ALICE, BOB]), WrongSiteError),
        (permit(consent(expires="2026-11-21T23:59:59Z"), [ALICE, BOB]), ExpiredError),
        (OLD.envelope(), BundleError),
        (b"junk", BundleError),
    ],
)
def test_a_permit_that_does_not_fit_lets_nothing_in(
    ahead: Desk, data: bytes, error: type[Exception]
) -> None:
    directory = carried(ahead, data)
    before = snapshot(ahead.store.paths.root)
    with pytest.raises(error):
        ahead.take(directory)
    assert snapshot(ahead.store.paths.root) == before


def test_a_permit_ends_when_something_newer_was_accepted(ahead: Desk) -> None:
    ahead.carry(forge({"F32": tiny_model(3)}, seq=10))
    with pytest.raises(OtherConsentError, match="instead of prod 10"):
        ahead.take(carried(ahead, permit(consent(), [ALICE, BOB])))


def test_a_permit_reaches_below_the_floor_of_a_root(desk: Desk) -> None:
    pin(desk, with_rollback(min_seq={"prod": 8}))
    with pytest.raises(OlderBundleError):
        desk.take(OLD.write(desk.medium))
    assert desk.take(carried(desk, permit(consent(instead_of=8), [ALICE, BOB]))).changed


def test_a_permit_does_not_excuse_two_contents_under_one_number(ahead: Desk) -> None:
    ahead.take(carried(ahead, permit(consent(), [ALICE, BOB])))
    other = forge({"F32": tiny_model(5)}, seq=7)
    directory = other.write(ahead.medium)
    value = consent(statement=Digest.of(other.payload()))
    (directory / "rollback.dsse.json").write_bytes(permit(value, [ALICE, BOB]))
    with pytest.raises(SequenceReuseError):
        ahead.take(directory)


def test_a_permit_beside_a_bundle_that_needs_none_is_not_read(ahead: Desk) -> None:
    directory = forge({"F32": tiny_model(4)}, seq=10).write(ahead.medium)
    (directory / "rollback.dsse.json").write_bytes(b"junk")
    assert ahead.take(directory).changed


def test_without_the_role_a_permit_means_nothing(desk: Desk) -> None:
    pin(desk, make_root())
    desk.carry(forge({"F32": tiny_model(2)}, seq=9))
    directory = carried(desk, permit(consent(), [ALICE, BOB]))
    with pytest.raises(OlderBundleError):
        desk.take(directory)
    assert desk.take(directory, allow_rollback="prod:7").changed


@pytest.mark.parametrize(
    "payload", [b"{}", b"[]", b'{"permits":1}', permit(consent(), []), b'{"seq":0}']
)
def test_what_is_no_permit_is_refused(payload: bytes) -> None:
    empty = Envelope(payload_type=PERMIT_TYPE, payload=payload, signatures=())
    data = encode(add_signatures(empty, [ALICE]))
    with pytest.raises((ConsentError, BundleError)):
        verify_permit(data, KeyRole(keys=trusting(ALICE), threshold=1))


def test_the_commands_make_and_sign_a_permit(
    ahead: Desk, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, key in (("alice", ALICE), ("bob", BOB)):
        Path(f"{name}.key").write_bytes(key.dump(None))
        Path(f"{name}.key").chmod(0o600)
    directory = str(OLD.write(ahead.medium))
    making = ["permit", directory, "--key", "alice.key", "--instead-of", "9", "--site", "*"]
    assert run(["permit", directory]) == 2
    assert run(making) == 2  # no day
    assert run(["permit", directory, "--key", "bob.key"]) == 1  # nothing to sign yet
    assert run(["permit", directory, "--key", "bob.key", "--site", "a"]) == 2
    assert run([*making[:5], "7", "--site", "*", "--expires", "2099-01-01"]) == 1
    assert run([*making, "--expires", "2099-01-01"]) == 0
    assert run([*making, "--expires", "2099-01-01"]) == 1  # there is one
    assert run(["permit", directory, "--key", "bob.key", "--json"]) == 0
    assert BOB.public_key.key_id in capsys.readouterr().out
    monkeypatch.setenv("SATCHEL_STORE_RESERVE", "0")
    assert satchel(["import", directory, "--store", str(ahead.store.paths.root)]) == 0
    (model,) = ahead.store.list()
    assert model.model_path.read_bytes() == tiny_model(1)


def test_a_permit_for_another_bundle_is_not_signed(ahead: Desk, tmp_path: Path) -> None:
    (tmp_path / "alice.key").write_bytes(ALICE.dump(None))
    (tmp_path / "alice.key").chmod(0o600)
    data = permit(consent(statement=Digest.of(b"other")), [BOB])
    directory = carried(ahead, data)
    assert run(["permit", str(directory), "--key", str(tmp_path / "alice.key")]) == 1
    assert (directory / "rollback.dsse.json").read_bytes() == data
    (tmp_path / "alone.json").write_bytes(OLD.envelope())
    alone = ["permit", str(tmp_path / "alone.json"), "--key", str(tmp_path / "alice.key")]
    assert run(alone) == 1
