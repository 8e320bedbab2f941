"""Receipts: one JSON document per import that changed something, chained by digest.

A receipt says what came in, by whose signature, and from which bundle; it holds no prompts, no
host names and no paths, so that a reviewer can let it leave the site. With a device key it is
signed, and leaves as an envelope and a page (`carry_out`).
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from appliance.errors import RequestError, StoreCorruptError, store_io
from bundler.format import fsio
from bundler.format.digest import Digest
from bundler.format.errors import BundleError, MediumError, MissingBlobError
from bundler.format.keys import SigningKey
from bundler.format.receipt import (
    MAX_RECEIPT_BYTES,
    SUFFIX,
    read_receipt,
    sign_receipt,
    transcript,
)

_NAME = re.compile(r"([0-9]{6,})\.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledEntry:
    """One name that the import set.

    Attributes:
        name: the model's name in short form.
        variant: id of the variant.
        manifest: digest of its manifest file; the id of the model.
        weights: digest of its weights.
        size_bytes: of the weights.
    """

    name: str
    variant: str
    manifest: str
    weights: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedEntry:
    """One acceptance check that the model passed here.

    Attributes:
        name: of the model, in short form.
        check: id of the check, and ``kind`` what it measures.
        expected: what was signed, and ``found`` what was measured, as text.
    """

    name: str
    check: str
    kind: str
    expected: str
    found: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What an import did.

    Attributes:
        number: counts from 1; 0 when nothing was changed and none was written.
        previous: digest of the receipt before, or empty.
        changed: whether the import changed anything.
        bundle_id: the signed id; with ``channel``, ``seq`` and the ``statement``'s digest.
        signed_by: labels of the trusted keys that signed, by key id.
        approved_by: labels of the approvers, by key id; empty where none is asked for.
        installed: the names that now stand for models of the bundle.
        copied_bytes: plain bytes written to the store.
        at: wall time, RFC 3339.
        version: of the importer.
        warnings: what the operator was warned of.
        acceptance: checks that were run here.
    """

    number: int
    previous: str
    changed: bool
    bundle_id: str
    channel: str
    seq: int
    statement: str
    signed_by: Mapping[str, str]
    installed: tuple[InstalledEntry, ...]
    copied_bytes: int
    at: str
    version: str
    warnings: tuple[str, ...] = ()
    approved_by: Mapping[str, str] = field(default_factory=dict)
    acceptance: tuple[AcceptedEntry, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            **asdict(self),
            "signed_by": dict(self.signed_by),
            "approved_by": dict(self.approved_by),
        }


def last_receipt(directory: Path) -> tuple[int, str]:
    """Number and digest of the newest receipt, or 0 and an empty text.

    Raises:
        StoreAccessError: the receipts cannot be read.
    """
    with store_io("read the receipts"):
        if not directory.is_dir():
            return 0, ""
        names = (entry.name for entry in directory.iterdir())
        numbers = [int(match[1]) for name in names if (match := _NAME.fullmatch(name))]
        # A file with needless zeros is not one that we wrote.
        numbers = [number for number in numbers if _path(directory, number).is_file()]
        if not numbers:
            return 0, ""
        newest = max(numbers)
        return newest, str(Digest.of(_path(directory, newest).read_bytes()))


def write_receipt(directory: Path, receipt: Receipt, key: SigningKey | None = None) -> Path:
    """Write a receipt under its number, and its signature beside it; the caller holds the lock.

    Raises:
        NoSpaceError: the file system is full.
        StoreAccessError: it cannot be written.
    """
    path = _path(directory, receipt.number)
    with store_io("write the receipt"):
        data = json.dumps(receipt.to_json(), indent=1).encode() + b"\n"
        fsio.atomic_write(path, data, mode=0o644)
        if key is not None:
            fsio.atomic_write(_signed(directory, receipt.number), sign_receipt(data, key))
    return path


def _signed(directory: Path, number: int) -> Path:
    return directory / f"{number:06d}{SUFFIX}"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptReceipt:
    """A receipt of this site.

    Attributes:
        data: its file, and ``envelope`` the signed form, empty where there was no device key.
        members: its fields.
    """

    number: int
    data: bytes
    envelope: bytes
    members: Mapping[str, Any]

    def transcript(self, site: str) -> str:
        """The page for people."""
        return transcript(self.members, Digest.of(self.data), site=site)


def kept_receipts(directory: Path) -> tuple[KeptReceipt, ...]:
    """Every receipt, the oldest first.

    Raises:
        StoreAccessError: they cannot be read.
        StoreCorruptError: one is none.
    """
    with store_io("read the receipts"):
        names = [entry.name for entry in directory.iterdir()] if directory.is_dir() else []
    numbers = sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))
    return tuple(read_kept(directory, number) for number in numbers)


def read_kept(directory: Path, number: int) -> KeptReceipt:
    """One receipt.

    Raises:
        RequestError: there is none of that number.
        StoreAccessError: it cannot be read.
        StoreCorruptError: it is none.
    """
    signed = b""
    with store_io("read a receipt"):
        try:
            data = fsio.read_bounded(_path(directory, number), max_bytes=MAX_RECEIPT_BYTES)
        except MissingBlobError as error:
            raise RequestError(
                f"receipt {number}: expected one of this number, found none",
                hint="see: satchel receipts list",
            ) from error
        with contextlib.suppress(MissingBlobError):
            signed = fsio.read_bounded(_signed(directory, number), max_bytes=2 * MAX_RECEIPT_BYTES)
    try:
        members = read_receipt(sign_receipt(data, None)).members
    except BundleError as error:
        raise StoreCorruptError(f"receipt {number}: {error}") from error
    return KeptReceipt(number=number, data=data, envelope=signed, members=members)


def carry_out(receipts: Iterable[KeptReceipt], medium: Path, site: str) -> tuple[Path, ...]:
    """Write receipts to a medium: ``receipts/<site>/<number>`` as an envelope and as a page.

    Args:
        receipts: which.
        medium: an existing directory.
        site: the site's name, or empty.

    Returns:
        The files, envelopes and pages in turn; an unsigned receipt travels in an empty envelope.

    Raises:
        MediumError: the medium is not there, or cannot be written.
        NoSpaceError: it is full.
    """
    if not medium.is_dir():
        raise MediumError(
            f"{medium}: expected a directory, found none", hint="is the stick mounted there?"
        )
    folder = medium / "receipts" / (site or "site")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fsio.raise_io(error, folder)
    written = []
    for one in receipts:
        envelope = _signed(folder, one.number)
        page = folder / f"{one.number:06d}.txt"
        fsio.atomic_write(envelope, one.envelope or sign_receipt(one.data, None))
        fsio.atomic_write(page, one.transcript(site).encode())
        written += [envelope, page]
    return tuple(written)


def _path(directory: Path, number: int) -> Path:
    return directory / f"{number:06d}.json"
