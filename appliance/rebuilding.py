"""Rebuild lost chunks from parity: the last remedy before another medium is asked for.

Rules:
 * the parity blocks and every other member of the group are read and checked against their
   signed digests first;
 * a rebuilt chunk must have its signed digests like any other;
 * members whose medium is not there any more are taken from the staging file, where they are
   stored as they stand in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from appliance.errors import store_io
from appliance.reading import LocalObjects, Source, fill, open_best, write_at
from appliance.staging import StagedFile
from bundler.format.chunks import ChunkDecoder
from bundler.format.digest import Digest
from bundler.format.errors import BundleError
from bundler.format.index import ChunkIndex, ChunkRecord, Codec, parse_index
from bundler.format.parity import Accumulator, check_parity, group_count, group_members, recover

_MOST_LOST = 2


def rebuild(
    target: StagedFile,
    source: Source,
    gaps: Mapping[int, BundleError],
    progress: Callable[[int], None],
) -> dict[int, BundleError]:
    """Put what parity gives into the staging file.

    Args:
        target: the staging file.
        source: what is being copied.
        gaps: places that no medium gave, and why.
        progress: told of plain bytes that came back.

    Returns:
        The gaps that are left.

    Raises:
        NoSpaceError: the store is full.
        StoreAccessError: it cannot be written, or a file the bundle copies from be read.
    """
    left = dict(gaps)
    for place, plain in rebuilt_chunks(source, gaps, target):
        record = source.index.records[place]
        with store_io("write to the store"):
            write_at(target.descriptor, plain, record.plain_off)
        target.wrote(place, plain)
        progress(record.plain_len)
        del left[place]
    return left


def rebuilt_chunks(
    source: Source, gaps: Mapping[int, BundleError], target: StagedFile | None = None
) -> Iterator[tuple[int, memoryview]]:
    """Places of lost chunks and their plain bytes, valid until the next step."""
    own = parity_index(source) if gaps else None
    if own is None:
        return
    group = _Groups(source=source, own=own, target=target)
    decoder = ChunkDecoder(max(record.plain_len for record in source.index.records))
    with contextlib.closing(LocalObjects(source)) as objects:
        for number in range(group.count):
            for place, stored in group.lost_members(number, gaps).items():
                record = source.index.records[place]
                with contextlib.suppress(BundleError):
                    beside = objects.read(record)
                    yield place, decoder.decode(record, stored[: record.stored_len], beside)


def parity_index(source: Source) -> ChunkIndex | None:
    """The checked index of an artifact's parity, or ``None`` where there is none to be had."""
    parity = source.artifact.parity
    if parity is None:
        return None
    size = parity.index.size_bytes
    try:
        data = source.bundle.read_blob(parity.index.digest, max_bytes=size, size_bytes=size)
        own = parse_index(data)
        check_parity(parity, own, source.index)
    except BundleError:
        return None
    return own


@dataclass(slots=True, kw_only=True)
class _Groups:
    """The groups of one artifact, and one buffer to read into."""

    source: Source
    own: ChunkIndex
    target: StagedFile | None
    count: int = field(init=False)
    _buffer: bytearray = field(init=False)

    def __post_init__(self) -> None:
        parity = self.source.artifact.parity
        assert parity is not None
        records = self.source.index.records
        self.count = group_count(len(records), parity.group)
        longest = max(one.stored_len for one in (*records, *self.own.records))
        self._buffer = bytearray(longest)

    def lost_members(
        self, number: int, gaps: Mapping[int, BundleError]
    ) -> Mapping[int, memoryview]:
        """Stored bytes of a group's lost chunks by place; none if there are too many."""
        records = self.source.index.records
        parity = self.source.artifact.parity
        assert parity is not None
        members = group_members(number, len(records), parity.group)
        wanted = [place for place in members if place in gaps]
        if not 0 < len(wanted) <= _MOST_LOST:
            return {}
        p, q = (self._block(2 * number + which) for which in (0, 1))
        known = Accumulator(self.own.records[2 * number].plain_len)
        lost: list[int] = []
        for place in reversed(members):
            stored = None if place in gaps else self._stored(self.source.index, place)
            if stored is None:
                lost.insert(0, place)
            known.add(stored or b"")
            if len(lost) > _MOST_LOST:
                return {}
        found = recover([members.index(place) for place in lost], known, p, q) or {}
        return {
            members[j]: memoryview(data.tobytes())
            for j, data in found.items()
            if members[j] in wanted
        }

    def _block(self, place: int) -> bytes | None:
        stored = self._stored(self.own, place)
        return None if stored is None else bytes(stored)

    def _stored(self, index: ChunkIndex, place: int) -> memoryview | None:
        """Stored bytes that have their signed digest, from wherever they can be had."""
        record = index.records[place]
        view = memoryview(self._buffer)[: record.stored_len]
        if not view:
            return view
        return next((view for _ in self._reads(index, record, view) if _right(record, view)), None)

    def _reads(self, index: ChunkIndex, record: ChunkRecord, view: memoryview) -> Iterator[None]:
        """Fill the view from one place after the other."""
        bundle, entry = self.source.bundle, index.segments[record.segment]
        best = open_best(bundle, entry)
        if not isinstance(best, BundleError):
            with best, contextlib.suppress(OSError, BundleError):
                fill(best, view, record.seg_off)
                yield
        alone = Digest.from_raw(record.stored_digest)
        for digest, offset, most in (
            (entry.digest, record.seg_off, entry.size_bytes),
            (alone, 0, record.stored_len),
        ):
            for file in bundle.open_copies(digest, at_most_bytes=most):
                with file, contextlib.suppress(OSError, BundleError):
                    fill(file, view, offset)
                    yield
        own_file = self.target is not None and index is self.source.index
        if own_file and record.codec is Codec.RAW:
            assert self.target is not None
            with contextlib.suppress(OSError):
                if os.preadv(self.target.descriptor, [view], record.plain_off) == len(view):
                    yield


def _right(record: ChunkRecord, view: memoryview) -> bool:
    return hashlib.sha256(view).digest() == record.stored_digest
