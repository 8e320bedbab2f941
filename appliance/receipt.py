"""Receipts: one JSON document per import that changed something, chained by digest.

A receipt says what came in, by whose signature, and from which bundle; it holds no prompts, no
host names and no paths, so that a reviewer can let it leave the site.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from appliance.errors import store_io
from bundler.format import fsio
from bundler.format.digest import Digest

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


def write_receipt(directory: Path, receipt: Receipt) -> Path:
    """Write a receipt under its number; the caller holds the store's lock.

    Raises:
        NoSpaceError: the file system is full.
        StoreAccessError: it cannot be written.
    """
    path = _path(directory, receipt.number)
    with store_io("write the receipt"):
        data = json.dumps(receipt.to_json(), indent=1).encode() + b"\n"
        fsio.atomic_write(path, data, mode=0o644)
    return path


def _path(directory: Path, number: int) -> Path:
    return directory / f"{number:06d}.json"
