"""Two people have to agree: an import waits, staged, until enough approvers have signed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance import waiting
from appliance.approving import add_approval, go_on, reject, standings
from appliance.cli import run
from appliance.errors import (
    ApprovalMissingError,
    KeyRefusedError,
    OlderBundleError,
    RequestError,
    RevokedBundleError,
    StoreCorruptError,
)
from appliance.journal import Journal
from appliance.policyfile import load_policy, save_policy
from appliance.pruning import prune, unused
from bundler.format.consent import Approval, approve
from bundler.format.digest import Digest
from bundler.format.keys import SigningKey
from tests.appliance.sites import Desk, pin, snapshot
from tests.fakes.forge import STRANGER, TRUSTED, Forged, forge, tiny_model
from tests.fakes.roots import make_root, role

ALICE = SigningKey.from_seed(b"A" * 32)
BOB = SigningKey.from_seed(b"B" * 32)
CAROL = SigningKey.from_seed(b"C" * 32)
LAYERS: Any = (("license", b"MIT"),)
OLD = {"F32": tiny_model(1)}
NEW = {"F32": tiny_model(2)}


@pytest.fixture
def strict(desk: Desk) -> Desk:
    """A site with one model where two of three operators have to approve the next one."""
    desk.carry(forge(OLD, seq=1))
    with desk.store.writing():
        policy = load_policy(desk.store.paths.trust)
        for label, key in (("alice", ALICE), ("bob", BOB), ("carol", CAROL)):
            policy = policy.with_approver(key.public_key, label=label, added_at="2026-11-20")
        save_policy(desk.store.paths.trust, policy.with_approvals(2))
    return desk


def stage(desk: Desk, bundle: Forged | None = None) -> Path:
    directory = (bundle or forge(NEW, seq=2, layers=LAYERS)).write(desk.medium)
    with pytest.raises(ApprovalMissingError) as caught:
        desk.take(directory)
    assert caught.value.exit_code == 16
    return directory


def weights(desk: Desk) -> bytes:
    (model,) = desk.store.list()
    return model.model_path.read_bytes()


def kinds(desk: Desk) -> list[str]:
    return [one.kind for one in Journal(desk.store.paths.journal).events()]


def test_an_import_waits_and_the_old_model_stays(strict: Desk) -> None:
    stage(strict)
    assert weights(strict) == OLD["F32"]
    assert load_policy(strict.store.paths.trust).highest("prod") == 1
    (one,) = standings(strict.site)
    assert (one.waiting.name, one.approved_by, one.needed) == ("prod:2", frozenset(), 2)
    assert list(strict.store.paths.staging.iterdir()) == []
    assert kinds(strict)[-1] == "staged"


def test_the_last_approval_carries_it_out_without_the_medium(strict: Desk) -> None:
    shutil.rmtree(stage(strict))
    assert not add_approval("prod:2", ALICE, strict.site).enough
    with pytest.raises(ApprovalMissingError):
        go_on(standings(strict.site)[0].waiting, strict.site, strict.observer)
    standing = add_approval("prod:2", BOB, strict.site)
    assert standing.enough
    receipt = go_on(standing.waiting, strict.site, strict.observer)
    assert receipt.approved_by == {
        ALICE.public_key.key_id: "alice",
        BOB.public_key.key_id: "bob",
    }
    written = json.loads((strict.store.paths.receipts / "000002.json").read_bytes())
    assert written["approved_by"] == dict(receipt.approved_by)
    assert weights(strict) == NEW["F32"]
    assert strict.store.list()[0].licenses == ("MIT",)
    assert standings(strict.site) == ()
    assert list(strict.store.paths.waiting.iterdir()) == []
    assert [kind for kind in kinds(strict) if kind == "approved"] == ["approved"] * 2


def test_where_nobody_has_to_approve_any_more_the_import_goes_on_from_the_medium(
    strict: Desk,
) -> None:
    directory = stage(strict)
    with strict.store.writing():
        policy = load_policy(strict.store.paths.trust).with_approvals(0)
        save_policy(strict.store.paths.trust, policy)
    with pytest.raises(RequestError, match="asks for approvals"):
        add_approval("prod:2", ALICE, strict.site)
    assert strict.take(directory).approved_by == {}
    assert standings(strict.site) == ()


def test_one_approver_counts_once(strict: Desk) -> None:
    stage(strict)
    for _ in range(3):
        standing = add_approval("prod:2", ALICE, strict.site)
        assert len(standing.approved_by) == 1
    folder = strict.store.paths.waiting / standing.waiting.statement.hex / "approvals"
    (only,) = folder.iterdir()
    shutil.copy(only, folder / f"{BOB.public_key.key_id}.dsse.json")
    assert len(standings(strict.site)[0].approved_by) == 1


def test_who_is_no_approver_cannot_approve(strict: Desk) -> None:
    stage(strict)
    for key in (STRANGER, TRUSTED):
        with pytest.raises(KeyRefusedError):
            add_approval("prod:2", key, strict.site)
    assert standings(strict.site)[0].approved_by == frozenset()


def test_an_approver_taken_away_meanwhile_does_not_count(strict: Desk) -> None:
    stage(strict)
    add_approval("prod:2", ALICE, strict.site)
    with strict.store.writing():
        policy = load_policy(strict.store.paths.trust).without_approver("alice")
        save_policy(strict.store.paths.trust, policy)
    assert not add_approval("prod:2", BOB, strict.site).enough
    assert add_approval("prod:2", CAROL, strict.site).enough


def test_approvals_are_for_one_bundle_at_one_site(strict: Desk) -> None:
    stage(strict)
    (one,) = standings(strict.site)
    folder = one.waiting.path / "approvals"
    other = Approval(statement=Digest.of(b"other"), site="", at="2026-11-22T00:00:00Z")
    elsewhere = replace(other, statement=one.waiting.statement, site="site-2")
    for number, approval in enumerate((other, elsewhere)):
        (folder / f"{number}.dsse.json").write_bytes(approve(approval, [ALICE]))
    (folder / "junk").write_bytes(b"junk")
    assert standings(strict.site)[0].approved_by == frozenset()


def test_a_signature_over_the_bundle_is_no_approval(strict: Desk) -> None:
    stage(strict)
    (one,) = standings(strict.site)
    signed = forge(NEW, seq=2, layers=LAYERS).signed_by(ALICE).envelope()
    (one.waiting.path / "approvals" / "a.dsse.json").write_bytes(signed)
    assert standings(strict.site)[0].approved_by == frozenset()


def test_everything_is_checked_again_when_it_goes_on(strict: Desk) -> None:
    stage(strict)
    add_approval("prod:2", ALICE, strict.site)
    one = add_approval("prod:2", BOB, strict.site).waiting
    with strict.store.writing():
        before = load_policy(strict.store.paths.trust)
        save_policy(
            strict.store.paths.trust, before.accept("prod", 9, Digest.of(b"newer meanwhile"))
        )
    with pytest.raises(OlderBundleError):
        go_on(one, strict.site, strict.observer)
    assert weights(strict) == OLD["F32"]


def test_a_bundle_that_was_revoked_while_it_waited_stays_out(desk: Desk) -> None:
    approvers = role(ALICE, threshold=1)
    keys = tuple(sorted((*make_root().keys, ALICE.public_key), key=lambda key: key.key_id))
    roles = {**make_root().roles, "approver": approvers}
    root = make_root(keys=keys, roles=roles)
    pin(desk, root)
    stage(desk, forge(NEW, seq=2))
    one = add_approval("prod:2", ALICE, desk.site).waiting
    with desk.store.writing():
        from appliance.policyfile import adopt_root
        from bundler.format.chain import verify_first
        from tests.fakes.roots import signed

        later = replace(root, version=2, revoked_digests=frozenset({one.statement}))
        adopt_root(desk.store.paths.trust, [verify_first(signed(later))])
    with pytest.raises(RevokedBundleError):
        go_on(one, desk.site, desk.observer)
    assert desk.names() == []


def test_what_waits_is_not_pruned_and_what_was_rejected_is(strict: Desk) -> None:
    stage(strict)
    far = 4_000_000_000.0
    assert unused(strict.store, now_s=far) == ()
    assert reject("prod:2", strict.site).name == "prod:2"
    assert standings(strict.site) == ()
    assert len(prune(strict.store, now_s=far, grace_s=0.0)) == 1
    assert kinds(strict)[-2:] == ["rejected", "pruned"]
    with pytest.raises(RequestError):
        reject("prod:2", strict.site)


def test_removing_a_model_keeps_weights_that_wait(strict: Desk) -> None:
    stage(strict, forge(OLD, name="again", seq=2))
    strict.store.remove(strict.store.list()[0].name)
    add_approval("prod:2", ALICE, strict.site)
    one = add_approval("prod:2", BOB, strict.site).waiting
    assert go_on(one, strict.site, strict.observer).changed
    assert strict.names() == ["again:latest"]


def test_importing_again_while_it_waits_changes_nothing(strict: Desk) -> None:
    directory = stage(strict)
    add_approval("prod:2", ALICE, strict.site)
    before = snapshot(strict.store.paths.root)
    with pytest.raises(ApprovalMissingError):
        strict.take(directory)
    assert snapshot(strict.store.paths.root) == before
    add_approval("prod:2", BOB, strict.site)
    assert strict.take(directory).approved_by
    assert strict.take(directory).changed is False


def test_what_waits_and_is_damaged_is_said(strict: Desk) -> None:
    stage(strict)
    (one,) = standings(strict.site)
    (one.waiting.path / "bundle.dsse.json").write_bytes(forge(seq=5).envelope())
    with pytest.raises(StoreCorruptError, match="found another"):
        standings(strict.site)
    (one.waiting.path / "asked.json").write_bytes(b"{}")
    with pytest.raises(StoreCorruptError, match="damaged"):
        standings(strict.site)
    (one.waiting.path / "bundle.dsse.json").unlink()
    assert standings(strict.site) == ()


def test_what_a_crash_left_of_a_waiting_import_goes(strict: Desk) -> None:
    stage(strict)
    (one,) = standings(strict.site)
    (one.waiting.path / "approvals" / ".x.part").write_bytes(b"half")
    half = strict.store.paths.waiting / ("0" * 64)
    half.mkdir()
    (half / "asked.json").write_bytes(b"{}")
    with strict.store.writing():
        pass
    assert not half.exists()
    assert list(one.waiting.path.rglob("*.part")) == []
    assert len(standings(strict.site)) == 1


def test_a_root_names_approvers_for_every_site(desk: Desk) -> None:
    keys = tuple(sorted((*make_root().keys, ALICE.public_key), key=lambda key: key.key_id))
    roles = {**make_root().roles, "approver": role(ALICE, threshold=1)}
    pin(desk, make_root(keys=keys, roles=roles))
    stage(desk, forge(NEW, seq=2))
    with pytest.raises(KeyRefusedError):
        add_approval("prod:2", BOB, desk.site)
    assert add_approval("prod:2", ALICE, desk.site).enough


@pytest.mark.parametrize("number", [-1, 4])
def test_more_approvals_than_approvers_make_no_sense(strict: Desk, number: int) -> None:
    with pytest.raises(RequestError, match="0 to 3"):
        load_policy(strict.store.paths.trust).with_approvals(number)


def test_the_last_approvers_cannot_be_taken_away(strict: Desk) -> None:
    policy = load_policy(strict.store.paths.trust).without_approver("carol")
    with pytest.raises(RequestError):
        policy.without_approver("bob")


def satchel(desk: Desk, *arguments: str) -> int:
    return run([*arguments, "--store", str(desk.store.paths.root)])


def test_the_commands_do_it_all(
    desk: Desk, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, key in (("alice", ALICE), ("bob", BOB)):
        (tmp_path / f"{name}.pub").write_text(key.public_key.text())
        (tmp_path / f"{name}.key").write_bytes(key.dump(b"secret" if name == "bob" else None))
        (tmp_path / f"{name}.key").chmod(0o600)
        assert satchel(desk, "trust", "approver", str(tmp_path / f"{name}.pub")) == 0
    assert satchel(desk, "trust", "approvals", "3") == 2
    assert satchel(desk, "trust", "approvals", "2") == 0
    directory = forge(NEW, seq=2).write(desk.medium)
    monkeypatch.setenv("SATCHEL_STORE_RESERVE", "0")
    assert satchel(desk, "approve") == 0
    assert satchel(desk, "import", str(directory)) == 16
    said = capsys.readouterr()
    assert "nothing waits" in said.out
    assert "satchel approve prod:2 --key KEY" in said.err
    assert satchel(desk, "approve", "prod:2", "--key", str(tmp_path / "alice.key")) == 0
    assert "1 of 2" in capsys.readouterr().out
    assert satchel(desk, "approve") == 0
    assert "demo:latest  approved 1 of 2 by alice" in capsys.readouterr().out
    assert satchel(desk, "approve", "prod:2", "--key", str(tmp_path / "bob.key")) == 1
    monkeypatch.setenv("SATCHEL_KEY_PASSPHRASE", "secret")
    assert satchel(desk, "approve", "prod:2", "--key", str(tmp_path / "bob.key")) == 0
    assert "installed demo:latest" in capsys.readouterr().out
    for wrong in (("prod:2",), ("--reject",), ("prod:9", "--reject"), ("prod:2", "--key", "x")):
        assert satchel(desk, "approve", *wrong) != 0
    assert satchel(desk, "trust", "approver", "bob", "--remove") == 2
    assert satchel(desk, "trust", "approvals", "0") == 0
    assert satchel(desk, "trust", "approver", "bob", "--remove") == 0
    assert satchel(desk, "trust", "list") == 0
    assert "approver alice" in capsys.readouterr().out
    (tmp_path / "alice.key").chmod(0o644)
    assert satchel(desk, "approve", "prod:2", "--key", str(tmp_path / "alice.key")) == 1


def test_waiting_files_lie_where_the_layout_says(strict: Desk) -> None:
    stage(strict)
    (one,) = waiting.all_waiting(strict.store.paths)
    assert one.path.parent == strict.store.paths.waiting
    assert waiting.find(strict.store.paths, str(one.statement)[:20]) == one
