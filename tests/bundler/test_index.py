from __future__ import annotations

import hashlib
import struct
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundler.format.digest import Digest
from bundler.format.errors import ChunkIndexError
from bundler.format.index import (
    ChunkIndex,
    ChunkRecord,
    Codec,
    Filter,
    SegmentEntry,
    check_index,
    encode_index,
    parse_index,
)
from tests.fakes.forge import forge, tiny_model

HONEST = forge(encoding="zstd-frames", segment_bytes=10_000)
ARTIFACT = HONEST.manifest.artifacts[0]
ENCODED = HONEST.files[ARTIFACT.index.digest.hex]
INDEX = parse_index(ENCODED)


def signed_again(data: bytes) -> bytes:
    """The same bytes with the digest of the records put right: what a lying signer would make."""
    n_segments = struct.unpack_from("<I", data, 64)[0]
    records = data[128 + 40 * n_segments :]
    return data[:72] + hashlib.sha256(records).digest() + data[104:]


def changed(place: int, **fields: Any) -> ChunkIndex:
    records = list(INDEX.records)
    records[place] = replace(records[place], **fields)
    return replace(INDEX, records=tuple(records))


@pytest.mark.parametrize(
    ("index", "at"),
    [
        (replace(INDEX, file_size_bytes=INDEX.file_size_bytes - 1), "records"),
        (replace(INDEX, file_size_bytes=INDEX.file_size_bytes + 1), "records"),
        (replace(INDEX, file_size_bytes=0), "file_size"),
        (replace(INDEX, file_size_bytes=(4 << 40) + 1), "file_size"),
        (replace(INDEX, chunk_max_bytes=0), "chunk_max"),
        (replace(INDEX, chunk_max_bytes=(16 << 20) + 1), "chunk_max"),
        (replace(INDEX, chunk_max_bytes=100), "records[0].plain_len"),
        (replace(INDEX, records=()), "n_records"),
        (replace(INDEX, records=INDEX.records[:-1]), "records"),
        (replace(INDEX, records=INDEX.records[::-1]), "records[0].plain_off"),
        (replace(INDEX, segments=INDEX.segments[:1]), "segment"),
        (replace(INDEX, segments=(*INDEX.segments, INDEX.segments[0])), "segments"),
        (
            replace(
                INDEX,
                segments=(*INDEX.segments, SegmentEntry(digest=Digest.of(b""), size_bytes=1)),
            ),
            "segments",
        ),
        (
            replace(
                INDEX, segments=(replace(INDEX.segments[0], size_bytes=1), *INDEX.segments[1:])
            ),
            "seg_off",
        ),
        (
            replace(
                INDEX, segments=(replace(INDEX.segments[0], size_bytes=0), *INDEX.segments[1:])
            ),
            "segments[0].size",
        ),
        (
            replace(
                INDEX,
                segments=(replace(INDEX.segments[0], size_bytes=4 << 30), *INDEX.segments[1:]),
            ),
            "segments[0].size",
        ),
        (
            changed(
                1,
                codec=Codec.RAW,
                filter=Filter.NONE,
                stored_len=INDEX.records[1].plain_len - 1,
                stored_digest=INDEX.records[1].plain_digest,
            ),
            "records[1].stored_len",
        ),
        (changed(1, plain_off=0), "records[1].plain_off"),
        (changed(1, plain_len=0), "records[1].plain_len"),
        (changed(1, stored_len=0), "records[1].stored_len"),
        (changed(1, stored_len=1 << 20), "records[1].stored_len"),
        (changed(1, segment=99), "records[1].segment"),
        (changed(1, seg_off=1 << 31), "records[1].seg_off"),
        (changed(1, source=1), "records[1].source"),
        (changed(1, source_off=1), "records[1].source"),
        (changed(1, codec=Codec.RAW), "records[1]"),
        (changed(1, codec=Codec.COPY), "records[1]"),
        (changed(1, codec=9), "records[1].codec"),
        (changed(1, filter=16), "records[1].filter"),
    ],
)
def test_a_lying_index_is_refused(index: ChunkIndex, at: str) -> None:
    with pytest.raises(ChunkIndexError) as caught:
        parse_index(encode_index(index))
    assert at in caught.value.at


@pytest.mark.parametrize(
    ("data", "at"),
    [
        (b"", "length"),
        (ENCODED[:127], "length"),
        (ENCODED[:-1], "length"),
        (ENCODED + b"\0", "length"),
        (b"X" + ENCODED[1:], "magic"),
        (ENCODED[:8] + b"\x7f" + ENCODED[9:], "header"),
        (ENCODED[:60] + b"\xff\xff\xff\xff" + ENCODED[64:], "n_records"),
        (ENCODED[:64] + b"\xff\xff\xff\xff" + ENCODED[68:], "n_segments"),
        (ENCODED[:68] + b"\x02" + ENCODED[69:], "flags"),
        (ENCODED[:104] + b"\x01" + ENCODED[105:], "header"),
        (ENCODED[:-1] + bytes([ENCODED[-1] ^ 1]), "records"),
    ],
)
def test_what_is_no_index_is_refused(data: bytes, at: str) -> None:
    with pytest.raises(ChunkIndexError) as caught:
        parse_index(data)
    assert caught.value.at == at


def test_counts_that_the_file_does_not_hold_cost_no_memory() -> None:
    """The length is compared before anything is allocated."""
    header = struct.pack(
        "<8sIIQ32sIIII32s24s",
        b"SATIDX1\0", 128, 104, 4 << 40, bytes(32), 1, 2**32 - 1, 65_536, 0, bytes(32), b"",
    )  # fmt: skip
    with pytest.raises(ChunkIndexError, match="length"):
        parse_index(header)


@pytest.mark.parametrize(
    "artifact",
    [
        replace(ARTIFACT, size_bytes=ARTIFACT.size_bytes + 1),
        replace(ARTIFACT, digest=Digest.of(b"other")),
        replace(ARTIFACT, segments=ARTIFACT.segments[::-1]),
        replace(ARTIFACT, segments=ARTIFACT.segments[:-1]),
        replace(ARTIFACT, encoding="identity"),
    ],
)
def test_an_index_unlike_the_statement_is_refused(artifact: Any) -> None:
    with pytest.raises(ChunkIndexError):
        check_index(INDEX, artifact)


def test_the_honest_index_is_accepted_and_written_back_equal() -> None:
    check_index(INDEX, ARTIFACT)
    assert encode_index(INDEX) == ENCODED
    assert len(INDEX.segments) > 2
    assert {record.filter for record in INDEX.records} == {Filter.PLANES_4}


def test_raw_records_must_have_one_digest() -> None:
    raw = parse_index(forge().files[forge().manifest.artifacts[0].index.digest.hex])
    lying = replace(raw.records[0], plain_digest=bytes(32))
    with pytest.raises(ChunkIndexError, match="plain_digest"):
        parse_index(encode_index(replace(raw, records=(lying, *raw.records[1:]))))


@settings(deadline=None, max_examples=400)
@given(at=st.integers(0, len(ENCODED) - 1), mask=st.integers(1, 255), again=st.booleans())
def test_any_byte_changed_is_refused_or_another_whole_index(
    *, at: int, mask: int, again: bool
) -> None:
    data = bytearray(ENCODED)
    data[at] ^= mask
    mutated = signed_again(bytes(data)) if again and len(data) > 128 else bytes(data)
    try:
        index = parse_index(mutated)
    except ChunkIndexError:
        return
    assert encode_index(index) == mutated


@settings(deadline=None, max_examples=100)
@given(st.integers(0, len(ENCODED)))
def test_every_prefix_but_the_whole_is_refused(length: int) -> None:
    if length == len(ENCODED):
        return
    with pytest.raises(ChunkIndexError):
        parse_index(ENCODED[:length])


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=400))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ChunkIndexError):
        parse_index(data)


@st.composite
def indexes(draw: st.DrawFn) -> ChunkIndex:
    lengths = draw(st.lists(st.integers(1, 5000), min_size=1, max_size=12))
    records: list[ChunkRecord] = []
    at = stored_at = 0
    for length in lengths:
        raw = draw(st.booleans())
        stored = length if raw else draw(st.integers(1, length))
        digest = draw(st.binary(min_size=32, max_size=32))
        records.append(
            ChunkRecord(
                plain_off=at,
                plain_len=length,
                stored_len=stored,
                segment=0,
                seg_off=stored_at,
                codec=Codec.RAW if raw else Codec.ZSTD,
                filter=Filter.NONE if raw else draw(st.sampled_from(Filter)),
                stored_digest=digest,
                plain_digest=digest if raw else draw(st.binary(min_size=32, max_size=32)),
            )
        )
        at += length
        stored_at += stored
    return ChunkIndex(
        file_size_bytes=at,
        file_digest=Digest.from_raw(draw(st.binary(min_size=32, max_size=32))),
        chunk_max_bytes=draw(st.integers(5000, 16 << 20)),
        at_tensors=draw(st.booleans()),
        segments=(SegmentEntry(digest=Digest.of(b"one"), size_bytes=stored_at),),
        records=tuple(records),
    )


@settings(deadline=None, max_examples=100)
@given(indexes())
def test_any_index_is_read_back_equal(index: ChunkIndex) -> None:
    assert parse_index(encode_index(index)) == index


def test_segments_of_another_artifact_may_be_named() -> None:
    both = forge({"A": tiny_model(1), "B": tiny_model(2)})
    first, second = both.manifest.artifacts
    index = parse_index(both.files[first.index.digest.hex])
    entry = second.segments[0]
    records = tuple(
        replace(record, segment=1) if place == 0 else record
        for place, record in enumerate(index.records)
    )
    table = (*index.segments, SegmentEntry(digest=entry.digest, size_bytes=entry.size_bytes))
    shared = replace(index, segments=table, records=records)
    check_index(
        parse_index(encode_index(shared)),
        replace(first, segments=(*first.segments, entry)),
    )
