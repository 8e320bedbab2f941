"""Receipts are read back as they were signed, and nothing else is one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bundler.cli.receipts import verify
from bundler.errors import ReceiptRefusedError
from bundler.format import envelope
from bundler.format.digest import Digest
from bundler.format.errors import BundleError, ReceiptError
from bundler.format.receipt import (
    ReadReceipt,
    chain_gaps,
    read_receipt,
    sign_receipt,
    transcript,
)
from tests.fakes.forge import STRANGER, TRUSTED

HONEST = {
    "number": 1,
    "previous": "",
    "bundle_id": "x",
    "channel": "prod",
    "seq": 1,
    "statement": "s",
    "at": "t",
    "version": "v",
    "signed_by": {TRUSTED.public_key.key_id: "office"},
    "installed": [{"name": "demo", "variant": "f16", "manifest": "m", "weights": "w"}],
}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        envelope.sign(b"{}", [TRUSTED]),
        sign_receipt(b"{}", None),
        sign_receipt(b'{"number":0}', None),
        sign_receipt(b'{"number":1,"previous":"","bundle_id":5}', None),
    ],
)
def test_what_is_no_receipt_is_refused(data: bytes) -> None:
    with pytest.raises(BundleError):
        read_receipt(data)


def test_every_field_a_page_shows_is_checked() -> None:
    for name, wrong in (
        ("number", True),
        ("statement", 1),
        ("signed_by", {"a": 1}),
        ("warnings", [1]),
        ("installed", [{"name": "x"}]),
        ("installed", {}),
        ("acceptance", [1]),
        ("at", "a\nb\x1b[2J"),
    ):
        members = {**HONEST, name: wrong}
        with pytest.raises(ReceiptError):
            read_receipt(sign_receipt(json.dumps(members).encode(), None))


def test_a_page_acts_on_no_terminal() -> None:
    page = transcript({**HONEST, "signed_by": {"k": "a\x1b[2Jb" * 40}}, Digest.of(b""))
    assert "\x1b" not in page
    assert max(map(len, page.splitlines())) <= 100


def chained(*numbers: int) -> list[ReadReceipt]:
    """Receipts of these numbers, each naming the one before in the list."""
    found: list[ReadReceipt] = []
    for number in numbers:
        previous = str(found[-1].digest) if found else ""
        data = json.dumps({**HONEST, "number": number, "previous": previous}).encode()
        found.append(read_receipt(sign_receipt(data, TRUSTED)))
    return found


def test_a_chain_without_gaps_has_none() -> None:
    assert chain_gaps(chained(1, 2, 3)) == ()
    assert chain_gaps(reversed(chained(1, 2, 3))) == ()
    assert chain_gaps([*chained(1, 2), *chained(1, 2)]) == ()
    assert chain_gaps(chained(1, 3)) == ("receipts 2 to 2 are missing",)
    assert chain_gaps(chained(7, 2)) == ("receipts 3 to 6 are missing",)


def test_a_receipt_of_another_device_is_refused(tmp_path: Path) -> None:
    (path,) = [tmp_path / "1.receipt.dsse.json"]
    path.write_bytes(sign_receipt(json.dumps(HONEST).encode(), STRANGER))
    (tmp_path / "device.pub").write_text(TRUSTED.public_key.text())
    with pytest.raises(ReceiptRefusedError, match="found another signature"):
        verify([path], device=tmp_path / "device.pub")
    path.write_bytes(sign_receipt(json.dumps(HONEST).encode(), TRUSTED))
    verify([path], device=tmp_path / "device.pub")
