"""The chunk index: which stored bytes make which plain bytes, with digests of both. Pure.

Layout and rules: docs/bundle-format.md, section 6. Everything is checked before a record is
handed out, without an allocation that the file's own size does not justify.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NoReturn

from bundler.format.digest import Digest
from bundler.format.errors import ChunkIndexError
from bundler.format.limits import (
    MAX_ARTIFACT_BYTES,
    MAX_CHUNK_BYTES,
    MAX_INDEX_BYTES,
    MAX_SEGMENT_BYTES,
    MAX_SEGMENTS,
)
from bundler.format.manifest import Artifact, BlobRef

_MAGIC: Final = b"SATIDX1\0"
_HEADER: Final = struct.Struct("<8sIIQ32sIIII32s24s")
_SEGMENT: Final = struct.Struct("<32sQ")
_RECORD: Final = struct.Struct("<QQIIIIBBHI32s32s")
_ZERO_DIGEST: Final = bytes(32)
_SLACK_BYTES: Final = 512
"""A frame of incompressible bytes is longer than they are: 3 bytes per 128 KiB and a header."""


class Codec(IntEnum):
    """How stored bytes become plain ones."""

    RAW = 0
    ZSTD = 1
    COPY = 2
    XOR = 3


class Filter(IntEnum):
    """What was done to plain bytes before they were compressed."""

    NONE = 0
    PLANES_2 = 1
    PLANES_4 = 2

    @property
    def width(self) -> int:
        """Bytes of an element."""
        return (1, 2, 4)[self]


LOCAL_CODECS: Final = (Codec.COPY, Codec.XOR)
"""Codecs that need a file the target already holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkRecord:
    """One chunk. Offsets and lengths in bytes; digests are 32 raw bytes.

    Attributes:
        plain_off: where its plain bytes stand in the file.
        segment: place of its segment in the index's table.
        seg_off: where its stored bytes stand in that segment.
        source: for codecs 2 and 3, place in the statement's required objects.
        source_off: where to copy from in that object.
    """

    plain_off: int
    source_off: int = 0
    plain_len: int
    stored_len: int
    segment: int
    seg_off: int
    codec: Codec
    filter: Filter = Filter.NONE
    source: int = 0
    stored_digest: bytes
    plain_digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentEntry:
    """One file of stored bytes."""

    digest: Digest
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkIndex:
    """A checked index. ``parse_index(encode_index(i)) == i``.

    Attributes:
        file_size_bytes: of the plain file.
        file_digest: of the plain file.
        chunk_max_bytes: no chunk's plain bytes are more.
        at_tensors: whether chunks are cut where tensors start.
        segments: files of stored bytes.
        records: every chunk, in the order of the plain file, without gap or overlap.
    """

    file_size_bytes: int
    file_digest: Digest
    chunk_max_bytes: int
    at_tensors: bool
    segments: tuple[SegmentEntry, ...]
    records: tuple[ChunkRecord, ...]


def encode_index(index: ChunkIndex) -> bytes:
    """Write an index; equal indexes give equal bytes."""
    records = b"".join(_pack_record(record) for record in index.records)
    header = _HEADER.pack(
        _MAGIC,
        _HEADER.size,
        _RECORD.size,
        index.file_size_bytes,
        index.file_digest.raw,
        index.chunk_max_bytes,
        len(index.records),
        len(index.segments),
        int(index.at_tensors),
        hashlib.sha256(records).digest(),
        b"",
    )
    table = b"".join(_SEGMENT.pack(one.digest.raw, one.size_bytes) for one in index.segments)
    return header + table + records


def _pack_record(record: ChunkRecord) -> bytes:
    return _RECORD.pack(
        record.plain_off,
        record.source_off,
        record.plain_len,
        record.stored_len,
        record.segment,
        record.seg_off,
        record.codec,
        record.filter,
        0,
        record.source,
        record.stored_digest,
        record.plain_digest,
    )


def parse_index(data: bytes) -> ChunkIndex:
    """Read and check a whole index.

    Args:
        data: the file, whose digest the caller has checked.

    Raises:
        ChunkIndexError: any rule of the format is broken.
    """
    if len(data) > MAX_INDEX_BYTES:
        _refuse("length", f"at most {MAX_INDEX_BYTES}", len(data))
    if len(data) < _HEADER.size:
        _refuse("length", f"at least {_HEADER.size}", len(data))
    (
        magic,
        header_len,
        record_len,
        file_size,
        file_digest,
        chunk_max,
        n_records,
        n_segments,
        flags,
        records_digest,
        zeros,
    ) = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        _refuse("magic", "SATIDX1", magic)
    if (header_len, record_len) != (_HEADER.size, _RECORD.size):
        _refuse("header", f"sizes {_HEADER.size} and {_RECORD.size}", (header_len, record_len))
    _bound("file_size", file_size, 1, MAX_ARTIFACT_BYTES)
    _bound("chunk_max", chunk_max, 1, MAX_CHUNK_BYTES)
    _bound("n_segments", n_segments, 0, MAX_SEGMENTS)
    _bound("n_records", n_records, 1, file_size)
    if flags & ~1:
        _refuse("flags", "bit 0 only", flags)
    if any(zeros):
        _refuse("header", "zeros at its end", zeros)
    table_end = _HEADER.size + n_segments * _SEGMENT.size
    expected = table_end + n_records * _RECORD.size
    if len(data) != expected:
        _refuse("length", str(expected), len(data))
    packed = memoryview(data)[table_end:]
    if hashlib.sha256(packed).digest() != records_digest:
        _refuse("records", "the digest of the header", "another")
    segments = _read_segments(memoryview(data)[_HEADER.size : table_end])
    return ChunkIndex(
        file_size_bytes=file_size,
        file_digest=Digest.from_raw(file_digest),
        chunk_max_bytes=chunk_max,
        at_tensors=bool(flags & 1),
        segments=segments,
        records=tuple(_read_records(packed, segments, chunk_max, file_size)),
    )


def _read_segments(table: memoryview) -> tuple[SegmentEntry, ...]:
    segments: list[SegmentEntry] = []
    for place, (digest, size) in enumerate(_SEGMENT.iter_unpack(table)):
        _bound(f"segments[{place}].size", size, 1, MAX_SEGMENT_BYTES)
        segments.append(SegmentEntry(digest=Digest.from_raw(digest), size_bytes=size))
    if len({one.digest for one in segments}) != len(segments):
        _refuse("segments", "each segment once", "one twice")
    return tuple(segments)


def _read_records(
    packed: memoryview, segments: Sequence[SegmentEntry], chunk_max: int, file_size: int
) -> Iterator[ChunkRecord]:
    at_plain = 0
    used: set[int] = set()
    for place, fields in enumerate(_RECORD.iter_unpack(packed)):
        at = f"records[{place}]"
        record = _read_record(at, fields)
        if record.plain_off != at_plain:
            _refuse(f"{at}.plain_off", str(at_plain), record.plain_off)
        _bound(f"{at}.plain_len", record.plain_len, 1, chunk_max)
        _check_codec(at, record)
        if record.codec is not Codec.COPY:
            _bound(f"{at}.segment", record.segment, 0, len(segments) - 1)
            room = segments[record.segment].size_bytes
            _bound(f"{at}.seg_off", record.seg_off, 0, room - record.stored_len)
            used.add(record.segment)
        at_plain += record.plain_len
        if at_plain > file_size:
            _refuse(f"{at}.plain_len", f"an end at {file_size}", at_plain)
        yield record
    if at_plain != file_size:
        _refuse("records", f"an end at {file_size}", at_plain)
    if len(used) != len(segments):
        _refuse("segments", "every segment used", f"{len(segments) - len(used)} unused")


def _read_record(at: str, fields: tuple[int | bytes, ...]) -> ChunkRecord:
    (
        plain_off,
        source_off,
        plain_len,
        stored_len,
        segment,
        seg_off,
        codec,
        kind,
        zero,
        source,
        stored_digest,
        plain_digest,
    ) = fields
    if codec not in _CODECS:
        _refuse(f"{at}.codec", "0, 1, 2 or 3", codec)
    if kind not in _FILTERS:
        _refuse(f"{at}.filter", "0, 1 or 2", kind)
    if zero:
        _refuse(at, "zero in the reserved field", zero)
    return ChunkRecord(  # types follow from the struct's format
        plain_off=plain_off,  # type: ignore[arg-type]
        source_off=source_off,  # type: ignore[arg-type]
        plain_len=plain_len,  # type: ignore[arg-type]
        stored_len=stored_len,  # type: ignore[arg-type]
        segment=segment,  # type: ignore[arg-type]
        seg_off=seg_off,  # type: ignore[arg-type]
        codec=_CODECS[codec],
        filter=_FILTERS[kind],
        source=source,  # type: ignore[arg-type]
        stored_digest=stored_digest,  # type: ignore[arg-type]
        plain_digest=plain_digest,  # type: ignore[arg-type]
    )


_CODECS: Final = {int(codec): codec for codec in Codec}
_FILTERS: Final = {int(kind): kind for kind in Filter}


def _check_codec(at: str, record: ChunkRecord) -> None:
    """What each codec asks of its record."""
    if record.codec in (Codec.RAW, Codec.ZSTD) and (record.source or record.source_off):
        _refuse(f"{at}.source", "0 without a local object", record.source or record.source_off)
    if record.codec is Codec.COPY:
        rest = (record.stored_len, record.segment, record.seg_off, record.filter)
        if any(rest) or record.stored_digest != _ZERO_DIGEST:
            _refuse(at, "no stored bytes with codec 2", rest)
        return
    _bound(
        f"{at}.stored_len",
        record.stored_len,
        1,
        record.plain_len + record.plain_len // 128 + _SLACK_BYTES,
    )
    if record.codec is Codec.RAW:
        if record.stored_len != record.plain_len:
            _refuse(f"{at}.stored_len", str(record.plain_len), record.stored_len)
        if record.filter is not Filter.NONE:
            _refuse(f"{at}.filter", "0 with codec 0", int(record.filter))
        if record.stored_digest != record.plain_digest:
            _refuse(f"{at}.plain_digest", "the stored digest with codec 0", "another")


def _bound(at: str, value: int, at_least: int, at_most: int) -> None:
    if not at_least <= value <= at_most:
        _refuse(at, f"{at_least} to {at_most}", value)


def _refuse(at: str, expected: str, found: object) -> NoReturn:
    raise ChunkIndexError(at=at, expected=expected, found=str(found)[:60])


def check_index(index: ChunkIndex, artifact: Artifact, objects: Sequence[BlobRef] = ()) -> None:
    """Compare an index with the artifact of the signed statement that names it.

    Args:
        index: as it was parsed.
        artifact: the statement's entry.
        objects: the statement's required objects.

    Raises:
        ChunkIndexError: size, digest, segments, codecs or sources are not those of the statement.
    """
    if index.file_size_bytes != artifact.size_bytes:
        _refuse("file_size", str(artifact.size_bytes), index.file_size_bytes)
    if index.file_digest != artifact.digest:
        _refuse("file digest", str(artifact.digest), index.file_digest)
    named = tuple((one.digest, one.size_bytes) for one in artifact.segments)
    if tuple((one.digest, one.size_bytes) for one in index.segments) != named:
        _refuse("segments", "those of the statement", "others")
    allowed = {
        "identity": (Codec.RAW,),
        "zstd-frames": (Codec.RAW, Codec.ZSTD),
        "delta": tuple(Codec),
    }[artifact.encoding]
    for place, record in enumerate(index.records):
        if record.codec not in allowed:
            _refuse(f"records[{place}].codec", f"one of {artifact.encoding}", int(record.codec))
        if record.codec in LOCAL_CODECS:
            _bound(f"records[{place}].source", record.source, 0, len(objects) - 1)
            room = objects[record.source].size_bytes - record.plain_len
            _bound(f"records[{place}].source_off", record.source_off, 0, room)
