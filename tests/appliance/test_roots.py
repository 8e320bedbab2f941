"""A site with a pinned trust root: chains from the medium, roles of channels, revocation, time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.cli import run
from appliance.errors import (
    ExpiredError,
    KeyRefusedError,
    OlderBundleError,
    OtherChannelError,
    RevokedBundleError,
    RootBehindError,
    SequenceJumpError,
    StoreCorruptError,
    WrongSiteError,
)
from appliance.journal import Journal
from appliance.policyfile import load_policy, save_policy
from appliance.trust import TrustPolicy, ratchet
from bundler.format.chain import verify_first
from bundler.format.digest import Digest
from bundler.format.errors import (
    ChannelRefusedError,
    LayoutError,
    RootChainError,
    ThresholdError,
    TrustError,
    UntrustedKeyError,
)
from bundler.format.keys import KeyId, SigningKey, key_words
from tests.appliance.sites import Desk, pin, snapshot
from tests.fakes.forge import SECOND, STRANGER, TRUSTED, Forged, forge, tiny_model
from tests.fakes.roots import ROOT_A, ROOT_B, ROOT_C, make_root, signed

NEW = SigningKey.from_seed(b"N" * 32)


@pytest.fixture
def rooted(desk: Desk) -> Desk:
    """A site that pinned root 1, in which channel ``prod`` belongs to two keys."""
    pin(desk, make_root())
    return desk


def in_force(desk: Desk) -> int:
    root = load_policy(desk.store.paths.trust).root
    return root.root.version if root else 0


def carry(desk: Desk, bundle: Forged, roots: dict[int, bytes], **request: Any) -> None:
    """Import a bundle that lies beside these root files."""
    directory = bundle.write(desk.medium)
    (directory / "root").mkdir(exist_ok=True)
    for version, data in roots.items():
        (directory / "root" / f"{version}.root.dsse.json").write_bytes(data)
    desk.take(directory, **request)


def asking(bundle: Forged, version: int) -> Forged:
    """The bundle, asking for a trust root."""
    requires = replace(bundle.manifest.requires, root_version=version)
    return bundle.with_manifest(requires=requires)


def test_keys_added_here_do_not_count_while_a_root_is_pinned(desk: Desk) -> None:
    pin(desk, make_root(channels={"prod": (SECOND,)}))
    with pytest.raises(UntrustedKeyError):
        desk.carry(forge())
    desk.carry(forge().signed_by(SECOND))
    assert desk.names() == ["demo:latest"]


def test_a_bundle_of_a_channel_without_a_role_is_refused(rooted: Desk) -> None:
    with pytest.raises(ChannelRefusedError, match="channel beta"):
        rooted.carry(forge(channel="beta"))
    assert rooted.names() == []


def test_a_key_of_one_channel_says_nothing_on_another(desk: Desk) -> None:
    pin(desk, make_root(channels={"prod": (SECOND,), "beta": (TRUSTED,)}))
    with pytest.raises(TrustError):
        desk.carry(forge(channel="prod").signed_by(TRUSTED))


def test_the_threshold_of_the_channel_counts_and_this_sites_floor(desk: Desk) -> None:
    pin(desk, make_root(channel_threshold=2))
    with pytest.raises(ThresholdError):
        desk.carry(forge().signed_by(TRUSTED))
    desk.carry(forge().signed_by(TRUSTED, SECOND))
    with pytest.raises(ThresholdError):
        desk.configured(trust__min_threshold=3).carry(forge(seq=2).signed_by(TRUSTED, SECOND))


def test_a_channel_installs_only_the_models_of_its_role(desk: Desk) -> None:
    pin(desk, make_root(models=("other*",)))
    with pytest.raises(ChannelRefusedError, match="demo:latest"):
        desk.carry(forge())


def test_a_key_revoked_here_does_not_count_for_the_root_either(rooted: Desk) -> None:
    trust = rooted.store.paths.trust
    with rooted.store.writing():
        policy, _ = load_policy(trust).without_key("key 0", revoke=True)
        save_policy(trust, policy)
    with pytest.raises(UntrustedKeyError):
        rooted.carry(forge().signed_by(TRUSTED))


def test_a_genuine_bundle_of_another_channel_replaces_no_model(desk: Desk) -> None:
    desk.carry(forge({"F32": tiny_model(2)}, seq=5))
    old = forge({"F32": tiny_model(1)}, channel="beta", seq=900)
    before = snapshot(desk.store.paths.root)
    with pytest.raises(OtherChannelError, match="demo:latest: expected a bundle of channel prod"):
        desk.carry(old)
    with pytest.raises(OtherChannelError):
        desk.carry(old, allow_channel="prod")
    assert snapshot(desk.store.paths.root) == before
    (finding,) = desk.check(old.directory(desk.medium)).findings
    assert isinstance(finding, OtherChannelError)
    receipt = desk.carry(old, allow_channel="beta")
    assert receipt.warnings == ("demo:latest came on channel prod; now it is of beta",)


def test_a_variant_takes_no_name_of_another_channel(desk: Desk) -> None:
    desk.carry(forge({"F32": tiny_model(2)}, name="demo:f32", seq=5))
    both = {"F32": tiny_model(1), "F16": tiny_model(3)}
    with pytest.raises(OtherChannelError, match="demo:f32"):
        desk.carry(forge(both, channel="beta"), all_variants=True)


def test_the_chain_on_the_medium_is_followed_and_kept(rooted: Desk) -> None:
    second = make_root(version=2)
    third = make_root(version=3, channels={"prod": (NEW,)})
    with pytest.raises(UntrustedKeyError):
        carry(rooted, forge().signed_by(NEW), {})
    carry(rooted, asking(forge(), 3).signed_by(NEW), {2: signed(second), 3: signed(third)})
    assert in_force(rooted) == 3
    assert rooted.names() == ["demo:latest"]
    names = sorted(path.name[:11] for path in rooted.store.paths.trust.glob("root-*"))
    assert names == ["root-000001", "root-000002", "root-000003"]
    events = [one.details for one in Journal(rooted.store.paths.journal).events()]
    assert [one["version"] for one in events if one.get("action") == "root"] == [3]


def test_a_root_counts_although_its_bundle_is_refused(rooted: Desk) -> None:
    second = make_root(
        version=2, channels={"prod": (SECOND,)}, revoked_keys=frozenset({TRUSTED_ID})
    )
    with pytest.raises(UntrustedKeyError):
        carry(rooted, forge().signed_by(TRUSTED), {2: signed(second)})
    assert in_force(rooted) == 2
    with pytest.raises(UntrustedKeyError):
        carry(rooted, forge().signed_by(TRUSTED), {})


TRUSTED_ID = TRUSTED.public_key.key_id


@pytest.mark.parametrize(
    ("roots", "refusal"),
    [
        ({2: signed(make_root(version=2), ROOT_A)}, ThresholdError),
        ({2: signed(make_root(version=2), STRANGER, NEW)}, UntrustedKeyError),
        ({2: signed(make_root(version=2, top=(NEW,), threshold=1), NEW)}, UntrustedKeyError),
        ({2: signed(make_root(version=3))}, RootChainError),
        ({2: signed(make_root(version=1))}, RootChainError),
        (
            {2: signed(make_root(version=2)), 3: signed(make_root(version=3), ROOT_C)},
            ThresholdError,
        ),
    ],
)
def test_a_forged_chain_changes_nothing(
    rooted: Desk, roots: dict[int, bytes], refusal: type[TrustError]
) -> None:
    before = snapshot(rooted.store.paths.root)
    with pytest.raises(refusal):
        carry(rooted, forge(), roots)
    assert in_force(rooted) == 1
    assert snapshot(rooted.store.paths.root) == before


def test_a_gap_in_the_chain_ends_it(rooted: Desk) -> None:
    third = make_root(version=3, channels={"prod": (NEW,)})
    with pytest.raises(UntrustedKeyError):
        carry(rooted, forge().signed_by(NEW), {3: signed(third)})
    assert in_force(rooted) == 1


def test_a_root_file_that_is_a_link_is_refused(rooted: Desk, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(signed(make_root(version=2)))
    directory = forge().write(rooted.medium)
    (directory / "root").mkdir()
    (directory / "root" / "2.root.dsse.json").symlink_to(elsewhere)
    with pytest.raises(LayoutError):
        rooted.take(directory)


def test_a_bundle_whose_newer_root_was_taken_away_is_refused(rooted: Desk) -> None:
    with pytest.raises(RootBehindError, match="expected version 2, this site has 1"):
        carry(rooted, asking(forge(), 2), {})


def test_a_site_without_a_root_takes_such_a_bundle_and_is_told(desk: Desk) -> None:
    receipt = desk.carry(asking(forge(), 2))
    assert any("satchel trust pin" in line for line in receipt.warnings)


def test_a_revoked_bundle_is_refused_and_its_number_does_not_count(rooted: Desk) -> None:
    stolen = forge({"F32": tiny_model(7)}, seq=9_000)
    rooted.carry(forge(seq=1))
    rooted.carry(stolen)
    with pytest.raises(OlderBundleError):
        rooted.carry(forge({"F32": tiny_model(2)}, seq=2))
    digest = Digest.of(stolen.payload())
    second = make_root(version=2, revoked_digests=frozenset({digest}), channels={"prod": (SECOND,)})
    with pytest.raises(UntrustedKeyError):
        carry(rooted, stolen, {2: signed(second)})
    with pytest.raises(RevokedBundleError):
        carry(rooted, stolen.signed_by(SECOND), {})
    carry(rooted, forge({"F32": tiny_model(2)}, seq=2).signed_by(SECOND), {})
    with pytest.raises(SequenceJumpError):
        carry(rooted, forge(seq=10_003).signed_by(SECOND), {})


def test_nothing_below_the_roots_floor_comes_in_whatever_is_typed(rooted: Desk) -> None:
    second = make_root(version=2, min_seq={"prod": 5})
    with pytest.raises(OlderBundleError, match="sequence 5 or later"):
        carry(rooted, forge(seq=4), {2: signed(second)}, allow_rollback="prod:4")
    carry(rooted, forge(seq=5), {})


def test_audience_and_rollback_hold_with_a_root_too(rooted: Desk) -> None:
    with pytest.raises(WrongSiteError):
        rooted.carry(forge().with_bundle(audience=("elsewhere",)))
    rooted.carry(forge(seq=3))
    with pytest.raises(OlderBundleError):
        rooted.carry(forge({"F32": tiny_model(2)}, seq=2))


def test_verify_follows_the_chain_and_writes_nothing(rooted: Desk) -> None:
    second = make_root(version=2, channels={"prod": (NEW,)})
    directory = forge().signed_by(NEW).write(rooted.medium)
    (directory / "root").mkdir()
    (directory / "root" / "2.root.dsse.json").write_bytes(signed(second))
    before = snapshot(rooted.store.paths.root)
    assert rooted.check(directory).findings == ()
    assert snapshot(rooted.store.paths.root) == before


def test_an_expired_root_warns_and_lets_bundles_in(desk: Desk) -> None:
    pin(desk, make_root(expires="2020-01-01T00:00:00Z"))
    receipt = desk.carry(forge())
    assert any("was to be renewed by 2020" in line for line in receipt.warnings)


def test_the_root_may_refuse_expired_bundles(desk: Desk) -> None:
    pin(desk, make_root(expired="refuse"))
    with pytest.raises(ExpiredError):
        desk.carry(forge().with_bundle(expires="2026-01-01T00:00:00Z"))


def test_a_crash_between_root_file_and_policy_leaves_the_old_root(rooted: Desk) -> None:
    second = verify_first(signed(make_root(version=2)))
    trust = rooted.store.paths.trust
    (trust / f"root-000002-{second.digest.hex[:16]}.dsse.json").write_bytes(b"half")
    assert in_force(rooted) == 1
    carry(rooted, forge(), {2: second.data})
    assert in_force(rooted) == 2


@pytest.mark.parametrize("data", [b"", b"{}", signed(make_root(version=2)), None])
def test_a_damaged_root_in_the_store_trusts_nobody(rooted: Desk, data: bytes | None) -> None:
    (path,) = rooted.store.paths.trust.glob("root-*")
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(StoreCorruptError):
        load_policy(rooted.store.paths.trust)


def test_a_policy_of_the_release_before_is_read(desk: Desk) -> None:
    path = desk.store.paths.trust / "policy.json"
    members = json.loads(path.read_bytes())
    for name in ("approvers", "approvals", "permits"):
        del members[name]
    path.write_text(json.dumps({**members, "version": 2}))
    assert load_policy(desk.store.paths.trust).approver_role() is None
    del members["root"], members["clock"]
    path.write_text(json.dumps({**members, "version": 1}))
    desk.carry(forge())
    assert json.loads(path.read_bytes())["version"] == 3


def test_a_clock_that_runs_behind_is_caught_by_signed_times(desk: Desk) -> None:
    desk.carry(forge().with_bundle(issued="2026-11-20T00:00:00Z"))
    back = replace(desk, site=replace(desk.site, now="1970-01-01T00:00:00Z"))
    late = forge(seq=2).with_bundle(issued="2026-01-01T00:00:00Z", expires="2026-10-01T00:00:00Z")
    receipt = back.carry(late)
    assert any("the clock says 1970" in line for line in receipt.warnings)
    assert any(line.startswith("expires: ") for line in receipt.warnings)
    assert load_policy(desk.store.paths.trust).clock == "2026-11-20T00:00:00Z"


def test_the_bound_of_the_clock_never_falls_and_never_leaps() -> None:
    assert ratchet("", "2026-11-20T00:00:00Z") == "2026-11-20T00:00:00Z"
    assert ratchet("2026-11-20T00:00:00Z", "2025-01-01T00:00:00Z") == "2026-11-20T00:00:00Z"
    assert ratchet("2026-11-20T00:00:00Z", "2999-01-01T00:00:00Z") == "2027-12-25T00:00:00Z"
    policy = TrustPolicy(clock="2026-11-20T00:00:00Z")
    one = Digest.of(b"one")
    moved = policy.accept("prod", 1, one, issued="2999-01-01T00:00:00Z")
    assert moved.clock == "2027-12-25T00:00:00Z"
    assert moved.accept("prod", 1, one, issued="2999-01-01T00:00:00Z") == moved


def pinning(desk: Desk, *arguments: str) -> int:
    return run(["trust", "pin", *arguments, "--store", str(desk.store.paths.root)])


def test_a_root_is_pinned_by_its_words(
    desk: Desk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "1.root.dsse.json"
    path.write_bytes(signed(make_root()))
    words = key_words(KeyId(verify_first(path.read_bytes()).digest.hex))
    assert pinning(desk, str(path), "--words", "wrong-words") == 2
    assert in_force(desk) == 0
    assert pinning(desk, str(path), "--words", words) == 0
    assert "pinned: root 1" in capsys.readouterr().out
    assert pinning(desk, str(path), "--words", words) == 0
    assert "pinned already" in capsys.readouterr().out
    assert run(["trust", "list", "--store", str(desk.store.paths.root)]) == 0
    assert f"root 1  expires 2036-01-01T00:00:00Z\n  {words}\n" in capsys.readouterr().out


def test_pinning_over_a_root_has_to_be_said(
    desk: Desk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pin(desk, make_root())
    path = tmp_path / "1.root.dsse.json"
    path.write_bytes(signed(make_root(threshold=1), ROOT_B))
    assert pinning(desk, str(path)) == KeyRefusedError.exit_code
    assert "--replace" in capsys.readouterr().err
    assert pinning(desk, str(path), "--replace") == 0
    assert load_policy(desk.store.paths.trust).root == verify_first(path.read_bytes())
    path.write_bytes(signed(make_root(), ROOT_A))
    assert pinning(desk, str(path), "--replace") == ThresholdError.exit_code
