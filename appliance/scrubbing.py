"""Hash every file of the store again, to find what has changed on the disk since it was verified.

Rules:
 * reading only: no lock is held, models go on being served, and nothing is removed;
 * memory is one buffer, whatever the size of a file; pages are dropped before and after they are
   read, so that the disk is asked and what others have cached stays;
 * the position is kept: a scrub that is interrupted goes on after the last whole file;
 * damage is remembered with the file it was found in, until that file is another one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from appliance.catalogue import Catalogue
from appliance.errors import AppError, StoreBusyError, store_io
from appliance.journal import timestamp
from appliance.layout import Paths
from appliance.model import parse_image
from bundler.format import fsio
from bundler.format.digest import Digest
from bundler.format.errors import BundleError

_BLOB = re.compile(r"sha256-([0-9a-f]{64})")
_PIECE_BYTES = 1 << 20
_SAVE_S = 10.0
"""A killed scrub reads at most this long again, or one file."""
_MAX_RECORD_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """A file that is not what its name says.

    Attributes:
        digest: what it is called by.
        reason: what was found instead.
        found_at: wall time, RFC 3339.
        inode: of the file that was read, which a renewed one does not have; 0 for a missing one.
    """

    digest: str
    reason: str
    found_at: str
    inode: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What is remembered between scrubs; ``parse(r.encode()) == r``.

    Attributes:
        after: the last file that was read, in the order of digests; empty between two scrubs.
        finished_at: wall time at which a scrub last reached the end, or empty.
        checked: files read by the present or the last scrub, and ``checked_bytes`` their size.
        damaged: what is damaged as far as is known.
    """

    after: str = ""
    finished_at: str = ""
    checked: int = 0
    checked_bytes: int = 0
    damaged: tuple[Damage, ...] = ()

    def encode(self) -> bytes:
        """As a file."""
        return json.dumps(asdict(self), indent=1).encode() + b"\n"

    @classmethod
    def parse(cls, data: bytes) -> Record:
        """Read it; a malformed one counts as none: then the scrub begins at the beginning."""
        try:
            value = json.loads(data)
            damaged = tuple(
                Damage(
                    digest=str(Digest.parse(one["digest"])),
                    reason=str(one["reason"]),
                    found_at=str(one["found_at"]),
                    inode=int(one["inode"]),
                )
                for one in value["damaged"]
            )
            return cls(
                after=str(value["after"]),
                finished_at=str(value["finished_at"]),
                checked=int(value["checked"]),
                checked_bytes=int(value["checked_bytes"]),
                damaged=damaged,
            )
        except (ValueError, KeyError, TypeError, RecursionError, BundleError):
            return cls()


def read_record(paths: Paths) -> Record:
    """What the last scrub left; an empty record where there was none, or it cannot be read."""
    try:
        return Record.parse(fsio.read_bounded(paths.scrub, max_bytes=_MAX_RECORD_BYTES))
    except BundleError:
        return Record()


def save_record(paths: Paths, record: Record) -> None:
    """Remember it; raises `StoreError` or `NoSpaceError`."""
    with store_io("remember how far the scrub is"):
        fsio.atomic_write(paths.scrub, record.encode())


def still_damaged(paths: Paths, record: Record) -> tuple[Damage, ...]:
    """What was found and is not another file since then: an import or a repair renews files."""
    return tuple(
        one for one in record.damaged if _inode(paths, Digest.parse(one.digest)) == one.inode
    )


def _inode(paths: Paths, digest: Digest) -> int:
    """Of a blob; 0 where there is none."""
    try:
        return paths.blob(digest).stat().st_ino
    except OSError:
        return 0


def users(catalogue: Catalogue) -> Mapping[Digest, tuple[str, ...]]:
    """Which models use each file; manifests that cannot be read are left to `check_models`."""
    found: dict[Digest, list[str]] = {}
    for name in catalogue.names():
        with contextlib.suppress(AppError):
            for part in parse_image(catalogue.manifest(name)).parts:
                models = found.setdefault(part.digest, [])
                if name.short() not in models:
                    models.append(name.short())
    return {digest: tuple(models) for digest, models in found.items()}


def blobs(paths: Paths) -> tuple[Digest, ...]:
    """Every file that is named like a blob, in order.

    Raises:
        StoreAccessError: the directory cannot be listed.
    """
    with store_io("list the blobs"):
        try:
            names = [path.name for path in paths.blobs.iterdir()]
        except FileNotFoundError:
            return ()
    return tuple(sorted(Digest(match[1]) for name in names if (match := _BLOB.fullmatch(name))))


@dataclass(slots=True)
class Pace:
    """Keeps the mean rate since the beginning below a limit.

    Attributes:
        bytes_per_s: the limit; 0 means none.
        clock: seconds, monotonic.
        sleep: waits so many seconds.
    """

    bytes_per_s: int
    clock: Callable[[], float]
    sleep: Callable[[float], None]
    _began_s: float | None = None
    _done: int = 0

    def spend(self, size_bytes: int) -> None:
        """Account for bytes just read, and wait if they came too fast."""
        if not self.bytes_per_s:
            return
        if self._began_s is None:
            self._began_s = self.clock()
        self._done += size_bytes
        ahead_s = self._done / self.bytes_per_s - (self.clock() - self._began_s)
        if ahead_s > 0:
            self.sleep(ahead_s)


def check_blob(
    paths: Paths, digest: Digest, pace: Pace, advance: Callable[[int], None]
) -> str | None:
    """Read a blob from the disk; returns what is wrong with it, or ``None``.

    A file that is not there is no finding of this function: it may have been removed just now.
    """
    hasher = hashlib.sha256()
    buffer = memoryview(bytearray(_PIECE_BYTES))
    try:
        with paths.blob(digest).open("rb", buffering=0) as file:
            fsio.drop_cache(file.fileno())
            while count := file.readinto(buffer):
                hasher.update(buffer[:count])
                advance(count)
                pace.spend(count)
            fsio.drop_cache(file.fileno())
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"cannot be read: {(error.strerror or 'unknown error').lower()}"
    found = hasher.hexdigest()
    return None if found == digest.hex else f"its bytes have the digest sha256:{found}"


@dataclass(slots=True)
class Scrub:
    """One pass over the store, or the rest of one.

    Attributes:
        catalogue: the store.
        now: wall time in seconds since the epoch.
        clock: seconds, monotonic.
        warn: told, once, when the position cannot be kept.
        record: as it is now.
    """

    catalogue: Catalogue
    now: Callable[[], float]
    clock: Callable[[], float]
    warn: Callable[[str], None]
    record: Record = field(default_factory=Record)
    _warned: bool = False

    def left(self) -> tuple[Digest, ...]:
        """The files that are not read yet, in order."""
        return tuple(one for one in blobs(self.catalogue.paths) if one.hex > self.record.after)

    def run(self, check: Callable[[Digest], str | None]) -> None:
        """Read what is left, and remember what is found; saved also when this is interrupted.

        Args:
            check: reads one file; `check_blob` with its other arguments.

        Raises:
            StoreAccessError: the directory of blobs cannot be listed.
        """
        saved_s = self.clock()
        try:
            for digest in self.left():
                self._take(digest, check(digest))
                if self.clock() - saved_s >= _SAVE_S:
                    self._save()
                    saved_s = self.clock()
            self._finish()
        finally:
            self._save()

    def _take(self, digest: Digest, reason: str | None) -> None:
        paths = self.catalogue.paths
        size = 0
        with contextlib.suppress(OSError):
            size = paths.blob(digest).stat().st_size
        damaged = tuple(one for one in self.record.damaged if one.digest != str(digest))
        if reason is not None:
            damaged += (self._damage(digest, reason),)
        self.record = replace(
            self.record,
            after=digest.hex,
            checked=self.record.checked + 1,
            checked_bytes=self.record.checked_bytes + size,
            damaged=damaged,
        )

    def _damage(self, digest: Digest, reason: str) -> Damage:
        return Damage(
            digest=str(digest),
            reason=reason,
            found_at=timestamp(self.now()),
            inode=_inode(self.catalogue.paths, digest),
        )

    def _finish(self) -> None:
        """The end: what models need and is not there is damage, too."""
        there = {str(one) for one in blobs(self.catalogue.paths)}
        needed = sorted(users(self.catalogue))
        damaged = tuple(one for one in self.record.damaged if one.digest in there)
        damaged += tuple(
            self._damage(one, "it is missing") for one in needed if str(one) not in there
        )
        self.record = replace(
            self.record, after="", finished_at=timestamp(self.now()), damaged=damaged
        )

    def _save(self) -> None:
        try:
            save_record(self.catalogue.paths, self.record)
        except AppError as error:
            if not self._warned:
                self._warned = True
                self.warn(f"{error}: an interrupted scrub begins again")


@contextlib.contextmanager
def alone(paths: Paths) -> Iterator[None]:
    """Let only one scrub run at a time; a store that is not there has nothing to scrub.

    Raises:
        StoreBusyError: another one runs.
        StoreAccessError: the store is not there, or cannot be opened.
    """
    with store_io(f"open the store {paths.root}"):
        descriptor = os.open(paths.blobs, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreBusyError(
                "another scrub of this store is running", hint="wait until it has finished"
            ) from error
        yield
    finally:
        os.close(descriptor)


def begin(catalogue: Catalogue, *, restart: bool) -> Record:
    """The record a scrub starts from: where the last one was interrupted, or the beginning.

    What is known to be damaged stays known until it is read again.
    """
    record = read_record(catalogue.paths)
    if record.after and not restart:
        return record
    return Record(finished_at=record.finished_at, damaged=record.damaged)


def named(damaged: Iterable[Damage], catalogue: Catalogue) -> tuple[dict[str, Any], ...]:
    """Damage with paths and models, as it is reported."""
    models = users(catalogue)
    return tuple(
        {
            "digest": one.digest,
            "path": str(catalogue.paths.blob(Digest.parse(one.digest))),
            "reason": one.reason,
            "found_at": one.found_at,
            "models": list(models.get(Digest.parse(one.digest), ())),
        }
        for one in damaged
    )


def size_of(paths: Paths, digests: Iterable[Digest]) -> int:
    """Bytes of these files together."""
    total = 0
    for digest in digests:
        with contextlib.suppress(OSError):
            total += paths.blob(digest).stat().st_size
    return total
