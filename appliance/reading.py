"""Read chunks of an artifact off the media: check, unpack, and read again what is bad.

Rules:
 * worker threads read ahead, check the stored digest, unpack, check the plain digest, and write;
 * memory is a fixed number of slots, whatever the size of the file;
 * a bad chunk is read three times, then from every other copy, before it is given up: cables and
   readers do err.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections import OrderedDict, deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import store_io
from bundler.format import fsio
from bundler.format.chunks import ChunkDecoder
from bundler.format.digest import Digest
from bundler.format.errors import BundleError, DamagedError, MediumError
from bundler.format.index import LOCAL_CODECS, ChunkIndex, ChunkRecord, Codec, SegmentEntry
from bundler.format.manifest import Artifact
from bundler.format.volume import BundleDirectory

_SLOTS_BYTES = 48 << 20
"""Bound on all slots together; one slot holds stored bytes, planes and plain bytes."""
_MAX_THREADS = 4
"""Beyond four, sticks and the one ordered hash are the limit (measured)."""
_TRIES = 3


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
        self._files: OrderedDict[int, io.FileIO | BundleError] = OrderedDict()

    def file(self, place: int) -> io.FileIO | BundleError:
        """The segment's best copy, or why there is none."""
        if place not in self._files:
            self._files[place] = open_best(self._source.bundle, self._source.index.segments[place])
        self._files.move_to_end(place)
        while len(self._files) > self._keep:
            _close(self._files.popitem(last=False)[1])
        return self._files[place]

    def close(self) -> None:
        for file in self._files.values():
            _close(file)


def _close(file: io.FileIO | BundleError) -> None:
    if isinstance(file, io.FileIO):
        # The kernel keeps pages in runs, of which those at the edges of a chunk stayed.
        fsio.pass_over(file.fileno(), 0, 0)
        file.close()


def open_best(bundle: BundleDirectory, entry: SegmentEntry) -> io.FileIO | BundleError:
    """A whole copy of a segment; else one that was cut off, of which the front may serve."""
    try:
        return bundle.open_segment(entry.digest, size_bytes=entry.size_bytes)
    except BundleError as error:
        for file in bundle.open_copies(entry.digest, at_most_bytes=entry.size_bytes):
            return file
        return error


class LocalObjects:
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

    def read(self, record: ChunkRecord) -> bytes:
        """The bytes a chunk is copied from, or mixed with; none for other codecs.

        Raises:
            StoreAccessError: they cannot be read.
        """
        descriptor = self.descriptor(record)
        if descriptor is None:
            return b""
        with store_io("read a file the bundle copies from"):
            return os.pread(descriptor, record.plain_len, record.source_off)

    def descriptor(self, record: ChunkRecord) -> int | None:
        """The open file a chunk needs, if it needs one."""
        return self._files[record.source] if record.codec in LOCAL_CODECS else None

    def close(self) -> None:
        """Close them all."""
        for descriptor in self._files.values():
            os.close(descriptor)


def plain_chunks(
    source: Source, *, places: Sequence[int] | None = None, sink: int | None = None
) -> Generator[tuple[ChunkRecord, memoryview | BundleError], None, None]:
    """The chunks at these places, in this order, checked against their digests.

    Args:
        source: what to read.
        places: of the wanted records; all of them unless given.
        sink: a descriptor to write each chunk to at its place, before it is yielded.

    Yields:
        The record and its plain bytes, valid until the next step; or what is wrong with it.

    Raises:
        NoSpaceError: the sink is full.
        StoreAccessError: it cannot be written, or a file the bundle copies from be opened.
    """
    index = source.index
    wanted = range(len(index.records)) if places is None else places
    chunk_bytes = max(record.plain_len for record in index.records)
    threads = min(_MAX_THREADS, len(os.sched_getaffinity(0)))
    buffers = 4 if source.used else 3
    count = max(2, min(threads + 2, _SLOTS_BYTES // (buffers * chunk_bytes)))
    objects = LocalObjects(source)
    free = [_Slot(index) for _ in range(count)]
    waiting: deque[tuple[ChunkRecord, _Slot, Future[memoryview]]] = deque()
    # One file more than chunks on the way: a file in use is never the one that is closed.
    segments = _Segments(source, keep=count + 1)
    pool = ThreadPoolExecutor(max_workers=min(threads, count), thread_name_prefix="import")
    try:
        for place in wanted:
            record = index.records[place]
            if not free:
                # The caller has used the chunk that was yielded last; its slot is free now.
                slot = waiting[0][1]
                yield _settled(waiting)
                free.append(slot)
            slot = free.pop()
            if record.codec is Codec.COPY:
                file: io.FileIO | BundleError | None = None
            else:
                file = segments.file(record.segment)
            local = objects.descriptor(record)
            future = pool.submit(_carry, source, record, slot, file=file, local=local, sink=sink)
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
    source: Source,
    record: ChunkRecord,
    slot: _Slot,
    *,
    file: io.FileIO | BundleError | None,
    local: int | None,
    sink: int | None,
) -> memoryview:
    """Bring one chunk over; runs in a worker thread."""
    beside = memoryview(b"") if local is None else _read_local(record, slot, local)
    if file is None:
        plain = slot.decoder.decode(record, b"", beside)
    else:
        try:
            if isinstance(file, BundleError):
                raise file
            plain = _read_chunk(record, slot, file, beside)
        except BundleError as error:
            elsewhere = _read_elsewhere(source, record, slot, beside)
            if elsewhere is None:
                raise error from None
            plain = elsewhere
    if sink is not None:
        with store_io("write to the store"):
            write_at(sink, plain, record.plain_off)
    return plain


def _read_local(record: ChunkRecord, slot: _Slot, descriptor: int) -> memoryview:
    """The bytes of a local object that a chunk is copied from, or mixed with."""
    view = memoryview(slot.local)[: record.plain_len]
    with store_io("read a file the bundle copies from"):
        count = os.preadv(descriptor, [view], record.source_off)
    fsio.pass_over(descriptor, record.source_off, count)
    return view[:count]


def _read_elsewhere(
    source: Source, record: ChunkRecord, slot: _Slot, local: memoryview
) -> memoryview | None:
    """The chunk from another copy of its segment, or from a file of its own (a repair answer)."""
    entry = source.index.segments[record.segment]
    alone = Digest.from_raw(record.stored_digest)
    copies = (
        (file, offset)
        for digest, offset, most in (
            (entry.digest, record.seg_off, entry.size_bytes),
            (alone, 0, record.stored_len),
        )
        for file in source.bundle.open_copies(digest, at_most_bytes=most)
    )
    for file, offset in copies:
        with file, contextlib.suppress(OSError, DamagedError):
            stored = memoryview(slot.stored)[: record.stored_len]
            fill(file, stored, offset)
            return slot.decoder.decode(record, stored, local)
    return None


def _read_chunk(record: ChunkRecord, slot: _Slot, file: io.FileIO, local: memoryview) -> memoryview:
    for left in reversed(range(_TRIES)):
        try:
            stored = memoryview(slot.stored)[: record.stored_len]
            fill(file, stored, record.seg_off)
            plain = slot.decoder.decode(record, stored, local)
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
        else:
            fsio.pass_over(file.fileno(), record.seg_off, record.stored_len)
            return plain
        with contextlib.suppress(OSError):
            fsio.drop_cache(file.fileno())
    raise AssertionError("unreachable: the last try returns or raises")


def fill(file: io.FileIO, view: memoryview, offset: int) -> None:
    """Read exactly these bytes.

    Raises:
        DamagedError: the file ends before.
        OSError: as the system says it.
    """
    while view:
        count = os.preadv(file.fileno(), [view], offset)
        if count == 0:
            raise DamagedError(
                f"segment: expected more bytes at {offset}, found its end",
                hint="the medium is damaged or was changed; copy the bundle again",
            )
        view, offset = view[count:], offset + count


def write_at(descriptor: int, view: memoryview, offset: int) -> None:
    """Write every byte at its place; raises as the system says it."""
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count
