"""Store an artifact: cut a file into chunks, encode them, write segments and an index.

A file passes once through memory. The caller's thread reads and writes; others hash the file,
hash and compress chunks, and hash the segment. All of these release the interpreter lock.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from threading import local
from types import TracebackType
from typing import Final, Self

from bundler.delta import FileDelta, Place, XorBase
from bundler.errors import PackError
from bundler.format.chunks import ChunkEncoder
from bundler.format.cutting import Cut
from bundler.format.digest import Digest
from bundler.format.index import (
    LOCAL_CODECS,
    ChunkIndex,
    ChunkRecord,
    Codec,
    Filter,
    SegmentEntry,
    encode_index,
)
from bundler.format.limits import CHUNK_BYTES, SEGMENT_BYTES
from bundler.format.manifest import Artifact, Encoding, GgufFacts, Segment
from bundler.medium import Sink, SinkFile
from bundler.paritying import write_parity
from bundler.progress import Advance

MIN_SAVING: Final = 0.03
"""Below this, compression costs every import more time than it saves the stick."""

_SAMPLE_BYTES: Final = 512 << 10
"""Half of this misjudges byte planes by a third (measured)."""
_SAMPLE_EVERY: Final = 16
_ENCODERS: Final = min(8, os.cpu_count() or 1)


def choose_encoding(source: Path, cuts: Sequence[Cut]) -> Encoding:
    """Whether compressing a file is worth the time of every import, from samples of it.

    Raises:
        PackError: the file cannot be read.
    """
    sampled: dict[str, tuple[int, int]] = {}
    whole: dict[str, int] = {}
    encoder = ChunkEncoder()
    try:
        with source.open("rb", buffering=0) as file:
            for place, cut in enumerate(cuts):
                whole[cut.kind] = whole.get(cut.kind, 0) + cut.size_bytes
                if place % _SAMPLE_EVERY and cut.kind in sampled:
                    continue
                size = min(cut.size_bytes, _SAMPLE_BYTES)
                data = os.pread(file.fileno(), size, cut.start + (cut.size_bytes - size) // 2)
                stored = len(encoder.encode(data, Codec.ZSTD, cut.filter))
                before = sampled.get(cut.kind, (0, 0))
                sampled[cut.kind] = (before[0] + len(data), before[1] + min(stored, len(data)))
    except OSError as error:
        raise PackError(f"{source}: {error.strerror}") from error
    total = sum(whole.values())
    stored_bytes = sum(whole[kind] * sampled[kind][1] / sampled[kind][0] for kind in whole)
    return "identity" if stored_bytes > total * (1 - MIN_SAVING) else "zstd-frames"


def store_artifact(
    source: Path,
    cuts: Sequence[Cut],
    sink: Sink,
    *,
    encoding: Encoding,
    facts: GgufFacts,
    advance: Advance,
    segment_bytes: int = SEGMENT_BYTES,
    delta: FileDelta | None = None,
    parity: bool = False,
) -> Artifact:
    """Write a file as segments and an index.

    Args:
        source: the plain file.
        cuts: where it is cut, in order.
        sink: where to.
        encoding: ``identity`` or ``zstd-frames``.
        facts: what the statement says of the file besides.
        advance: told of plain bytes written.
        segment_bytes: where segments are closed.
        delta: what the target holds already; the rest takes ``encoding``.
        parity: whether two lost chunks of 64 shall come back.

    Raises:
        PackError: the source cannot be read, or changed meanwhile.
        NoSpaceError: the medium is full.
        MediumError: the medium cannot be written.
    """
    with ArtifactWriter(
        source, cuts, sink, encoding=encoding, segment_bytes=segment_bytes, delta=delta
    ) as writer:
        for size in writer.run():
            advance(size)
        index = writer.index()
    stored = sink.put(encode_index(index))
    return Artifact(
        digest=index.file_digest,
        size_bytes=index.file_size_bytes,
        encoding="delta" if any(one.codec in LOCAL_CODECS for one in index.records) else encoding,
        index=stored,
        gguf=facts,
        segments=tuple(
            Segment(digest=one.digest, size_bytes=one.size_bytes, volume=sink.volume_of(one.digest))
            for one in index.segments
        ),
        parity=write_parity(source, index, sink, segment_bytes=segment_bytes) if parity else None,
    )


@dataclass(slots=True, kw_only=True)
class _InFlight:
    """A chunk between reading and writing, and the buffer it occupies."""

    cut: Cut
    buffer: bytearray
    hashed: Future[None]
    encoded: Future[_Encoded]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Encoded:
    """Stored bytes of a chunk, and what its record will say of them.

    Attributes:
        places: for codecs 2 and 3, where the target finds the other bytes; any of them will do.
    """

    codec: Codec
    filter: Filter
    stored: bytes | memoryview
    stored_digest: bytes
    plain_digest: bytes
    places: tuple[Place, ...] = ()


class ArtifactWriter:
    """Carries one file through the pipeline. Use as a context manager."""

    def __init__(
        self,
        source: Path,
        cuts: Sequence[Cut],
        sink: Sink,
        *,
        encoding: Encoding,
        segment_bytes: int,
        delta: FileDelta | None = None,
    ) -> None:
        self._source = source
        self._cuts = cuts
        self._sink = sink
        self._encoding = encoding
        self._segment_bytes = segment_bytes
        self._delta = delta
        self._stack = ExitStack()
        self._encoders, self._file_hasher, self._segment_hasher = (
            self._stack.enter_context(ThreadPoolExecutor(workers)) for workers in (_ENCODERS, 1, 1)
        )
        self._per_thread = local()
        self._free: deque[bytearray] = deque()
        self._records: list[ChunkRecord] = []
        self._segments: list[SegmentEntry] = []
        self._file_hash = hashlib.sha256()
        self._segment: SinkFile | None = None
        self._segment_stack = self._stack.enter_context(ExitStack())
        self._segment_hash = hashlib.sha256()
        self._hashing: tuple[Future[None], bytearray] | None = None
        self._limit = segment_bytes
        self._is_slice = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._encoders.shutdown(cancel_futures=True)
        self._stack.__exit__(kind, error, trace)

    def run(self) -> Iterator[int]:
        """Store every chunk, giving the plain size of each as it is written.

        Raises:
            PackError: the source cannot be read, or changed meanwhile.
            NoSpaceError: the medium is full.
            MediumError: the medium cannot be written.
        """
        flying: deque[_InFlight] = deque()
        try:
            with self._source.open("rb", buffering=0) as file:
                before = os.fstat(file.fileno())
                for cut in self._cuts:
                    if len(flying) > _ENCODERS + 1:
                        yield self._land(flying.popleft())
                    flying.append(self._launch(file.fileno(), cut))
                while flying:
                    yield self._land(flying.popleft())
                after = os.fstat(file.fileno())
        except OSError as error:
            raise PackError(f"{self._source}: {error.strerror}") from error
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise PackError(f"{self._source}: the file changed while it was read")
        self._close_segment()

    def index(self) -> ChunkIndex:
        """The index of what was stored; after `run` only."""
        places: dict[Digest, int] = {}
        entries: list[SegmentEntry] = []
        for entry in self._segments:
            if entry.digest not in places:
                places[entry.digest] = len(entries)
                entries.append(entry)
        # Two equal segments are one file on the medium, so the table names it once.
        moved = [places[entry.digest] for entry in self._segments]
        return ChunkIndex(
            file_size_bytes=self._cuts[-1].end,
            file_digest=Digest(self._file_hash.hexdigest()),
            chunk_max_bytes=max(CHUNK_BYTES, *(cut.size_bytes for cut in self._cuts)),
            at_tensors=True,
            segments=tuple(entries),
            records=tuple(
                one if one.codec is Codec.COPY else replace(one, segment=moved[one.segment])
                for one in self._records
            ),
        )

    def _launch(self, fd: int, cut: Cut) -> _InFlight:
        """Read a chunk and hand it to the hashers and encoders."""
        buffer = self._free.popleft() if self._free else bytearray(CHUNK_BYTES)
        plain = memoryview(buffer)[: cut.size_bytes]
        got = 0
        while got < len(plain):
            step = os.preadv(fd, [plain[got:]], cut.start + got)
            if not step:
                raise PackError(f"{self._source}: the file changed while it was read")
            got += step
        return _InFlight(
            cut=cut,
            buffer=buffer,
            hashed=self._file_hasher.submit(self._file_hash.update, plain),
            encoded=self._encoders.submit(self._encode, plain, cut),
        )

    def _encode(self, plain: memoryview, cut: Cut) -> _Encoded:
        """On an encoder's thread: stored bytes and both digests of one chunk."""
        plain_digest = hashlib.sha256(plain).digest()
        if self._delta is None:
            return self._encode_whole(plain, cut.filter, plain_digest)
        if places := self._delta.sources.copies(plain_digest, len(plain)):
            return _Encoded(
                codec=Codec.COPY,
                filter=Filter.NONE,
                stored=b"",
                stored_digest=bytes(hashlib.sha256().digest_size),
                plain_digest=plain_digest,
                places=places,
            )
        whole = self._encode_whole(plain, cut.filter, plain_digest)
        mixed = [
            self._encode_mixed(plain, cut.filter, plain_digest, base)
            for base in self._delta.bases(cut)
        ]
        best = min(mixed, key=lambda one: len(one.stored), default=whole)
        return best if len(best.stored) < len(whole.stored) * (1 - MIN_SAVING) else whole

    def _encode_mixed(
        self, plain: memoryview, kind: Filter, plain_digest: bytes, base: XorBase
    ) -> _Encoded:
        local = os.pread(base.descriptor, len(plain), base.place.offset)
        if len(local) != len(plain):
            raise PackError(f"{base.place.object.digest}: the relative changed while it was read")
        stored = self._encoder().encode(plain, Codec.XOR, kind, local)
        return _Encoded(
            codec=Codec.XOR,
            filter=kind,
            stored=stored,
            stored_digest=hashlib.sha256(stored).digest(),
            plain_digest=plain_digest,
            places=(base.place,),
        )

    def _encoder(self) -> ChunkEncoder:
        if not hasattr(self._per_thread, "encoder"):
            self._per_thread.encoder = ChunkEncoder()
        encoder: ChunkEncoder = self._per_thread.encoder
        return encoder

    def _encode_whole(self, plain: memoryview, kind: Filter, plain_digest: bytes) -> _Encoded:
        if self._encoding == "zstd-frames":
            stored = self._encoder().encode(plain, Codec.ZSTD, kind)
            if len(stored) < len(plain):
                return _Encoded(
                    codec=Codec.ZSTD,
                    filter=kind,
                    stored=stored,
                    stored_digest=hashlib.sha256(stored).digest(),
                    plain_digest=plain_digest,
                )
        return _Encoded(
            codec=Codec.RAW,
            filter=Filter.NONE,
            stored=plain,
            stored_digest=plain_digest,
            plain_digest=plain_digest,
        )

    def _land(self, one: _InFlight) -> int:
        """Write a chunk, in order, and free its buffer when nobody reads it any more."""
        encoded = one.encoded.result()
        one.hashed.result()
        source, source_off = self._source_of(encoded)
        file = self._room_for(len(encoded.stored)) if encoded.stored else None
        self._records.append(
            ChunkRecord(
                plain_off=one.cut.start,
                source_off=source_off,
                plain_len=one.cut.size_bytes,
                stored_len=len(encoded.stored),
                segment=0 if file is None else len(self._segments),
                seg_off=0 if file is None else file.size_bytes,
                codec=encoded.codec,
                filter=encoded.filter,
                source=source,
                stored_digest=encoded.stored_digest,
                plain_digest=encoded.plain_digest,
            )
        )
        if file is None:
            self._free.append(one.buffer)
            return one.cut.size_bytes
        file.write(encoded.stored)
        self._wait_for_segment_hash()
        if self._is_slice:
            self._free.append(one.buffer)
        else:
            hashed = self._segment_hasher.submit(self._segment_hash.update, encoded.stored)
            self._hashing = (hashed, one.buffer)
        return one.cut.size_bytes

    def _source_of(self, encoded: _Encoded) -> tuple[int, int]:
        """Number and offset of the local object.

        Chosen in the order of the file, so that equal inputs give equal bundles.
        """
        if self._delta is None or not encoded.places:
            return 0, 0
        place = self._delta.sources.choose(encoded.places)
        return self._delta.sources.number(place.object), place.offset

    def _wait_for_segment_hash(self) -> None:
        if self._hashing is not None:
            future, buffer = self._hashing
            future.result()
            self._free.append(buffer)
            self._hashing = None

    def _room_for(self, size_bytes: int) -> SinkFile:
        """The open segment; a new one when these bytes would make it too large."""
        full = self._segment is not None and self._segment.size_bytes + size_bytes > self._limit
        if full:
            self._close_segment()
        if self._segment is None:
            self._limit = self._sink.room_for(size_bytes, self._segment_bytes)
            # One unencoded segment is the file itself: its digest is known already.
            self._is_slice = (
                self._delta is None
                and self._encoding == "identity"
                and not self._segments
                and self._cuts[-1].end <= self._limit
            )
            self._segment = self._segment_stack.enter_context(self._sink.file())
            self._segment_hash = hashlib.sha256()
        return self._segment

    def _close_segment(self) -> None:
        self._wait_for_segment_hash()
        if self._segment is None:
            return
        made = self._file_hash if self._is_slice else self._segment_hash
        digest = Digest(made.hexdigest())
        self._segment.close(digest)
        self._segments.append(SegmentEntry(digest=digest, size_bytes=self._segment.size_bytes))
        self._segment = None
