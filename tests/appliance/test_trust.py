"""Whom a site trusts, and what it will not accept twice or backwards."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import (
    KeyRefusedError,
    NobodyTrustedError,
    OlderBundleError,
    RequestError,
    RolledBackError,
    SequenceJumpError,
    SequenceReuseError,
    StoreCorruptError,
    WrongSiteError,
)
from appliance.policyfile import load_policy, save_policy
from appliance.trust import MAX_SEQUENCE_STEP, TrustPolicy, check_audience, check_expiry
from bundler.format.digest import Digest
from tests.appliance.sites import Desk
from tests.fakes.forge import SECOND, STRANGER, TRUSTED, forge, tiny_model

NOW = "2026-11-21T00:00:00Z"
ONE, OTHER = Digest.of(b"1"), Digest.of(b"2")


def policy(*keys: str) -> TrustPolicy:
    made = TrustPolicy()
    by_label = {"t": TRUSTED, "s": SECOND, "x": STRANGER}
    for label in keys:
        made = made.with_key(by_label[label].public_key, label=label, added_at=NOW)
    return made


def test_nobody_is_trusted_at_first(tmp_path: Path) -> None:
    with pytest.raises(NobodyTrustedError):
        load_policy(tmp_path).active_keys()


def test_revoked_key_may_not_come_back() -> None:
    without, gone = policy("t", "s").without_key("t", revoke=True)
    assert gone.key == TRUSTED.public_key
    assert list(without.active_keys()) == [SECOND.public_key.key_id]
    with pytest.raises(KeyRefusedError):
        without.with_key(TRUSTED.public_key, label="again", added_at=NOW)


def test_removed_key_may_come_back() -> None:
    without, _ = policy("t").without_key(TRUSTED.public_key.key_id[:8], revoke=False)
    assert without.with_key(TRUSTED.public_key, label="t", added_at=NOW) == policy("t")


@pytest.mark.parametrize("which", ["nobody", "", TRUSTED.public_key.key_id[:7]])
def test_removal_needs_exactly_one_key(which: str) -> None:
    with pytest.raises(RequestError):
        policy("t", "s").without_key(which, revoke=False)


@pytest.mark.parametrize("label", ["", "x" * 65, "a\nb", "\x1b[31m"])
def test_label_that_would_upset_a_screen_is_refused(label: str) -> None:
    with pytest.raises(RequestError):
        TrustPolicy().with_key(TRUSTED.public_key, label=label, added_at=NOW)


def test_label_of_another_key_is_refused() -> None:
    with pytest.raises(RequestError):
        policy("t").with_key(SECOND.public_key, label="t", added_at=NOW)


@pytest.mark.parametrize("threshold", [-1, 0, 3])
def test_threshold_out_of_range_is_refused(threshold: int) -> None:
    with pytest.raises(RequestError):
        policy("t", "s").with_threshold(threshold)


def test_policy_reads_back_as_it_was_written(tmp_path: Path) -> None:
    made = policy("t", "s", "x").with_threshold(2).accept("prod", 7, ONE).accept("lab", 1, OTHER)
    made, _ = made.without_key("x", revoke=True)
    save_policy(tmp_path, made)
    assert load_policy(tmp_path) == made


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b'{"version":2,"threshold":1,"keys":[],"revoked":[],"accepted":{}}',
        b'{"version":1,"threshold":0,"keys":[],"revoked":[],"accepted":{}}',
        b'{"version":1,"threshold":true,"keys":[],"revoked":[],"accepted":{}}',
        b'{"version":1,"threshold":1,"keys":[{}],"revoked":[],"accepted":{}}',
        b'{"version":1,"threshold":1,"keys":[],"revoked":[],"accepted":{"a":{"x":"y"}}}',
    ],
)
def test_damaged_policy_trusts_nobody(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "policy.json").write_bytes(text)
    with pytest.raises(StoreCorruptError) as caught:
        load_policy(tmp_path)
    assert caught.value.exit_code == 15


def test_audience_names_this_site_or_everybody() -> None:
    check_audience(("*",), "")
    check_audience(("a", "b"), "b")
    for site in ("", "c"):
        with pytest.raises(WrongSiteError):
            check_audience(("a", "b"), site)


def test_expiry_counts_only_when_there_is_one() -> None:
    assert check_expiry(None, now=NOW, policy="refuse") == ""
    assert check_expiry(NOW, now=NOW, policy="refuse") == ""
    assert check_expiry("2026-11-20T23:59:59Z", now=NOW, policy="warn")


def test_sequence_rules() -> None:
    seen = TrustPolicy().accept("prod", 10, ONE)
    seen.check_sequence("prod", 10, ONE)
    seen.check_sequence("prod", 11, OTHER)
    seen.check_sequence("prod", 10 + MAX_SEQUENCE_STEP, OTHER)
    seen.check_sequence("new channel", 1, OTHER)
    with pytest.raises(SequenceReuseError):
        seen.check_sequence("prod", 10, OTHER)
    with pytest.raises(SequenceReuseError):
        seen.check_sequence("prod", 10, OTHER, allow_rollback="prod:10")
    with pytest.raises(OlderBundleError):
        seen.check_sequence("prod", 9, OTHER)
    with pytest.raises(OlderBundleError):
        seen.check_sequence("prod", 9, OTHER, allow_rollback="lab:9")
    seen.check_sequence("prod", 9, OTHER, allow_rollback="prod:9")
    with pytest.raises(SequenceJumpError):
        seen.check_sequence("prod", 11 + MAX_SEQUENCE_STEP, OTHER)


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 2)), max_size=30))
@settings(deadline=None)
def test_highest_number_never_falls_and_a_number_never_changes_its_content(
    bundles: list[tuple[int, int]],
) -> None:
    seen = TrustPolicy()
    for seq, content in bundles:
        before = seen
        statement = Digest.of(bytes([content]))
        try:
            seen.check_sequence("prod", seq, statement)
        except RolledBackError:
            continue
        seen = seen.accept("prod", seq, statement)
        assert seq >= (before.highest("prod") or 0)
        assert all(
            seen.accepted["prod"][k] == v for k, v in before.accepted.get("prod", {}).items()
        )


def test_counter_lost_in_a_crash_is_recovered_from_installed_models(desk: Desk) -> None:
    desk.carry(forge({"F32": tiny_model(2)}, seq=42))
    kept = load_policy(desk.store.paths.trust)
    with desk.store.writing():
        save_policy(desk.store.paths.trust, TrustPolicy(keys=kept.keys))
    with pytest.raises(OlderBundleError):
        desk.carry(forge({"F32": tiny_model(1)}, seq=41))
