"""Write the parity of an artifact: a second pass over its stored chunks, group by group.

Chunks stand far apart in their groups, so the pass reads them where they stand: unencoded ones in
the source file, which is on this computer's disk, the others on the medium. Each is checked
against its digest: parity of other bytes would protect nothing.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

from bundler.errors import PackError
from bundler.format.digest import Digest
from bundler.format.errors import DamagedError
from bundler.format.index import ChunkIndex, ChunkRecord, Codec, SegmentEntry, encode_index
from bundler.format.manifest import Parity, Segment
from bundler.format.parity import (
    GROUP,
    SCHEME,
    Accumulator,
    Octets,
    block_lengths,
    group_count,
    group_members,
)
from bundler.medium import Sink, SinkFile

_WORKERS: Final = min(4, os.cpu_count() or 1)


def write_parity(
    source: Path, index: ChunkIndex, sink: Sink, *, segment_bytes: int
) -> Parity | None:
    """Write two blocks for every group of chunks.

    Args:
        source: the plain file.
        index: of what was stored of it.
        sink: where it was stored, and where the blocks go.
        segment_bytes: where segments are closed.

    Returns:
        What the statement says of it; ``None`` if nothing was stored of the file.

    Raises:
        PackError: the source changed meanwhile.
        DamagedError: the medium does not give back what was written to it.
        NoSpaceError: the medium is full.
        MediumError: the medium cannot be read or written.
    """
    if not index.segments:
        return None
    with ExitStack() as stack:
        stored = _Stored(source, index, sink, stack)
        blocks = _Blocks(sink, stack, segment_bytes)
        for pair in _pairs(stored, index, stack):
            for block in pair:
                blocks.write(block)
        own = blocks.index(index.chunk_max_bytes)
    written = sink.put(encode_index(own))
    return Parity(
        scheme=SCHEME,
        group=GROUP,
        index=written,
        segments=tuple(
            Segment(digest=one.digest, size_bytes=one.size_bytes, volume=sink.volume_of(one.digest))
            for one in own.segments
        ),
    )


def _pairs(stored: _Stored, index: ChunkIndex, stack: ExitStack) -> Iterator[tuple[Octets, Octets]]:
    """P and Q of every group, in order, a few groups ahead."""
    lengths = block_lengths([one.stored_len for one in index.records], GROUP)
    pool = stack.enter_context(ThreadPoolExecutor(_WORKERS))
    waiting: deque[Future[tuple[Octets, Octets]]] = deque()
    count = group_count(len(index.records), GROUP)
    try:
        for number in range(count):
            waiting.append(pool.submit(stored.pair, number, lengths[number]))
            if len(waiting) > _WORKERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class _Stored:
    """Stored chunks of an artifact that is being written."""

    def __init__(self, source: Path, index: ChunkIndex, sink: Sink, stack: ExitStack) -> None:
        self._index = index
        self._source = source
        self._file = stack.enter_context(source.open("rb", buffering=0))
        coded = {one.segment for one in index.records if one.codec in (Codec.ZSTD, Codec.XOR)}
        self._segments = {
            place: stack.enter_context(
                sink.path_of(index.segments[place].digest).open("rb", buffering=0)
            )
            for place in coded
        }

    def pair(self, number: int, size_bytes: int) -> tuple[Octets, Octets]:
        """P and Q of one group; on a worker's thread."""
        sums = Accumulator(size_bytes)
        buffer = bytearray(size_bytes)
        for place in reversed(group_members(number, len(self._index.records), GROUP)):
            sums.add(self._read(self._index.records[place], buffer))
        return sums.p, sums.q

    def _read(self, record: ChunkRecord, buffer: bytearray) -> memoryview:
        view = memoryview(buffer)[: record.stored_len]
        if not view:
            return view
        file, offset = self._file, record.plain_off
        if record.codec is not Codec.RAW:
            file, offset = self._segments[record.segment], record.seg_off
        got = os.preadv(file.fileno(), [view], offset)
        if got == len(view) and hashlib.sha256(view).digest() == record.stored_digest:
            return view
        if record.codec is Codec.RAW:
            raise PackError(f"{self._source}: the file changed while it was read")
        raise DamagedError(
            f"chunk at {record.plain_off}: the medium does not give back what was written to it",
            hint="the medium is faulty or counterfeit; use another one",
        )


class _Blocks:
    """Parity blocks on their way into segments."""

    def __init__(self, sink: Sink, stack: ExitStack, segment_bytes: int) -> None:
        self._sink = sink
        self._stack = stack
        self._segment_bytes = segment_bytes
        self._limit = 0
        self._open: SinkFile | None = None
        self._hash = hashlib.sha256()
        self._whole = hashlib.sha256()
        self._size_bytes = 0
        self._segments: list[SegmentEntry] = []
        self._records: list[ChunkRecord] = []

    def write(self, block: Octets) -> None:
        """Append one block."""
        data = block.data
        if self._open is not None and self._open.size_bytes + len(data) > self._limit:
            self._close()
        if self._open is None:
            self._limit = self._sink.room_for(len(data), self._segment_bytes)
            self._open = self._stack.enter_context(self._sink.file())
            self._hash = hashlib.sha256()
        digest = hashlib.sha256(data).digest()
        self._records.append(
            ChunkRecord(
                plain_off=self._size_bytes,
                plain_len=len(data),
                stored_len=len(data),
                segment=len(self._segments),
                seg_off=self._open.size_bytes,
                codec=Codec.RAW,
                stored_digest=digest,
                plain_digest=digest,
            )
        )
        self._open.write(data)
        self._hash.update(data)
        self._whole.update(data)
        self._size_bytes += len(data)

    def _close(self) -> None:
        if self._open is not None:
            digest = Digest(self._hash.hexdigest())
            self._open.close(digest)
            self._segments.append(SegmentEntry(digest=digest, size_bytes=self._open.size_bytes))
            self._open = None

    def index(self, chunk_max_bytes: int) -> ChunkIndex:
        """The index of what was written."""
        self._close()
        places: dict[Digest, int] = {}
        entries: list[SegmentEntry] = []
        for entry in self._segments:
            if entry.digest not in places:
                places[entry.digest] = len(entries)
                entries.append(entry)
        # Two equal segments are one file on the medium, so the table names it once.
        moved = [places[entry.digest] for entry in self._segments]
        return ChunkIndex(
            file_size_bytes=self._size_bytes,
            file_digest=Digest(self._whole.hexdigest()),
            chunk_max_bytes=max(chunk_max_bytes, *(one.plain_len for one in self._records)),
            at_tensors=False,
            segments=tuple(entries),
            records=tuple(replace(one, segment=moved[one.segment]) for one in self._records),
        )
