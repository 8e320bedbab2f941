"""Attacks on the trust path that once worked, or nearly did."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from appliance.cli import run
from appliance.errors import AppError, OlderBundleError, StoreError, UnusableModelError
from appliance.layout import Paths
from appliance.policyfile import load_policy, save_policy
from appliance.receipt import last_receipt
from appliance.store import Store
from appliance.trust import TrustPolicy
from bundler.format.digest import Digest
from bundler.format.errors import DamagedError
from bundler.format.manifest import BlobRef, sum_totals
from bundler.format.name import ModelName
from hwprobe.errors import ProbeError
from tests.appliance.sites import Desk, snapshot
from tests.fakes.forge import forge, tiny_model

DEMO = ModelName.parse("demo")
ESCAPES = "\x1b]0;owned\x07\n\u202e"


def _uncount(desk: Desk) -> None:
    """As after a crash between the last name and the channel's counter."""
    with desk.store.writing():
        kept = load_policy(desk.store.paths.trust)
        save_policy(desk.store.paths.trust, TrustPolicy(keys=kept.keys))


def test_an_older_bundle_stays_out_after_a_crash_and_a_removal(desk: Desk) -> None:
    desk.carry(forge({"F32": tiny_model(2)}, seq=42))
    _uncount(desk)
    desk.store.remove(DEMO)
    with pytest.raises(OlderBundleError):
        desk.carry(forge({"F32": tiny_model(1)}, seq=41))


def test_what_a_removal_kept_for_counting_goes_when_it_is_counted(desk: Desk) -> None:
    desk.carry(forge({"F32": tiny_model(2)}, seq=42))
    _uncount(desk)
    desk.store.remove(DEMO)
    assert len(desk.store.paths.all_uncounted()) == 1
    desk.carry(forge({"F32": tiny_model(3)}, seq=43))
    assert desk.store.paths.all_uncounted() == ()
    assert set(load_policy(desk.store.paths.trust).accepted["prod"]) == {42, 43}


def test_removing_a_counted_model_leaves_no_record_of_it(desk: Desk) -> None:
    desk.carry(forge())
    desk.store.remove(DEMO)
    assert desk.store.paths.all_uncounted() == ()
    assert list(desk.store.paths.provenances.iterdir()) == []


def test_errors_never_act_on_a_terminal_or_a_log() -> None:
    for error in (AppError(ESCAPES, hint=ESCAPES), ProbeError(ESCAPES, hint=ESCAPES)):
        assert str(error).isprintable()
        assert error.hint.isprintable()


def test_one_small_file_named_many_times_is_not_held_many_times(desk: Desk) -> None:
    bundle = forge(layers=[("license", bytes(1 << 20))])
    model = bundle.manifest.models[0]
    many = dataclasses.replace(model, layers=model.layers * 65)
    directory = bundle.with_manifest(models=(many,)).write(desk.medium)
    before = snapshot(desk.store.paths.root)
    with pytest.raises(UnusableModelError, match="layers"):
        desk.take(directory)
    assert snapshot(desk.store.paths.root) == before
    assert [type(one) for one in desk.check(directory).findings] == [UnusableModelError]


@pytest.mark.parametrize(
    ("name", "value"),
    [("block_count", 2**53 - 1), ("kv_heads", []), ("block_bytes", []), ("context_length", 0)],
)
def test_signed_profile_that_makes_no_sense_is_refused(desk: Desk, name: str, value: Any) -> None:
    def lie(statement: dict[str, Any]) -> None:
        statement["predicate"]["models"][0]["variants"][0]["profile"][name] = value

    directory = forge().edited(lie).write(desk.medium)
    with pytest.raises(UnusableModelError, match=name):
        desk.take(directory)
    assert desk.names() == []


def test_name_too_long_for_a_directory_is_no_name(desk: Desk) -> None:
    def lie(statement: dict[str, Any]) -> None:
        statement["predicate"]["models"][0]["name"] = "h" * 300 + "/a/b:latest"

    directory = forge().edited(lie).write(desk.medium)
    assert run(["import", str(directory), "--store", str(desk.store.paths.root)]) == 10
    assert run(["show", "h" * 300 + "/a/b", "--store", str(desk.store.paths.root)]) == 2


def test_directory_where_a_file_of_ours_belongs_is_a_fault_of_the_store(desk: Desk) -> None:
    (desk.store.paths.staging / "former").mkdir()
    with pytest.raises(StoreError):
        desk.carry(forge())


def test_file_among_the_receipts_that_is_none_is_passed_over(desk: Desk) -> None:
    desk.carry(forge(seq=1))
    (desk.store.paths.receipts / "0000009.json").write_bytes(b"{}")
    (desk.store.paths.receipts / "000008.json").mkdir()
    assert last_receipt(desk.store.paths.receipts)[0] == 1
    assert desk.carry(forge({"F32": tiny_model(2)}, seq=2)).number == 2


def test_parents_of_a_new_store_are_not_left_to_the_umask(tmp_path: Path) -> None:
    import os

    before = os.umask(0)
    try:
        with Store(Paths(tmp_path / "a" / "b" / "store")).writing():
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o755


def test_a_name_that_cannot_be_set_is_said_and_leaves_no_files(desk: Desk) -> None:
    (desk.store.paths.manifests / "registry.ollama.ai").write_bytes(b"a file where hosts go")
    before = snapshot(desk.store.paths.root)
    with pytest.raises(StoreError, match="manifest"):
        desk.carry(forge(layers=[("license", b"MIT")]))
    assert snapshot(desk.store.paths.root) == before


def test_verify_reads_also_files_that_no_import_needs(desk: Desk) -> None:
    text = b"FROM demo"
    bundle = forge()
    blob = BlobRef(digest=Digest.of(text), size_bytes=len(text))
    model = dataclasses.replace(bundle.manifest.models[0], modelfile=blob.digest)
    bundle = bundle.with_manifest(
        models=(model,),
        blobs=(blob,),
        totals=sum_totals(bundle.manifest.artifacts, (blob,)),
    )
    directory = bundle.with_file(b"FROM evil", named=blob.digest).write(desk.medium)
    assert [type(one) for one in desk.check(directory).findings] == [DamagedError]
