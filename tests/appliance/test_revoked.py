"""Models that came in before their bundle or their keys were revoked are marked."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from appliance import health
from appliance.cli import run
from appliance.errors import StoreCorruptError
from appliance.model import Provenance
from appliance.policyfile import load_policy, save_policy
from appliance.revoked import Revocations, why_revoked
from appliance.updating import update_trust
from bundler.format.digest import Digest
from bundler.format.name import ModelName
from server.catalogue import Catalogue
from server.errors import ForbiddenError
from tests.appliance.sites import Desk, pin
from tests.fakes.forge import SECOND, TRUSTED, forge
from tests.fakes.roots import make_root, signed

BUNDLE = forge()
DEMO = ModelName.parse("demo")
ORIGIN = Provenance(
    bundle_id="x",
    channel="prod",
    seq=1,
    statement=str(Digest.of(BUNDLE.payload())),
    signed_by=(TRUSTED.public_key.key_id,),
    variant="f32",
    imported_at="2026-11-22T00:00:00Z",
)


@pytest.fixture
def served(desk: Desk) -> Desk:
    """A site under a root, with a model."""
    pin(desk, make_root())
    desk.carry(BUNDLE)
    return desk


def revoke_bundle(desk: Desk) -> None:
    later = make_root(version=2, revoked_digests=frozenset({Digest.of(BUNDLE.payload())}))
    update_trust(desk.store, {2: signed(later)}.get, source="paper")


def test_what_nobody_signed_or_revoked_is_not_revoked(served: Desk) -> None:
    policy = load_policy(served.store.paths.trust)
    assert why_revoked(None, policy) == ""
    assert why_revoked(ORIGIN, policy) == ""


def test_a_revoked_bundle_marks_its_model(served: Desk) -> None:
    revoke_bundle(served)
    assert "trust root 2" in why_revoked(ORIGIN, load_policy(served.store.paths.trust))


def test_a_key_revoked_here_or_by_the_root_marks_what_too_few_others_signed(desk: Desk) -> None:
    with desk.store.writing():
        policy, _ = load_policy(desk.store.paths.trust).without_key("key 0", revoke=True)
        save_policy(desk.store.paths.trust, policy)
    assert TRUSTED.public_key.key_id[:12] in why_revoked(ORIGIN, policy)
    both = replace(ORIGIN, signed_by=(TRUSTED.public_key.key_id, SECOND.public_key.key_id))
    assert why_revoked(both, policy) == ""
    assert why_revoked(both, replace(policy, threshold=2)) != ""
    root = make_root(
        channels={"prod": (SECOND,)}, revoked_keys=frozenset({TRUSTED.public_key.key_id})
    )
    pin(desk, root)
    assert "key" in why_revoked(ORIGIN, load_policy(desk.store.paths.trust))


def test_commands_mark_it(served: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    store = ["--store", str(served.store.paths.root)]
    assert run(["list", *store]) == 0
    assert capsys.readouterr().err == ""
    revoke_bundle(served)
    assert run(["list", *store]) == 0
    assert "demo:latest: its bundle prod 1 was revoked" in capsys.readouterr().err
    assert run(["list", "--json", *store]) == 0
    assert "revoked by trust root 2" in json.loads(capsys.readouterr().out)["models"][0]["revoked"]
    assert run(["show", "demo", *store]) == 0
    assert "its bundle prod 1 was revoked" in capsys.readouterr().out
    assert run(["show", "demo", "--json", *store]) == 0
    assert json.loads(capsys.readouterr().out)["revoked"]


def test_health_warns(served: Desk) -> None:
    assert health.check_revoked(served.store, refuses=False).level is health.Level.OK
    revoke_bundle(served)
    found = health.check_revoked(served.store, refuses=True)
    assert found.level is health.Level.WARNING
    assert found.text.startswith("1 revoked, refused, first demo:latest: its bundle")
    (served.store.paths.trust / "policy.json").write_bytes(b"{")
    assert health.check_revoked(served.store, refuses=False).level is health.Level.CRITICAL


def test_a_running_server_refuses_it_from_the_next_request_on(served: Desk) -> None:
    known = Revocations(served.store.paths)
    catalogue = Catalogue(served.store, refused=known.why)
    model = catalogue.find(DEMO)
    assert model is not None
    catalogue.check_may_answer(model)
    revoke_bundle(served)
    with pytest.raises(ForbiddenError, match="was revoked by trust root 2"):
        catalogue.check_may_answer(model)
    Catalogue(served.store).check_may_answer(model)  # where the site only warns


def test_a_policy_that_cannot_be_read_is_no_permission(served: Desk) -> None:
    known = Revocations(served.store.paths)
    model = served.store.resolve(DEMO)
    (served.store.paths.trust / "policy.json").write_bytes(b"{")
    with pytest.raises(StoreCorruptError):
        known.why(model)


def test_a_store_without_a_policy_revokes_nothing(desk: Desk) -> None:
    desk.carry(BUNDLE)
    (desk.store.paths.trust / "policy.json").unlink()
    assert Revocations(desk.store.paths).why(desk.store.resolve(DEMO)) == ""
