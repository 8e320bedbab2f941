"""Back to the version before, and forward again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from appliance import previous, pruning, rolling
from appliance.cli import run
from appliance.errors import (
    AppError,
    ModelMissingError,
    OlderBundleError,
    RequestError,
    RevokedBundleError,
    StoreCorruptError,
)
from appliance.journal import Journal
from appliance.policyfile import load_policy
from appliance.store import StoreWriter
from bundler.format.digest import Digest
from bundler.format.name import ModelName
from tests.appliance.sites import Desk, make_desk, pin
from tests.fakes.forge import Forged, forge, tiny_model
from tests.fakes.roots import make_root

DEMO = ModelName.parse("demo")


def version(seq: int) -> Forged:
    return forge({"F32": tiny_model(seq)}, seq=seq)


def weights(desk: Desk) -> bytes:
    return desk.store.resolve(DEMO).model_path.read_bytes()


def blobs(desk: Desk) -> set[str]:
    return {path.name for path in desk.store.paths.blobs.iterdir()}


def test_there_is_nothing_to_go_back_to_after_one_import(desk: Desk) -> None:
    desk.carry(version(1))
    with pytest.raises(RequestError, match="expected a previous version, found none"):
        rolling.roll_back(DEMO, desk.store)
    with pytest.raises(ModelMissingError):
        rolling.roll_back(ModelName.parse("absent"), desk.store)


def test_a_rollback_brings_the_version_before_and_the_next_one_goes_forward(desk: Desk) -> None:
    desk.carry(version(1))
    before = desk.store.resolve(DEMO)
    desk.carry(version(2))
    done = rolling.roll_back(DEMO, desk.store)
    assert weights(desk) == tiny_model(1)
    now = desk.store.resolve(DEMO)
    assert (now.digest, now.provenance) == (before.digest, before.provenance)
    assert (done.left.bundle, done.now.bundle) == ("prod 2", "prod 1")
    event = Journal(desk.store.paths.journal).events()[-1]
    assert event.kind == "rolled-back"
    assert (event.details["left_bundle"], event.details["now_bundle"]) == ("prod 2", "prod 1")
    rolling.roll_back(DEMO, desk.store)
    assert weights(desk) == tiny_model(2)


def test_only_so_many_versions_stay_as_the_setting_says(desk: Desk) -> None:
    for seq in (1, 2, 3):
        desk.carry(version(seq))
    known = rolling.versions(DEMO, desk.store)
    assert [one.bundle for one in known] == ["prod 3", "prod 2"]
    assert f"sha256-{Digest.of(tiny_model(1)).hex}" not in blobs(desk)
    none = desk.configured(store__previous=0)
    none.carry(version(4))
    assert f"sha256-{Digest.of(tiny_model(3)).hex}" not in blobs(desk)


def test_of_several_versions_one_is_named_by_its_id(desk: Desk) -> None:
    many = desk.configured(store__previous=3)
    for seq in (1, 2, 3):
        many.carry(version(seq))
    oldest = rolling.versions(DEMO, desk.store)[-1]
    rolling.roll_back(DEMO, desk.store, to=oldest.id, keep=3)
    assert weights(desk) == tiny_model(1)
    listed = [one.bundle for one in rolling.versions(DEMO, desk.store)]
    assert listed == ["prod 1", "prod 3", "prod 2"]
    for wrong in ("abc", "0" * 12, rolling.versions(DEMO, desk.store)[0].id):
        with pytest.raises(RequestError, match="expected the id of one previous version"):
            rolling.roll_back(DEMO, desk.store, to=wrong)


def test_a_rollback_moves_no_counter_and_the_newer_bundle_comes_in_again(desk: Desk) -> None:
    desk.carry(version(1))
    desk.carry(version(2))
    policy = load_policy(desk.store.paths.trust)
    rolling.roll_back(DEMO, desk.store)
    assert load_policy(desk.store.paths.trust) == policy
    with pytest.raises(OlderBundleError):
        desk.carry(version(1))
    assert desk.carry(version(2)).changed
    assert weights(desk) == tiny_model(2)


def test_a_version_below_the_root_s_floor_comes_back_with_a_warning(desk: Desk) -> None:
    desk.carry(version(1))
    desk.carry(version(2))
    pin(desk, make_root(min_seq={"prod": 2}))
    done = rolling.roll_back(DEMO, desk.store)
    assert "lets no bundle of channel prod below 2 in" in done.warnings[0]
    assert weights(desk) == tiny_model(1)


def test_a_version_that_was_revoked_does_not_come_back(desk: Desk) -> None:
    first = version(1)
    desk.carry(first)
    desk.carry(version(2))
    pin(desk, make_root(revoked_digests=frozenset({Digest.of(first.payload())})))
    with pytest.raises(RevokedBundleError, match="found a revoked one"):
        rolling.roll_back(DEMO, desk.store)
    assert weights(desk) == tiny_model(2)


def test_a_version_whose_files_are_gone_does_not_come_back(desk: Desk) -> None:
    desk.carry(version(1))
    desk.carry(version(2))
    desk.store.paths.blob(Digest.of(tiny_model(1))).unlink()
    with pytest.raises(StoreCorruptError, match="of the previous version is missing"):
        rolling.roll_back(DEMO, desk.store)
    assert weights(desk) == tiny_model(2)


def test_pruning_leaves_what_a_rollback_needs(desk: Desk) -> None:
    desk.carry(version(1))
    desk.carry(version(2))
    assert pruning.prune(desk.store, now_s=1e12, grace_s=0) == ()
    rolling.roll_back(DEMO, desk.store)
    assert weights(desk) == tiny_model(1)
    assert pruning.trim(desk.store, keep=0) >= len(tiny_model(2))
    assert len(rolling.versions(DEMO, desk.store)) == 1


def test_removing_a_model_removes_what_it_was_before(desk: Desk) -> None:
    desk.carry(version(1))
    desk.carry(version(2))
    freed = desk.store.remove(DEMO)
    assert freed >= len(tiny_model(1)) + len(tiny_model(2))
    assert blobs(desk) == set()
    assert not list(desk.store.paths.previous.rglob("*.json"))


def test_files_that_two_names_share_stay(desk: Desk) -> None:
    desk.carry(version(1))
    desk.store.copy(DEMO, ModelName.parse("other"))
    desk.carry(version(2))
    pruning.trim(desk.store, keep=0)
    assert desk.store.resolve(ModelName.parse("other")).model_path.read_bytes() == tiny_model(1)


def test_a_crash_before_the_name_moved_leaves_the_version_in_force(desk: Desk) -> None:
    desk.carry(version(1))
    spelled = desk.store.canonical(DEMO)
    with desk.store.writing():
        previous.keep(desk.store.paths, spelled, desk.store.manifest(spelled))
    assert weights(desk) == tiny_model(1)
    assert len(rolling.versions(DEMO, desk.store)) == 1
    desk.carry(version(2))
    rolling.roll_back(DEMO, desk.store)
    assert weights(desk) == tiny_model(1)


def test_a_removal_that_was_cut_short_is_finished_by_the_next_writer(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.carry(version(1))
    desk.carry(version(2))
    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "trim", _crash)
        with pytest.raises(_Crash):
            desk.store.remove(DEMO)
    with desk.store.writing():
        pass
    assert blobs(desk) == set()


class _Crash(BaseException):
    """The process is gone."""


def _crash(*_: object, **__: object) -> None:
    raise _Crash


def test_a_damaged_record_keeps_every_file(desk: Desk) -> None:
    desk.carry(version(1))
    desk.carry(version(2))
    (record,) = desk.store.paths.previous.rglob("*.json")
    record.write_bytes(b"{")
    with pytest.raises(StoreCorruptError, match="so nothing is removed") as caught:
        pruning.prune(desk.store, now_s=1e12, grace_s=0)
    assert "remove that file" in caught.value.hint


def test_the_command_lists_rolls_back_and_says_what_it_did(
    desk: Desk, capfd: pytest.CaptureFixture[str]
) -> None:
    desk.carry(version(1))
    desk.carry(version(2))
    store = ["--store", str(desk.store.paths.root)]
    assert run(["rollback", "demo", "--list", *store]) == 0
    first, second = capfd.readouterr().out.splitlines()
    assert "prod 2" in first
    assert "in force" in first
    assert "prod 1" in second
    assert run(["rollback", "demo", "--json", *store]) == 0
    assert json.loads(capfd.readouterr().out)["now"]["seq"] == 1
    assert run(["rollback", "demo", *store]) == 0
    assert "(prod 2) again" in capfd.readouterr().out
    assert run(["rollback", "demo", "--to", "ffffffffffff", *store]) == 2
    assert run(["rollback", "demo", "--to", "ffffffffffff", "--list", *store]) == 2
    assert run(["prune", "--previous", "0", *store]) == 0
    assert run(["rollback", "demo", *store]) == 2
    assert "found none" in capfd.readouterr().err


class History(RuleBasedStateMachine):
    """Imports, rollbacks and removals against a list of what should be there."""

    @initialize(keep=st.integers(0, 3))
    def begin(self, keep: int) -> None:
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        desk = make_desk(Path(self.folder.name))
        self.desk = desk.configured(store__previous=keep)
        self.keep = keep
        self.seq = 0
        self.current: int | None = None
        self.former: list[int] = []

    @rule()
    def bring(self) -> None:
        self.seq += 1
        self.desk.carry(version(self.seq))
        if self.current is not None and self.keep:
            self.former = [self.current, *self.former][: self.keep]
        self.current = self.seq

    @rule(place=st.integers(0, 3))
    def back(self, place: int) -> None:
        if self.current is None or place >= len(self.former):
            return
        known = rolling.versions(DEMO, self.desk.store)
        rolling.roll_back(DEMO, self.desk.store, to=known[place + 1].id, keep=self.keep)
        chosen = self.former.pop(place)
        self.former = [self.current, *self.former][: max(1, self.keep)]
        self.current = chosen

    @rule()
    def remove(self) -> None:
        if self.current is not None:
            self.desk.store.remove(DEMO)
            self.current, self.former = None, []

    @invariant()
    def what_should_be_there_is_there_and_nothing_else(self) -> None:
        if not hasattr(self, "desk"):
            return
        wanted = [one for one in (self.current, *self.former) if one is not None]
        if self.current is None:
            with pytest.raises(AppError):
                self.desk.store.resolve(DEMO)
        else:
            assert weights(self.desk) == tiny_model(self.current)
            listed = [one.bundle for one in rolling.versions(DEMO, self.desk.store)]
            assert listed == [f"prod {seq}" for seq in wanted]
        large = {f"sha256-{Digest.of(tiny_model(seq)).hex}" for seq in wanted}
        assert large <= blobs(self.desk)
        assert pruning.unused(self.desk.store, now_s=1e12) == ()

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()


TestHistory = History.TestCase
TestHistory.settings = settings(deadline=None, max_examples=15, stateful_step_count=10)
