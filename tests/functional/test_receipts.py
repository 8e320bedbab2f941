"""A receipt goes out on the stick and is checked in the office."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.cli import run as satchel
from appliance.device import device_key, make_device_key
from appliance.receipt import kept_receipts
from bundler.cli import run as satchel_bundle
from bundler.format.receipt import chain_gaps, read_receipt, sign_receipt
from tests.appliance.sites import Desk, make_desk
from tests.fakes.forge import STRANGER, forge, tiny_model


@pytest.fixture
def signing(tmp_path: Path) -> Desk:
    """A site with a device key."""
    desk = make_desk(tmp_path)
    make_device_key(desk.store)
    key = device_key(desk.store.paths)
    return replace(desk, site=replace(desk.site, device=key))


def three(desk: Desk) -> None:
    for seq in (1, 2, 3):
        desk.carry(forge({"F32": tiny_model(seq)}, seq=seq))


def office(desk: Desk, *words: str) -> int:
    key = device_key(desk.store.paths) or STRANGER
    public = desk.medium / "device.pub"
    public.write_text(key.public_key.text() + "\n")
    return satchel_bundle(["receipt", "verify", *words, "--device", str(public)])


def store(desk: Desk) -> list[str]:
    return ["--store", str(desk.store.paths.root)]


def test_receipts_leave_as_envelopes_and_pages_and_are_checked(
    signing: Desk, capfd: pytest.CaptureFixture[str]
) -> None:
    three(signing)
    assert satchel(["receipts", "copy", str(signing.medium), *store(signing)]) == 0
    files = [Path(line) for line in capfd.readouterr().out.splitlines()]
    envelopes = [str(path) for path in files if path.name.endswith(".receipt.dsse.json")]
    pages = [path for path in files if path.suffix == ".txt"]
    assert len(envelopes) == len(pages) == 3
    assert office(signing, *envelopes) == 0
    out = capfd.readouterr().out
    assert "SATCHEL IMPORT RECEIPT 000003" in out
    assert "3 signed by" in out
    page = pages[0].read_text()
    assert "prod 1" in page
    assert "after         no receipt" in page
    assert "seen by" in page
    assert len(page.splitlines()) < 60
    stick = forge({"F32": tiny_model(2)}, seq=2).write(signing.medium / "x")
    assert office(signing, *envelopes, "--bundle", str(stick)) == 0
    other = forge({"F32": tiny_model(9)}, seq=9).write(signing.medium / "y")
    assert office(signing, *envelopes, "--bundle", str(other)) == 11
    assert "no receipt is of the bundle" in capfd.readouterr().err


def test_a_receipt_that_is_missing_or_replaced_shows(
    signing: Desk, capfd: pytest.CaptureFixture[str]
) -> None:
    three(signing)
    satchel(["receipts", "copy", str(signing.medium), *store(signing)])
    first, _, third = sorted(map(str, signing.medium.rglob("*.receipt.dsse.json")))
    assert office(signing, first, third) == 11
    assert "receipts 2 to 2 are missing" in capfd.readouterr().err
    key = device_key(signing.store.paths)
    kept = kept_receipts(signing.store.paths.receipts)
    changed = json.loads(kept[0].data)
    changed["copied_bytes"] = 0
    lie = read_receipt(sign_receipt(json.dumps(changed).encode(), key))
    rest = [read_receipt(one.envelope) for one in kept[1:]]
    assert chain_gaps([lie, *rest]) == ("receipt 2 does not follow this receipt 1",)
    assert "there twice" in chain_gaps([lie, read_receipt(kept[0].envelope)])[0]


def test_a_receipt_nobody_or_a_stranger_signed_is_refused(
    signing: Desk, capfd: pytest.CaptureFixture[str]
) -> None:
    three(signing)
    kept = kept_receipts(signing.store.paths.receipts)[0]
    for key, found in ((None, "found none"), (STRANGER, "found another signature")):
        path = signing.medium / "lie.receipt.dsse.json"
        path.write_bytes(sign_receipt(kept.data, key))
        assert office(signing, str(path)) == 11
        assert found in capfd.readouterr().err


def test_without_a_device_key_receipts_are_kept_and_not_signed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    desk = make_desk(tmp_path)
    three(desk)
    assert satchel(["receipts", "list", *store(desk)]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all("not signed" in line for line in lines)
    assert satchel(["receipts", "show", "2", *store(desk)]) == 0
    assert "prod 2" in capfd.readouterr().out
    assert satchel(["receipts", "show", "9", *store(desk)]) == 2
    assert satchel(["receipts", "copy", str(desk.medium / "absent"), *store(desk)]) == 1


def test_an_import_writes_its_receipt_to_the_medium_if_it_can(
    signing: Desk, capfd: pytest.CaptureFixture[str]
) -> None:
    bundle = forge().write(signing.medium)
    words = ["import", str(bundle), *store(signing), "--receipt"]
    assert satchel([*words, str(signing.medium / "absent")]) == 0
    assert "kept here only" in capfd.readouterr().err
    assert satchel([*words, str(signing.medium)]) == 0
    (written,) = signing.medium.rglob("*.receipt.dsse.json")
    assert written.parent.name == "site"
    key = device_key(signing.store.paths)
    assert key is not None
    assert read_receipt(written.read_bytes()).signed_by(key.public_key)
