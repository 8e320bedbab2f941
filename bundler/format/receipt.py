"""Receipts of imports as they travel: signed by a site's device key, and one page for people. Pure.

The payload of the envelope is the receipt's file as the site keeps it, byte for byte; each names
the digest of the one before, so that a gap or a second history shows. docs/bundle-format.md, 14.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bundler.format import envelope
from bundler.format.digest import Digest
from bundler.format.envelope import Envelope
from bundler.format.errors import ReceiptError
from bundler.format.keys import PublicKey, SigningKey, key_words
from bundler.format.strict import Reader, parse_json

PAYLOAD_TYPE: Final = "application/vnd.satchel.receipt.v1+json"
SUFFIX: Final = ".receipt.dsse.json"
MAX_RECEIPT_BYTES: Final = 1 << 20
_MAX_LIST: Final = 4_096
_WIDTH: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadReceipt:
    """A receipt as it came, and the envelope it came in. Trusted only as far as it is signed.

    Attributes:
        members: the receipt's fields, as JSON values.
        envelope: with the signature.
    """

    members: Mapping[str, Any]
    envelope: Envelope

    @property
    def number(self) -> int:
        """Its place among the site's receipts, from 1."""
        return int(self.members["number"])

    @property
    def digest(self) -> Digest:
        """What the next receipt calls it by."""
        return Digest.of(self.envelope.payload)

    def signed_by(self, key: PublicKey) -> bool:
        """Whether this key signed it."""
        return bool(envelope.signers(self.envelope, {key.key_id: key}))


def sign_receipt(data: bytes, key: SigningKey | None) -> bytes:
    """The envelope around a receipt's file; unsigned without a key.

    Raises:
        EnvelopeError: it is too large.
    """
    empty = Envelope(payload_type=PAYLOAD_TYPE, payload=data, signatures=())
    return envelope.encode(envelope.add_signatures(empty, () if key is None else (key,)))


def read_receipt(data: bytes) -> ReadReceipt:
    """Read an envelope. Its signature is not judged here.

    Raises:
        JsonError: envelope or receipt is not strict JSON.
        EnvelopeError: it is no envelope of a receipt.
        ReceiptError: a field is missing or wrong.
    """
    parsed = envelope.parse(data, payload_type=PAYLOAD_TYPE, max_payload_bytes=MAX_RECEIPT_BYTES)
    members = parse_json(parsed.payload, max_bytes=MAX_RECEIPT_BYTES)
    _check(members)
    return ReadReceipt(members=members, envelope=parsed)


def _check(members: dict[str, Any]) -> None:
    """The fields that a page shows and a chain needs; others are a newer release's."""
    reader = Reader(members, "", error=ReceiptError)
    reader.integer("number", at_least=1)
    reader.text("previous", empty=True)
    for name in ("bundle_id", "channel", "statement", "at", "version"):
        reader.text(name)
    reader.integer("seq", at_least=1)
    for name in ("signed_by", "approved_by"):
        if name in reader.names():
            found = reader.anything(name)
            if not all(isinstance(value, str) for value in found.values()):
                reader.refuse(name, "labels by key id", found)
    if "warnings" in reader.names():
        reader.items("warnings", lambda one, at: one.text(at, max_bytes=4096), at_most=_MAX_LIST)
    _rows(reader, "installed", ("name", "variant", "manifest", "weights"))
    if "acceptance" in reader.names():
        _rows(reader, "acceptance", ("name", "check", "kind", "expected", "found"))


def _rows(reader: Reader, name: str, fields: Sequence[str]) -> None:
    value = reader.take(name)
    if not isinstance(value, list) or len(value) > _MAX_LIST:
        reader.refuse(name, f"a list of at most {_MAX_LIST}", value)
    for place, row in enumerate(value):
        inner = Reader(row, f"{name}[{place}]", error=ReceiptError)
        for field in fields:
            inner.text(field, max_bytes=1_024)


def chain_gaps(receipts: Iterable[ReadReceipt]) -> tuple[str, ...]:
    """What is wrong between receipts of one site, in order of number; empty when nothing is."""
    ordered = sorted(receipts, key=lambda one: one.number)
    problems = []
    for one, following in itertools.pairwise(ordered):
        if following.number == one.number:
            if following.digest != one.digest:
                problems.append(f"receipt {one.number} is there twice, with other content")
        elif following.number != one.number + 1:
            problems.append(f"receipts {one.number + 1} to {following.number - 1} are missing")
        elif following.members["previous"] != str(one.digest):
            problems.append(f"receipt {following.number} does not follow this receipt {one.number}")
    return tuple(problems)


def transcript(members: Mapping[str, Any], digest: Digest, *, site: str = "") -> str:
    """One page for people: what came in, whose signature, what was tried, what is installed.

    Args:
        members: the receipt's fields.
        digest: of its file.
        site: the site's name, if it has one.
    """
    number = int(members["number"])
    lines = [
        f"SATCHEL IMPORT RECEIPT {number:06d}" + (f"  {site}" if site else ""),
        "",
        _row("imported at", f"{members['at']}, by satchel {members['version']}"),
        _row("bundle", f"{members['channel']} {members['seq']}  ({members['bundle_id']})"),
        _row("statement", members["statement"]),
        *_people("signed by", members["signed_by"]),
        *_people("approved by", members.get("approved_by", {})),
        "",
    ]
    for one in members["installed"]:
        lines += [
            _row("installed", f"{one['name']}  ({one['variant']})"),
            _row("  model", one["manifest"]),
            _row("  weights", one["weights"]),
        ]
    lines.append(_row("copied", f"{members.get('copied_bytes', 0)} bytes"))
    if members.get("acceptance"):
        lines.append("")
    for one in members.get("acceptance", ()):
        text = f"{one['name']} {one['check']}: {one['found']} (expected {one['expected']})"
        lines.append(_row("accepted", text))
    if members.get("warnings"):
        lines.append("")
    lines += [_row("warning", text) for text in members.get("warnings", ())]
    lines += [
        "",
        _row("after", members["previous"] or "no receipt"),
        _row("this one", str(digest)),
        "",
        _row("seen by", "_" * 24 + "  on " + "_" * 12),
    ]
    return "".join(_printable(line) + "\n" for line in lines)


def _people(label: str, keys: Mapping[str, Any]) -> list[str]:
    return [
        _row(label, f"{name}  {key_words(key)}" if len(key) == 64 else str(name))  # type: ignore[arg-type]  # noqa: PLR2004 - a key id
        for key, name in sorted(keys.items())
    ]


def _row(label: str, text: object) -> str:
    return f"{label:<14}{text}"


def _printable(line: str) -> str:
    """What stands in a receipt acts on no terminal; long lines are cut."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in line)
    return shown if len(shown) <= _WIDTH else shown[: _WIDTH - 1] + "…"
