"""Stream one artifact off the medium: read, check, unpack, write, hash; each byte read once.

Rules:
 * worker threads read ahead, check the stored digest, unpack, check the plain digest, and write;
   the caller's thread hashes the plain bytes in order, so the whole file's digest is known when
   the last chunk is;
 * memory is a fixed number of slots, whatever the size of the file;
 * every 256 MiB the data is flushed and a marker says how far; after a kill the marked part is
   read back from the disk, checked again, and only the rest is read from the medium;
 * a bad chunk is read three times before it is given up: cables and readers do err.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections import OrderedDict, deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import store_io
from appliance.room import take_room
from bundler.format import fsio
from bundler.format.chunks import ChunkDecoder
from bundler.format.digest import Digest
from bundler.format.errors import BundleError, DamagedError, MediumError
from bundler.format.index import LOCAL_CODECS, ChunkIndex, ChunkRecord, Codec
from bundler.format.manifest import Artifact
from bundler.format.volume import BundleDirectory

SYNC_BYTES = 256 << 20
"""A pulled plug loses at most this much work, and the writeback queue never stalls others."""
_SLOTS_BYTES = 48 << 20
"""Bound on all slots together; one slot holds stored bytes, planes and plain bytes."""
_MAX_THREADS = 4
"""Beyond four, sticks and the one ordered hash are the limit (measured)."""
_TRIES = 3
_READ_BACK_BYTES = 1 << 20

Progress = Callable[[int], None]
"""Called with the number of plain bytes just done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """An artifact on a medium, with its checked index.

    Attributes:
        objects: where the bundle's required objects lie here, by number; for deltas.
    """

    bundle: BundleDirectory
    artifact: Artifact
    index: ChunkIndex
    objects: tuple[Path, ...] = ()

    @property
    def used(self) -> tuple[int, ...]:
        """Numbers of the required objects that this artifact copies from."""
        return tuple(
            sorted({one.source for one in self.index.records if one.codec in LOCAL_CODECS})
        )


class _Slot:
    """Buffers for one chunk on its way."""

    def __init__(self, index: ChunkIndex) -> None:
        self.stored = bytearray(max(record.stored_len for record in index.records))
        local = [one.plain_len for one in index.records if one.codec in LOCAL_CODECS]
        self.local = bytearray(max(local, default=0))
        self.decoder = ChunkDecoder(max(record.plain_len for record in index.records))


class _Segments:
    """Open segment files, at most ``keep`` of them, the least recently asked for closed first."""

    def __init__(self, source: Source, keep: int) -> None:
        self._source = source
        self._keep = keep
        self._files: OrderedDict[int, io.FileIO] = OrderedDict()

    def file(self, place: int) -> io.FileIO:
        if place not in self._files:
            entry = self._source.index.segments[place]
            self._files[place] = self._source.bundle.open_segment(
                entry.digest, size_bytes=entry.size_bytes
            )
        self._files.move_to_end(place)
        while len(self._files) > self._keep:
            self._files.popitem(last=False)[1].close()
        return self._files[place]

    def close(self) -> None:
        for file in self._files.values():
            file.close()


class _Objects:
    """The local objects an artifact copies from, opened once."""

    def __init__(self, source: Source) -> None:
        self._files: dict[int, int] = {}
        try:
            for number in source.used:
                path = source.objects[number]
                with store_io("open a file the bundle copies from"):
                    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
                    self._files[number] = os.open(path, flags)
        except BaseException:
            self.close()
            raise

    def descriptor(self, record: ChunkRecord) -> int | None:
        return self._files[record.source] if record.codec in LOCAL_CODECS else None

    def close(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)


def plain_chunks(
    source: Source, *, first: int = 0, sink: int | None = None
) -> Generator[tuple[ChunkRecord, memoryview | BundleError], None, None]:
    """Every chunk from ``first`` on, in order, checked against its digests.

    Args:
        source: what to read.
        first: place of the first wanted record.
        sink: a descriptor to write each chunk to at its place, before it is yielded.

    Yields:
        The record and its plain bytes, valid until the next step; or what is wrong with it.

    Raises:
        NoSpaceError: the sink is full.
        StoreAccessError: it cannot be written, or a file the bundle copies from be opened.
    """
    index = source.index
    chunk_bytes = max(record.plain_len for record in index.records)
    threads = min(_MAX_THREADS, len(os.sched_getaffinity(0)))
    buffers = 4 if source.used else 3
    count = max(2, min(threads + 2, _SLOTS_BYTES // (buffers * chunk_bytes)))
    objects = _Objects(source)
    free = [_Slot(index) for _ in range(count)]
    waiting: deque[tuple[ChunkRecord, _Slot, Future[memoryview]]] = deque()
    # One file more than chunks on the way: a file in use is never the one that is closed.
    segments = _Segments(source, keep=count + 1)
    pool = ThreadPoolExecutor(max_workers=min(threads, count), thread_name_prefix="import")
    try:
        for record in index.records[first:]:
            if not free:
                free.append(waiting[0][1])
                yield _settled(waiting)
            slot = free.pop()
            future: Future[memoryview] = Future()
            try:
                file = None if record.codec is Codec.COPY else segments.file(record.segment)
            except BundleError as error:
                future.set_exception(error)
            else:
                local = objects.descriptor(record)
                future = pool.submit(_carry, record, slot, file=file, local=local, sink=sink)
            waiting.append((record, slot, future))
        while waiting:
            yield _settled(waiting)
    finally:
        pool.shutdown(cancel_futures=True)
        segments.close()
        objects.close()


def _settled(
    waiting: deque[tuple[ChunkRecord, _Slot, Future[memoryview]]],
) -> tuple[ChunkRecord, memoryview | BundleError]:
    record, _, future = waiting.popleft()
    try:
        return record, future.result()
    except BundleError as error:
        return record, error


def _carry(
    record: ChunkRecord,
    slot: _Slot,
    *,
    file: io.FileIO | None,
    local: int | None,
    sink: int | None,
) -> memoryview:
    """Bring one chunk over; runs in a worker thread."""
    beside = memoryview(b"") if local is None else _read_local(record, slot, local)
    if file is None:
        plain = slot.decoder.decode(record, b"", beside)
    else:
        plain = _read_chunk(record, slot, file, beside)
    if sink is not None:
        with store_io("write to the store"):
            _write_at(sink, plain, record.plain_off)
    return plain


def _read_local(record: ChunkRecord, slot: _Slot, descriptor: int) -> memoryview:
    """The bytes of a local object that a chunk is copied from, or mixed with."""
    view = memoryview(slot.local)[: record.plain_len]
    with store_io("read a file the bundle copies from"):
        count = os.preadv(descriptor, [view], record.source_off)
    return view[:count]


def _read_chunk(record: ChunkRecord, slot: _Slot, file: io.FileIO, local: memoryview) -> memoryview:
    for left in reversed(range(_TRIES)):
        try:
            stored = memoryview(slot.stored)[: record.stored_len]
            _fill(file, stored, record.seg_off)
            return slot.decoder.decode(record, stored, local)
        except OSError as error:
            if not left:
                reason = (error.strerror or "unknown error").lower()
                raise MediumError(
                    f"chunk at {record.plain_off}: the medium cannot be read: {reason}",
                    hint="clean or reseat the medium and import again: what was read is kept",
                ) from error
        except DamagedError:
            if not left:
                raise
        fsio.drop_cache(file.fileno())
    raise AssertionError("unreachable: the last try returns or raises")


def _fill(file: io.FileIO, view: memoryview, offset: int) -> None:
    while view:
        count = os.preadv(file.fileno(), [view], offset)
        if count == 0:
            raise DamagedError("segment: expected more bytes, found its end")
        view, offset = view[count:], offset + count


def _write_at(descriptor: int, view: memoryview, offset: int) -> None:
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def copy_artifact(source: Source, staged: Path, *, progress: Progress) -> None:
    """Bring an artifact into a staging file; its digest is right when this returns.

    A staging file that an interrupted import left is taken up where its marker says.

    Args:
        source: what to copy.
        staged: the staging file; a marker is kept beside it.
        progress: told of every byte, those of an earlier run included.

    Raises:
        DamagedError: a chunk, or the file as a whole, has not the signed digest.
        MissingBlobError: a segment is not on the medium.
        LayoutError: a segment is no regular file of the signed size.
        MediumError: the medium cannot be read.
        NoSpaceError: the store's file system is full.
        StoreAccessError: the store cannot be written.
    """
    with store_io("stage a file"):
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(staged, flags, 0o600)
    try:
        hasher = hashlib.sha256()
        target = _Target(
            descriptor=descriptor, marker=marker_of(staged), index=source.artifact.index.digest
        )
        with store_io("stage a file"):
            marked = target.marked(len(source.index.records))
            first = _resume(source, descriptor, marked, hasher, progress)
            if first == 0:
                take_room(descriptor, source.index.file_size_bytes)
        _copy_rest(target, source, first, hasher, progress)
        if hasher.digest() != source.artifact.digest.raw:
            raise DamagedError(
                f"{source.artifact.digest}: expected a file of this digest, found another",
                hint="every chunk is as signed, the whole is not; ask who signed this bundle",
            )
    finally:
        os.close(descriptor)


def _copy_rest(
    target: _Target, source: Source, first: int, hasher: hashlib._Hash, progress: Progress
) -> None:
    unsynced = 0
    place = first
    with contextlib.closing(plain_chunks(source, first=first, sink=target.descriptor)) as chunks:
        for record, plain in chunks:
            if isinstance(plain, BundleError):
                if isinstance(plain, MediumError):
                    target.mark(place)
                raise plain
            hasher.update(plain)
            progress(record.plain_len)
            place += 1
            unsynced += record.plain_len
            if unsynced >= SYNC_BYTES:
                target.mark(place)
                unsynced = 0
    target.mark(place)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """A staging file, and the marker that says how much of it is on the disk."""

    descriptor: int
    marker: Path
    index: Digest

    def mark(self, chunks: int) -> None:
        """Flush the data, and only then say so."""
        with store_io("flush a staged file"):
            os.fdatasync(self.descriptor)
            record = {"index": str(self.index), "chunks": chunks}
            fsio.atomic_write(self.marker, json.dumps(record).encode(), mode=0o600)

    def marked(self, at_most: int) -> int:
        """How many chunks the marker vouches for; a foreign or damaged one vouches for none."""
        try:
            record = json.loads(self.marker.read_bytes())
            chunks = record["chunks"] if record["index"] == str(self.index) else 0
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        return chunks if isinstance(chunks, int) and 0 <= chunks <= at_most else 0


def marker_of(staged: Path) -> Path:
    """The small file that says how much of a staging file is on the disk."""
    return staged.with_suffix(".marker")


def _resume(
    source: Source, descriptor: int, marked: int, hasher: hashlib._Hash, progress: Progress
) -> int:
    """Read the marked part back and feed the hasher; stops before the first chunk that is off.

    Returns:
        How many chunks are right.
    """
    if os.fstat(descriptor).st_size != source.index.file_size_bytes:
        return 0
    buffer = memoryview(bytearray(source.index.chunk_max_bytes))
    for place, record in enumerate(source.index.records[:marked]):
        view = buffer[: record.plain_len]
        if os.preadv(descriptor, [view], record.plain_off) != record.plain_len:
            return place
        if hashlib.sha256(view).digest() != record.plain_digest:
            return place
        hasher.update(view)
        progress(record.plain_len)
    return marked


def discard(staged: Path) -> None:
    """Remove a staging file and its marker."""
    with store_io("remove a staged file"):
        marker_of(staged).unlink(missing_ok=True)
        staged.unlink(missing_ok=True)


def file_digest(path: Path, *, progress: Progress) -> Digest:
    """Digest of a file of the store.

    Raises:
        StoreAccessError: it cannot be read.
    """
    hasher = hashlib.sha256()
    buffer = memoryview(bytearray(_READ_BACK_BYTES))
    with store_io("read a blob"), path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            hasher.update(buffer[:count])
            progress(count)
    return Digest(hasher.hexdigest())
