"""Blobs that no model uses: what stays, and what is removed."""

from __future__ import annotations

import json
import os
import time

import pytest

from appliance.cli import run
from appliance.errors import StoreBusyError, StoreCorruptError
from appliance.layout import Paths
from appliance.pruning import prune, unused
from appliance.store import Store
from appliance.uploads import UploadLimits, renew
from bundler.format.digest import Digest
from bundler.format.name import ModelName
from tests.appliance.sites import Desk
from tests.fakes.forge import forge

DEMO = ModelName.parse("demo")
HOUR_S = 3600.0


def send(store: Store, data: bytes, *, hours_ago: float = 0) -> Digest:
    digest = Digest.of(data)
    with store.receiving(digest, UploadLimits(max_bytes=0, reserve_bytes=0)) as upload:
        upload.write(data)
    at_s = time.time() - hours_ago * HOUR_S
    os.utime(store.paths.blob(digest), (at_s, at_s))
    return digest


def test_nothing_is_removed_while_a_manifest_cannot_be_read(desk: Desk) -> None:
    desk.carry(forge())
    sent = send(desk.store, b"unused", hours_ago=48)
    desk.store.paths.reference(DEMO).write_bytes(b"{")
    with pytest.raises(StoreCorruptError, match="nothing is removed"):
        prune(desk.store, now_s=time.time(), grace_s=0)
    assert desk.store.paths.blob(sent).exists()


def test_nothing_is_removed_while_another_writes(desk: Desk) -> None:
    with desk.store.writing(), pytest.raises(StoreBusyError):
        prune(desk.store, now_s=time.time(), grace_s=0)


def test_what_models_use_stays_whatever_its_age(desk: Desk) -> None:
    desk.carry(forge())
    for path in desk.store.paths.blobs.iterdir():
        os.utime(path, (0, 0))
    assert unused(desk.store, now_s=time.time()) == ()
    prune(desk.store, now_s=time.time(), grace_s=0)
    assert desk.store.resolve(DEMO).model_path.exists()


def test_unused_blobs_go_after_their_grace_and_asking_renews_it(desk: Desk) -> None:
    old = send(desk.store, b"old", hours_ago=25)
    young = send(desk.store, b"young", hours_ago=23)
    asked = send(desk.store, b"asked", hours_ago=25)
    assert renew(desk.store.paths, asked)
    foreign = desk.store.paths.blobs / "README"
    foreign.write_bytes(b"not a blob")
    os.utime(foreign, (0, 0))
    gone = prune(desk.store, now_s=time.time(), grace_s=24 * HOUR_S)
    assert [blob.digest for blob in gone] == [old]
    assert {path.name for path in desk.store.paths.blobs.iterdir()} == {
        "README",
        f"sha256-{young.hex}",
        f"sha256-{asked.hex}",
    }


def test_a_store_that_is_not_there_has_nothing_unused(desk: Desk) -> None:
    assert unused(Store(Paths(desk.medium / "nowhere")), now_s=0.0) == ()


def test_the_command_says_first_and_then_does(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    sent = send(desk.store, b"x" * 2000, hours_ago=25)
    store = ["--store", str(desk.store.paths.root)]
    assert run(["prune", "--dry-run", *store]) == 0
    assert f"would remove {sent} (2 KB, unused for 25 hours)" in capsys.readouterr().out
    assert desk.store.paths.blob(sent).exists()
    assert run(["prune", "--grace", "26h", *store]) == 0
    assert capsys.readouterr().out == "removed 0 blobs, 0 B\n"
    assert run(["prune", "--json", *store]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["removed"] is True
    assert [blob["digest"] for blob in answer["blobs"]] == [str(sent)]
    assert not desk.store.paths.blob(sent).exists()
    assert run(["prune", "--grace", "soon", *store]) == 2
