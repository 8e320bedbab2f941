"""Imports that wait for another medium: what is staged for them, and how it is given up.

Beside the staged files lies one record per bundle. It says whose they are, what was still missing
the last time, and on which volumes that is. It is a note for people and for tidying, not a source
of truth: an import believes the markers, and of those only what it has checked.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from appliance.errors import NoSpaceError, RequestError, store_io
from appliance.layout import Paths
from appliance.staging import discard, marker_of
from bundler.format import fsio
from bundler.format.digest import Digest
from bundler.format.errors import FormatError
from hwprobe.quantity import Bytes

_MAX_RECORD_BYTES = 4 << 20
_SUFFIX = ".job"


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingFile:
    """One large file of an unfinished import.

    Attributes:
        digest: of the plain file; ``index`` of its chunk index.
        size_bytes: of the plain file.
        missing: chunks that could not be had, as runs ``[first, end)``; empty before the first
            medium was read to its end.
    """

    digest: str
    index: str
    size_bytes: int
    missing: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished:
    """One import that is not finished.

    Attributes:
        statement: digest of the bundle's signed statement.
        channel: of the bundle, with ``seq`` and ``bundle_id``.
        begun: when, RFC 3339.
        needs: why it waits: volumes, or damaged chunks.
        files: what is being put together.
    """

    statement: str
    channel: str
    seq: int
    bundle_id: str
    begun: str
    needs: str = ""
    files: tuple[WaitingFile, ...]

    @property
    def label(self) -> str:
        """How an operator names it: ``CHANNEL:SEQ``."""
        return f"{self.channel}:{self.seq}"

    def record(self, paths: Paths) -> Path:
        """Where this is noted."""
        return paths.staging / f"sha256-{Digest.parse(self.statement).hex}{_SUFFIX}"

    def paths(self, paths: Paths) -> tuple[Path, ...]:
        """Its staging files and their markers, there or not."""
        staged = [paths.staged(Digest.parse(file.digest)) for file in self.files]
        return (*staged, *(marker_of(path) for path in staged))

    def staged_bytes(self, paths: Paths) -> int:
        """What it takes on the disk."""
        total = 0
        for path in self.paths(paths):
            try:
                total += path.stat().st_blocks * 512
            except OSError:
                continue
        return total


def note(paths: Paths, job: Unfinished) -> None:
    """Write the record of an import, durably.

    Raises:
        NoSpaceError: there is no room even for it.
        StoreAccessError: it cannot be written.
    """
    with store_io("note an unfinished import"):
        data = json.dumps({"v": 1, **asdict(job)}).encode()
        fsio.atomic_write(job.record(paths), data, mode=0o600)


def forget(paths: Paths, job: Unfinished) -> None:
    """Remove the record; the staged files are somebody else's concern.

    Raises:
        StoreAccessError: it cannot be removed.
    """
    with store_io("forget an unfinished import"):
        job.record(paths).unlink(missing_ok=True)


def unfinished(paths: Paths) -> tuple[Unfinished, ...]:
    """Every import that waits, in order of label; a record nobody can read counts for none."""
    found = []
    try:
        records = sorted(paths.staging.glob(f"*{_SUFFIX}"))
    except OSError:
        return ()
    for path in records:
        try:
            job = _parse(json.loads(fsio.read_bounded(path, max_bytes=_MAX_RECORD_BYTES)))
            if path == job.record(paths):
                found.append(job)
        except (ValueError, KeyError, TypeError, RecursionError, FormatError):
            continue
    return tuple(sorted(found, key=lambda job: (job.channel, job.seq)))


def _parse(record: Mapping[str, Any]) -> Unfinished:
    files = tuple(
        WaitingFile(
            digest=str(Digest.parse(one["digest"])),
            index=str(Digest.parse(one["index"])),
            size_bytes=int(one["size_bytes"]),
            missing=tuple((int(first), int(end)) for first, end in one["missing"]),
        )
        for one in record["files"]
    )
    return Unfinished(
        statement=str(Digest.parse(record["statement"])),
        channel=str(record["channel"]),
        seq=int(record["seq"]),
        bundle_id=str(record["bundle_id"]),
        begun=str(record["begun"]),
        needs=str(record["needs"]),
        files=files,
    )


def check_quota(paths: Paths, job: Unfinished, limit_bytes: int) -> None:
    """Refuse a new import when those that wait take too much already.

    Args:
        paths: the store.
        job: the import that wants to begin.
        limit_bytes: what all of them may take together; 0 for no limit.

    Raises:
        NoSpaceError: they would take more.
    """
    if not limit_bytes:
        return
    others = [one for one in unfinished(paths) if one.statement != job.statement]
    taken = sum(one.staged_bytes(paths) for one in others)
    need = sum(file.size_bytes for file in job.files)
    if taken + need > limit_bytes:
        names = ", ".join(one.label for one in others)
        raise NoSpaceError(
            f"staging: expected at most {Bytes(limit_bytes)} of unfinished imports, "
            f"found {Bytes(taken)} and {Bytes(need)} to come",
            hint=f"give one up: satchel staging --drop {others[0].label} (there are {names})"
            if others
            else "raise store.staging_limit",
        )


def drop(paths: Paths, jobs: Iterable[Unfinished]) -> None:
    """Give imports up: their files first, then the records; the caller holds the lock.

    Raises:
        StoreAccessError: something cannot be removed.
    """
    for job in jobs:
        for file in job.files:
            discard(paths.staged(Digest.parse(file.digest)))
        forget(paths, job)


def chosen(paths: Paths, text: str) -> tuple[Unfinished, ...]:
    """The imports an operator means with ``CHANNEL:SEQ`` or ``all``.

    Raises:
        RequestError: none is called that.
    """
    jobs = unfinished(paths)
    found = jobs if text == "all" else tuple(job for job in jobs if job.label == text)
    if not found and text != "all":
        there = ", ".join(job.label for job in jobs) or "none"
        raise RequestError(
            f"staging: expected an unfinished import, found {text!r}", hint=f"there are: {there}"
        )
    return found
