"""Files on their way into the store, chunk by chunk, in whatever order the media bring them.

Rules:
 * a marker beside the file says which chunks are on the disk; it is written after they are
   flushed, and names the signed index they belong to;
 * whatever a marker says is checked again, chunk by chunk, before it is believed;
 * the digest of the whole file is computed from its bytes in order: while they arrive as far as
   they arrive in order, from the disk for the rest.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Self

from appliance.errors import store_io
from appliance.room import take_room
from bundler.format import fsio
from bundler.format.digest import Digest
from bundler.format.index import ChunkIndex

Progress = Callable[[int], None]
"""Called with the number of plain bytes just done."""


class StagedFile:
    """One file being put together. Use as a context manager."""

    def __init__(self, path: Path, index: ChunkIndex, index_digest: Digest) -> None:
        self._path = path
        self._index = index
        self._index_digest = index_digest
        self._done = bytearray(len(index.records))
        self._hasher = hashlib.sha256()
        self._hashed = 0
        self.unsynced_bytes = 0
        self.descriptor = -1

    def __enter__(self) -> Self:
        with store_io("stage a file"):
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self.descriptor = os.open(self._path, flags, 0o600)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self.descriptor)

    def missing(self) -> list[int]:
        """Places of the records whose bytes are not here."""
        return [place for place, done in enumerate(self._done) if not done]

    def take_up(self, progress: Progress) -> None:
        """Believe what is right of what an earlier import left; take room if nothing is.

        Raises:
            NoSpaceError: there is no room.
            StoreAccessError: the file cannot be read or written.
        """
        buffer = memoryview(bytearray(self._index.chunk_max_bytes))
        with store_io("stage a file"):
            if os.fstat(self.descriptor).st_size == self._index.file_size_bytes:
                for place in marked_places(self._path, self._index_digest, len(self._done)):
                    record = self._index.records[place]
                    view = buffer[: record.plain_len]
                    if os.preadv(self.descriptor, [view], record.plain_off) != record.plain_len:
                        continue
                    if hashlib.sha256(view).digest() == record.plain_digest:
                        self._note(place, view)
                        progress(record.plain_len)
            if not any(self._done):
                take_room(self.descriptor, self._index.file_size_bytes)

    def wrote(self, place: int, plain: memoryview) -> None:
        """These bytes, which are right, were written at their place."""
        self._note(place, plain)
        self.unsynced_bytes += len(plain)

    def _note(self, place: int, plain: memoryview) -> None:
        self._done[place] = 1
        if place == self._hashed:
            self._hasher.update(plain)
            self._hashed += 1

    def mark(self) -> None:
        """Flush the data, and only then say what is there.

        Raises:
            NoSpaceError: there is no room for the marker.
            StoreAccessError: the data cannot be flushed.
        """
        with store_io("flush a staged file"):
            os.fdatasync(self.descriptor)
            fsio.pass_over(self.descriptor, 0, 0)
            done = (place for place, is_done in enumerate(self._done) if is_done)
            record = {"index": str(self._index_digest), "done": list(ranges(done))}
            fsio.atomic_write(marker_of(self._path), json.dumps(record).encode(), mode=0o600)
            self.unsynced_bytes = 0

    def whole_digest(self) -> bytes:
        """SHA-256 of the whole file; what did not arrive in order is read back.

        Raises:
            StoreAccessError: the file cannot be read.
        """
        buffer = memoryview(bytearray(self._index.chunk_max_bytes))
        with store_io("read a staged file"):
            for record in self._index.records[self._hashed :]:
                view = buffer[: record.plain_len]
                got = os.preadv(self.descriptor, [view], record.plain_off)
                self._hasher.update(view[:got])
        self._hashed = len(self._index.records)
        return self._hasher.digest()


def ranges(places: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Runs of following numbers, each as its first and the one after its last.

    Args:
        places: in ascending order.
    """
    for _, run in groupby(enumerate(places), lambda pair: pair[1] - pair[0]):
        numbers = [number for _, number in run]
        yield numbers[0], numbers[-1] + 1


def marker_of(staged: Path) -> Path:
    """The small file that says which chunks of a staging file are on the disk."""
    return staged.with_suffix(".marker")


def marked_places(staged: Path, index: Digest, at_most: int) -> list[int]:
    """What the marker vouches for; a foreign or damaged one vouches for nothing.

    Args:
        staged: the staging file.
        index: digest of the chunk index it must belong to.
        at_most: records of that index.
    """
    places: set[int] = set()
    try:
        record = json.loads(marker_of(staged).read_bytes())
        if record["index"] != str(index):
            return []
        for first, end in record["done"]:
            if not 0 <= first < end <= at_most:
                return []
            places.update(range(first, end))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    return sorted(places)


def discard(staged: Path) -> None:
    """Remove a staging file and its marker.

    Raises:
        StoreAccessError: they cannot be removed.
    """
    with store_io("remove a staged file"):
        marker_of(staged).unlink(missing_ok=True)
        staged.unlink(missing_ok=True)
