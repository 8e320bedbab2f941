"""Remove blobs that no model uses.

Rules:
 * a blob is removed only when every manifest of the store could be read and none names it, those
   of previous versions included;
 * a blob that was sent, asked for or imported within the grace stays: its model may be about to
   be made;
 * only files that are named like blobs are looked at.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from appliance import waiting
from appliance.catalogue import Catalogue
from appliance.errors import AppError, StoreCorruptError, store_io
from appliance.journal import Journal
from appliance.model import parse_image
from appliance.previous import every_former, names_with_formers
from appliance.store import Store
from bundler.format import fsio
from bundler.format.digest import Digest

_BLOB = re.compile(r"sha256-([0-9a-f]{64})")


@dataclass(frozen=True, slots=True, kw_only=True)
class UnusedBlob:
    """A blob that no manifest names.

    Attributes:
        digest: its name.
        size_bytes: its size.
        idle_s: seconds since it was last sent, asked for or imported.
    """

    digest: Digest
    size_bytes: int
    idle_s: float


def unused(catalogue: Catalogue, *, now_s: float) -> tuple[UnusedBlob, ...]:
    """Every blob no manifest names, by name.

    Args:
        catalogue: the store.
        now_s: wall time in seconds since the epoch.

    Raises:
        StoreCorruptError: a manifest cannot be read, so what it needs is not known.
        StoreAccessError: a directory cannot be listed.
    """
    needed = _needed(catalogue)
    found = []
    with store_io("list the blobs"):
        for entry in _entries(catalogue.paths.blobs):
            match = _BLOB.fullmatch(entry.name)
            if match is None or not entry.is_file(follow_symlinks=False):
                continue
            digest = Digest(match[1])
            if digest not in needed:
                status = entry.stat(follow_symlinks=False)
                idle_s = max(0.0, now_s - status.st_mtime)
                found.append(UnusedBlob(digest=digest, size_bytes=status.st_size, idle_s=idle_s))
    return tuple(sorted(found, key=lambda blob: blob.digest))


def prune(store: Store, *, now_s: float, grace_s: float) -> tuple[UnusedBlob, ...]:
    """Remove the unused blobs that are past their grace.

    Returns:
        What was removed.

    Raises:
        StoreBusyError: another process is writing.
        StoreError: a manifest cannot be read, or a blob cannot be removed.
    """
    with store.writing():
        return prune_locked(store, now_s=now_s, grace_s=grace_s)


def prune_locked(store: Store, *, now_s: float, grace_s: float) -> tuple[UnusedBlob, ...]:
    """`prune` for who holds the lock already; raises as it, but for being busy."""
    gone = past_grace(unused(store, now_s=now_s), grace_s)
    for blob in gone:
        with store_io(f"remove blob {blob.digest.short()}"):
            store.paths.blob(blob.digest).unlink(missing_ok=True)
    if gone:
        with store_io("flush the directory of blobs"):
            fsio.fsync_dir(store.paths.blobs)
        freed_bytes = sum(blob.size_bytes for blob in gone)
        Journal(store.paths.journal).record("pruned", blobs=len(gone), freed_bytes=freed_bytes)
    return gone


def trim(store: Store, *, keep: int) -> int:
    """Keep at most so many previous versions of each model.

    Returns:
        Bytes freed.

    Raises:
        StoreBusyError: another process is writing.
        StoreError: a file cannot be read or removed.
    """
    with store.writing() as writer:
        names = names_with_formers(store.paths)
        freed_bytes = sum(writer.trim(name, keep) for name in names)
        if freed_bytes:
            Journal(store.paths.journal).record("pruned", keep=keep, freed_bytes=freed_bytes)
        return freed_bytes


def past_grace(blobs: Iterable[UnusedBlob], grace_s: float) -> tuple[UnusedBlob, ...]:
    """Those that have been idle for the whole grace."""
    return tuple(blob for blob in blobs if blob.idle_s >= grace_s)


def _needed(catalogue: Catalogue) -> set[Digest]:
    needed: set[Digest] = set(waiting.needed(catalogue.paths))
    for name in catalogue.names():
        try:
            image = parse_image(catalogue.manifest(name))
        except AppError as error:
            raise StoreCorruptError(
                f"{name.short()}: {error}: what it needs is not known, so nothing is removed",
                hint=f"import it again, or remove it with: satchel rm {name.short()}",
            ) from error
        needed |= {part.digest for part in image.parts}
    for former in every_former(catalogue.paths):
        try:
            needed |= {part.digest for part in parse_image(former.manifest).parts}
        except AppError as error:
            raise StoreCorruptError(
                f"{former.path}: {error}: what it needs is not known, so nothing is removed",
                hint="remove that file: it keeps a previous version for satchel rollback",
            ) from error
    return needed


def _entries(directory: Path) -> tuple[os.DirEntry[str], ...]:
    try:
        with os.scandir(directory) as entries:
            return tuple(entries)
    except FileNotFoundError:
        return ()
