"""Imports that wait for approvals: verified and staged, but no name stands for them yet.

Below ``waiting/<statement hex>/`` lies what is needed to go on without the medium: the envelope,
the small files, what the operator asked for, and one file per approval. The weights are blobs of
the store already. The envelope is written last: a directory without one is not there.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.errors import RequestError, StoreCorruptError, store_io
from appliance.layout import Paths
from bundler.format import fsio
from bundler.format.consent import verify_approval
from bundler.format.digest import Digest
from bundler.format.envelope import KeyRole
from bundler.format.envelope import parse as parse_envelope
from bundler.format.errors import BundleError
from bundler.format.keys import KeyId
from bundler.format.limits import MAX_ENVELOPE_BYTES, MAX_PERMIT_BYTES
from bundler.format.manifest import Manifest
from bundler.format.statement import parse_manifest
from bundler.format.volume import ENVELOPE_NAME, PERMIT_NAME

_ASKED = "asked.json"
_APPROVALS = "approvals"
_NAME = re.compile(r"[0-9a-f]{64}")
_MODE = 0o644


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the operator asked of the import.

    Attributes:
        models: short names, or all where empty.
        variants: ids, or the best one where empty.
        all_variants: every one.
        allow_rollback: as typed.
        allow_channel: as typed.
        at: when it was staged, RFC 3339 in UTC.
    """

    models: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    all_variants: bool = False
    allow_rollback: str = ""
    allow_channel: str = ""
    at: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """One import that waits.

    Attributes:
        statement: digest of its signed bytes.
        path: a bundle directory without segments.
        manifest: what the statement says; it was verified when it was staged.
        asked: what the operator asked for.
    """

    statement: Digest
    path: Path
    manifest: Manifest
    asked: Asked

    @property
    def name(self) -> str:
        """What an operator types."""
        return f"{self.manifest.bundle.channel}:{self.manifest.bundle.seq}"


def keep(
    paths: Paths,
    statement: Digest,
    *,
    envelope: bytes,
    files: Iterable[bytes],
    permit: bytes | None,
    asked: Asked,
) -> None:
    """Let an import wait; approvals that are there already stay.

    Raises:
        StoreAccessError: it cannot be written.
        NoSpaceError: likewise.
    """
    directory = paths.waiting / statement.hex
    blobs = directory / "blobs" / "sha256"
    with store_io("stage the import for approval"):
        (directory / _APPROVALS).mkdir(parents=True, exist_ok=True)
        blobs.mkdir(parents=True, exist_ok=True)
        for data in files:
            fsio.atomic_write(blobs / Digest.of(data).hex, data, mode=_MODE)
        if permit is not None:
            fsio.atomic_write(directory / PERMIT_NAME, permit, mode=_MODE)
        written = json.dumps(
            {
                "models": list(asked.models),
                "variants": list(asked.variants),
                "all_variants": asked.all_variants,
                "allow_rollback": asked.allow_rollback,
                "allow_channel": asked.allow_channel,
                "at": asked.at,
            }
        )
        fsio.atomic_write(directory / _ASKED, written.encode(), mode=_MODE)
        for made in (blobs, blobs.parent, directory, paths.waiting, paths.waiting.parent):
            fsio.fsync_dir(made)
        fsio.atomic_write(directory / ENVELOPE_NAME, envelope, mode=_MODE)


def all_waiting(paths: Paths) -> tuple[Waiting, ...]:
    """Every import that waits, in order of name.

    Raises:
        StoreCorruptError: one of them is damaged.
        StoreAccessError: it cannot be read.
    """
    if not paths.waiting.is_dir():
        return ()
    with store_io("read what waits for approval"):
        found = [
            _read(path)
            for path in sorted(paths.waiting.iterdir())
            if _NAME.fullmatch(path.name) and (path / ENVELOPE_NAME).is_file()
        ]
    return tuple(sorted(found, key=lambda one: (one.name, one.statement)))


def _read(path: Path) -> Waiting:
    try:
        data = fsio.read_bounded(path / ENVELOPE_NAME, max_bytes=MAX_ENVELOPE_BYTES)
        payload = parse_envelope(data).payload
        value: dict[str, Any] = json.loads((path / _ASKED).read_bytes())
        asked = Asked(
            models=tuple(value["models"]),
            variants=tuple(value["variants"]),
            all_variants=bool(value["all_variants"]),
            allow_rollback=str(value["allow_rollback"]),
            allow_channel=str(value["allow_channel"]),
            at=str(value["at"]),
        )
        manifest = parse_manifest(payload)
    except (BundleError, ValueError, KeyError, TypeError, OSError) as error:
        raise StoreCorruptError(
            f"waiting import {path.name[:12]}: damaged: {error}",
            hint=f"remove {path} and import the bundle again",
        ) from error
    if Digest.of(payload).hex != path.name:
        raise StoreCorruptError(f"waiting import {path.name[:12]}: expected it, found another")
    return Waiting(statement=Digest(path.name), path=path, manifest=manifest, asked=asked)


def find(paths: Paths, which: str) -> Waiting:
    """The import that waits under ``channel:seq``, or a digest from eight digits on.

    Raises:
        RequestError: none or several match.
    """
    least = 8
    hexadecimal = which.removeprefix("sha256:")
    found = [
        one
        for one in all_waiting(paths)
        if one.name == which
        or (len(hexadecimal) >= least and one.statement.hex.startswith(hexadecimal))
    ]
    if len(found) != 1:
        raise RequestError(
            f"expected one import that waits for approval, found {len(found)} for {which!r}",
            hint="see: satchel approve",
        )
    return found[0]


def approved_by(paths: Paths, statement: Digest, role: KeyRole, *, site: str) -> frozenset[KeyId]:
    """The distinct approvers whose approvals of a waiting import still count.

    Raises:
        StoreAccessError: they cannot be read.
    """
    directory = paths.waiting / statement.hex / _APPROVALS
    found: set[KeyId] = set()
    with store_io("read the approvals"):
        entries = sorted(directory.iterdir()) if directory.is_dir() else []
        for path in entries:
            try:
                data = fsio.read_bounded(path, max_bytes=MAX_PERMIT_BYTES)
                found |= verify_approval(data, role, statement=statement, site=site)
            except BundleError:
                continue  # a key that is no approver any more, or a file that is none
    return frozenset(found)


def add_approval(paths: Paths, statement: Digest, key_id: KeyId, data: bytes) -> None:
    """Write an approval down, durably; one of the same key is replaced.

    Raises:
        StoreAccessError: it cannot be written.
        NoSpaceError: likewise.
    """
    with store_io("write the approval"):
        directory = paths.waiting / statement.hex / _APPROVALS
        fsio.atomic_write(directory / f"{key_id}.dsse.json", data, mode=_MODE)


def forget(paths: Paths, statement: Digest) -> None:
    """Forget an import that waited; the envelope goes first, so that a half one is not there.

    Raises:
        StoreAccessError: it cannot be removed.
    """
    directory = paths.waiting / statement.hex
    if not directory.exists():
        return
    with store_io("remove what waited for approval"):
        (directory / ENVELOPE_NAME).unlink(missing_ok=True)
        shutil.rmtree(directory)
        fsio.fsync_dir(paths.waiting)


def tidy(paths: Paths) -> None:
    """Remove what a crash left of imports that were about to wait, or had just been carried out.

    Raises:
        StoreAccessError: it cannot be removed.
    """
    if not paths.waiting.is_dir():
        return
    with store_io("tidy what waits for approval"):
        for directory in paths.waiting.iterdir():
            if not (directory / ENVELOPE_NAME).is_file():
                shutil.rmtree(directory)
                continue
            for temporary in directory.rglob(".*.part"):
                temporary.unlink(missing_ok=True)


def needed(paths: Paths) -> frozenset[Digest]:
    """Every file that an import which waits will refer to: these blobs are not unused.

    Raises:
        StoreCorruptError: one of them cannot be read, so what it needs is not known.
    """
    return frozenset(
        digest
        for one in all_waiting(paths)
        for digest in (
            *(artifact.digest for artifact in one.manifest.artifacts),
            *(blob.digest for blob in one.manifest.blobs),
        )
    )
