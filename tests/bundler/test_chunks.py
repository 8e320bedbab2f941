from __future__ import annotations

import hashlib
import struct
from dataclasses import replace

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from bundler.format.chunks import (
    ChunkDecoder,
    ChunkEncoder,
    decode_chunk,
    merge_planes,
    split_planes,
)
from bundler.format.errors import DamagedError, LocalObjectError
from bundler.format.index import ChunkRecord, Codec, Filter

KINDS = [
    (Codec.RAW, Filter.NONE),
    (Codec.ZSTD, Filter.NONE),
    (Codec.ZSTD, Filter.PLANES_2),
    (Codec.ZSTD, Filter.PLANES_4),
]


def record_of(
    plain: bytes,
    stored: bytes,
    codec: Codec = Codec.ZSTD,
    kind: Filter = Filter.NONE,
    plain_len: int | None = None,
) -> ChunkRecord:
    """A record a signer would make of these bytes, honest or not."""
    return ChunkRecord(
        plain_off=0,
        plain_len=len(plain) if plain_len is None else plain_len,
        stored_len=len(stored),
        segment=0,
        seg_off=0,
        codec=codec,
        filter=kind,
        stored_digest=hashlib.sha256(stored).digest(),
        plain_digest=hashlib.sha256(plain).digest(),
    )


def frame(plain: bytes, *, content_size: bool = True, checksum: bool = False) -> bytes:
    compressor = zstandard.ZstdCompressor(
        level=1, write_content_size=content_size, write_checksum=checksum
    )
    return compressor.compress(plain)


PLAIN = b"some weights " * 1000
FRAME = frame(PLAIN)


@settings(deadline=None, max_examples=80)
@given(st.sampled_from(KINDS), st.binary(min_size=1, max_size=3000), st.integers(1, 50))
def test_every_codec_and_filter_gives_the_bytes_back(
    kind: tuple[Codec, Filter], data: bytes, times: int
) -> None:
    plain = data * times
    stored = bytes(ChunkEncoder().encode(plain, *kind))
    assert decode_chunk(record_of(plain, stored, *kind), stored) == plain


@settings(deadline=None)
@given(st.binary(max_size=200), st.sampled_from([2, 4]))
def test_planes_are_split_as_the_format_says_and_merged_again(data: bytes, width: int) -> None:
    whole = len(data) // width * width
    expected = b"".join(data[place:whole:width] for place in range(width)) + data[whole:]
    out = bytearray(len(data))
    split_planes(memoryview(data), width, memoryview(out))
    assert out == expected
    merge_planes(memoryview(expected), width, memoryview(out))
    assert out == data


def test_planes_of_many_blocks_are_merged_again() -> None:
    data = hashlib.shake_256(b"many").digest(300_001)
    for width in (2, 4):
        planes, out = bytearray(len(data)), bytearray(len(data))
        split_planes(memoryview(data), width, memoryview(planes))
        merge_planes(memoryview(planes), width, memoryview(out))
        assert out == data


def test_one_decoder_serves_many_chunks_of_every_kind() -> None:
    decoder = ChunkDecoder(1 << 16)
    for size in (1, 100, 65_536, 7, 65_535):
        plain = hashlib.shake_256(str(size).encode()).digest(size // 2) + bytes(size - size // 2)
        for codec, kind in KINDS:
            stored = bytes(ChunkEncoder().encode(plain, codec, kind))
            assert decoder.decode(record_of(plain, stored, codec, kind), stored) == plain


@settings(deadline=None, max_examples=150)
@given(st.integers(0, len(FRAME) - 1), st.integers(1, 255))
def test_a_flipped_byte_is_found_before_it_is_decompressed(at: int, mask: int) -> None:
    stored = bytearray(FRAME)
    stored[at] ^= mask
    with pytest.raises(DamagedError, match="signed stored bytes"):
        decode_chunk(record_of(PLAIN, FRAME), bytes(stored))


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_a_frame_damaged_before_signing_is_refused_or_decodes_to_the_signed_bytes(
    data: st.DataObject,
) -> None:
    stored = bytearray(FRAME)
    for _ in range(data.draw(st.integers(1, 3))):
        stored[data.draw(st.integers(0, len(stored) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        plain = decode_chunk(record_of(PLAIN, bytes(stored)), bytes(stored))
    except DamagedError:
        return
    assert plain == PLAIN


@pytest.mark.parametrize("stored", [FRAME[:-1], FRAME + b"x", b""])
def test_stored_bytes_of_another_length_are_refused(stored: bytes) -> None:
    with pytest.raises(DamagedError, match=f"found {len(stored)}"):
        decode_chunk(record_of(PLAIN, FRAME), stored)


SKIPPABLE = struct.pack("<II", 0x184D2A50, 4) + b"skip"


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        (FRAME + FRAME, "ends at"),
        (FRAME + b"trailing", "ends at"),
        (FRAME + SKIPPABLE, "ends at"),
        (SKIPPABLE + FRAME, "no frame"),
        (b"not a frame at all", "no frame"),
        (b"\x28\xb5\x2f\xfd", "broken"),
        (FRAME[: len(FRAME) // 2], "found"),
        (frame(PLAIN + b"x"), "13001 bytes"),
        (frame(PLAIN[:-1]), "12999 bytes"),
        (frame(PLAIN, content_size=False), "bytes"),
    ],
)
def test_a_signer_who_lies_about_the_frame_is_refused(stored: bytes, reason: str) -> None:
    with pytest.raises(DamagedError, match=reason):
        decode_chunk(record_of(PLAIN, stored), stored)


def test_a_bomb_is_refused_without_being_unpacked() -> None:
    bomb = frame(bytes(1 << 28))
    assert len(bomb) < 64 << 10
    with pytest.raises(DamagedError, match="268435456 bytes"):
        decode_chunk(record_of(PLAIN, bomb), bomb)


def bare_frame(content_size: int, blocks: bytes, window: int = 0) -> bytes:
    """A frame with an eight-byte content size; a window descriptor unless ``window`` is 0."""
    if window:
        return (
            b"\x28\xb5\x2f\xfd" + bytes([0xC0, window]) + struct.pack("<Q", content_size) + blocks
        )
    return b"\x28\xb5\x2f\xfd" + bytes([0xE0]) + struct.pack("<Q", content_size) + blocks


def rle(size: int, *, last: bool) -> bytes:
    return (size << 3 | 1 << 1 | last).to_bytes(3, "little") + b"\0"


def test_a_frame_that_holds_more_than_its_header_says_is_refused() -> None:
    lying = bare_frame(100, rle(100, last=False) + rle(100, last=True))
    with pytest.raises(DamagedError):
        decode_chunk(record_of(bytes(100), lying), lying)


def test_a_frame_that_holds_less_than_its_header_says_is_refused() -> None:
    lying = bare_frame(100, rle(50, last=True))
    with pytest.raises(DamagedError):
        decode_chunk(record_of(bytes(100), lying), lying)


def test_a_header_that_claims_a_tebibyte_allocates_nothing() -> None:
    lying = bare_frame(1 << 40, rle(100, last=True), window=0x50)
    with pytest.raises(DamagedError, match="1099511627776"):
        decode_chunk(record_of(bytes(100), lying), lying)


def test_a_window_over_eight_mebibytes_is_refused() -> None:
    # Exponent 21: a window of 2^31 bytes.
    lying = bare_frame(100, rle(100, last=True), window=21 << 3)
    with pytest.raises(DamagedError):
        decode_chunk(record_of(bytes(100), lying), lying)


def test_a_reserved_block_is_refused() -> None:
    lying = bare_frame(100, (3 << 1 | 1).to_bytes(3, "little"))
    with pytest.raises(DamagedError):
        decode_chunk(record_of(bytes(100), lying), lying)


def test_a_frame_with_a_dictionary_is_refused() -> None:
    samples: list[bytes | bytearray | memoryview] = [
        f"weights {number % 7} of tensor {number}".encode() * 20 for number in range(500)
    ]
    dictionary = zstandard.train_dictionary(1024, samples)
    stored = zstandard.ZstdCompressor(dict_data=dictionary).compress(PLAIN)
    with pytest.raises(DamagedError):
        decode_chunk(record_of(PLAIN, stored), stored)


def test_a_frame_with_a_checksum_is_accepted_and_walked_to_its_end() -> None:
    stored = frame(PLAIN, checksum=True)
    assert decode_chunk(record_of(PLAIN, stored), stored) == PLAIN
    longer = stored + b"1234"
    with pytest.raises(DamagedError, match="ends at"):
        decode_chunk(record_of(PLAIN, longer), longer)


def test_the_plain_digest_is_checked_after_decompression() -> None:
    other = record_of(b"X" * len(PLAIN), FRAME)
    with pytest.raises(DamagedError, match="signed plain bytes"):
        decode_chunk(other, FRAME)


def test_the_wrong_filter_is_found_by_the_plain_digest() -> None:
    stored = bytes(ChunkEncoder().encode(PLAIN, Codec.ZSTD, Filter.PLANES_2))
    with pytest.raises(DamagedError, match="signed plain bytes"):
        decode_chunk(record_of(PLAIN, stored, kind=Filter.PLANES_4), stored)


def test_a_chunk_larger_than_the_decoders_buffer_is_refused() -> None:
    with pytest.raises(DamagedError, match="at most 10"):
        ChunkDecoder(10).decode(record_of(PLAIN, FRAME), FRAME)


OTHER = bytes(byte ^ (place % 3) for place, byte in enumerate(PLAIN))


def mixed(kind: Filter = Filter.NONE) -> bytes:
    return bytes(ChunkEncoder().encode(PLAIN, Codec.XOR, kind, OTHER))


def copied() -> ChunkRecord:
    return replace(record_of(PLAIN, b"", Codec.COPY), segment=0, seg_off=0, stored_digest=bytes(32))


@pytest.mark.parametrize("kind", list(Filter))
def test_what_was_mixed_with_a_local_object_comes_back_with_it(kind: Filter) -> None:
    stored = mixed(kind)
    assert len(stored) < len(PLAIN)
    assert decode_chunk(record_of(PLAIN, stored, Codec.XOR, kind=kind), stored, OTHER) == PLAIN


def test_a_copied_chunk_is_the_local_bytes() -> None:
    assert decode_chunk(copied(), b"", PLAIN) == PLAIN


def test_another_local_object_is_refused() -> None:
    stored = mixed()
    wrong = bytes([OTHER[0] ^ 1]) + OTHER[1:]
    with pytest.raises(LocalObjectError, match="not what the bundle was made against"):
        decode_chunk(record_of(PLAIN, stored, Codec.XOR), stored, wrong)
    with pytest.raises(LocalObjectError, match="not what the bundle was made against"):
        decode_chunk(copied(), b"", OTHER)


@pytest.mark.parametrize("codec", [Codec.COPY, Codec.XOR])
def test_a_local_object_that_is_not_there_is_refused(codec: Codec) -> None:
    with pytest.raises(LocalObjectError, match="found 0"):
        decode_chunk(record_of(PLAIN, FRAME, codec), FRAME)


def test_damage_on_the_medium_is_not_put_down_to_the_local_object() -> None:
    stored = mixed()
    with pytest.raises(DamagedError, match="signed stored bytes"):
        decode_chunk(
            record_of(PLAIN, stored, Codec.XOR), stored[:-1] + bytes([stored[-1] ^ 1]), OTHER
        )


def test_other_tools_can_unpack_an_unfiltered_frame() -> None:
    stored = bytes(ChunkEncoder().encode(PLAIN, Codec.ZSTD, Filter.NONE))
    assert zstandard.ZstdDecompressor().decompress(stored) == PLAIN


def test_equal_chunks_are_encoded_equally() -> None:
    encoder = ChunkEncoder()
    first = bytes(encoder.encode(PLAIN, Codec.ZSTD, Filter.PLANES_2))
    encoder.encode(b"something else", Codec.ZSTD, Filter.NONE)
    assert bytes(encoder.encode(PLAIN, Codec.ZSTD, Filter.PLANES_2)) == first
