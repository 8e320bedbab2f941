from __future__ import annotations

import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from hwprobe.errors import GgufError
from hwprobe.gguf import GgufArray, read_header
from tests.fakes.gguf_writer import (
    Tensor,
    Typed,
    gguf_header,
    tiny_llama_metadata,
    tiny_llama_tensors,
    write_gguf,
    write_tiny_llama,
)

DEMO = Path(__file__).parents[1] / "demo-model" / "demo-f16.gguf"


def _refused(path: Path, data: bytes, *, expected: str, found: str = "") -> GgufError:
    path.write_bytes(data)
    with pytest.raises(GgufError) as caught:
        read_header(path)
    assert expected in str(caught.value)
    assert found in caught.value.found
    assert 0 <= caught.value.offset <= len(data)
    return caught.value


def test_file_with_another_magic_is_refused_at_byte_0(tmp_path: Path) -> None:
    error = _refused(tmp_path / "x", b"GGML" + bytes(20), expected="magic", found="GGML")
    assert error.offset == 0


def test_empty_file_is_refused(tmp_path: Path) -> None:
    _refused(tmp_path / "x", b"", expected="4 bytes of the magic", found="0 bytes left")


def test_big_endian_file_is_refused_by_that_name(tmp_path: Path) -> None:
    data = struct.pack(">4sIQQ", b"GGUF", 3, 0, 0)
    _refused(tmp_path / "x", data, expected="little-endian", found="big-endian")


@pytest.mark.parametrize("version", [1, 4, 0x0102])
def test_other_versions_are_refused(tmp_path: Path, version: int) -> None:
    data = gguf_header({}, version=version)
    _refused(tmp_path / "x", data, expected="version 2 or 3", found=str(version))


@pytest.mark.parametrize("count", [2**16 + 1, 2**40, 2**63, 2**64 - 1])
@pytest.mark.parametrize("position", [8, 16])
def test_counts_the_file_cannot_hold_are_refused(tmp_path: Path, position: int, count: int) -> None:
    data = bytearray(gguf_header(tiny_llama_metadata()))
    struct.pack_into("<Q", data, position, count)
    _refused(tmp_path / "x", bytes(data), expected="at most", found=str(count))


def test_named_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(GgufError, match="a regular file"):
        read_header(tmp_path / "pipe")


def test_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GgufError, match="a regular file"):
        read_header(tmp_path)


def test_missing_file_is_an_ordinary_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_header(tmp_path / "nothing")


def test_duplicate_key_is_refused(tmp_path: Path) -> None:
    data = gguf_header([("a", 1), ("b", 2), ("a", 1)])
    _refused(tmp_path / "x", data, expected="every key once", found="'a'")


def test_empty_tensor_name_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x", [], [Tensor("", (32,))])
    with pytest.raises(GgufError, match="a tensor name, found an empty one"):
        read_header(path)


def test_cut_off_arrays_are_refused_where_they_start(tmp_path: Path) -> None:
    whole = gguf_header([("a", [1] * 5000), ("b", ["long enough"] * 300)])
    for size in (100, 20_000, len(whole) - 1):
        path = tmp_path / str(size)
        path.write_bytes(whole[:size])
        with pytest.raises(GgufError, match=r"left|at most"):
            read_header(path)


def test_empty_key_is_refused(tmp_path: Path) -> None:
    _refused(tmp_path / "x", gguf_header([("", 1)]), expected="a key", found="an empty one")


def test_key_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    data = gguf_header({"xyzw": 1}).replace(b"xyzw", b"x\xffzw")
    _refused(tmp_path / "x", data, expected="UTF-8")


def test_unknown_value_type_is_refused(tmp_path: Path) -> None:
    data = gguf_header({"k": 1}).replace(struct.pack("<II", 4, 1), struct.pack("<II", 13, 1))
    _refused(tmp_path / "x", data, expected="a value type from 0 to 12", found="13")


def test_nested_array_is_refused(tmp_path: Path) -> None:
    data = gguf_header({"k": [1]}).replace(
        struct.pack("<IIQ", 9, 4, 1), struct.pack("<IIQ", 9, 9, 1)
    )
    _refused(tmp_path / "x", data, expected="single values", found="array of arrays")


@pytest.mark.parametrize("length", [2**20, 2**32, 2**61, 2**64 - 1])
def test_array_longer_than_the_file_is_refused(tmp_path: Path, length: int) -> None:
    data = gguf_header({"k": [7, 8]}).replace(
        struct.pack("<IIQ", 9, 4, 2), struct.pack("<IIQ", 9, 4, length)
    )
    _refused(tmp_path / "x", data, expected="elements of k", found=str(length))


@pytest.mark.parametrize("length", [2**20, 2**40, 2**63, 2**64 - 1])
def test_string_longer_than_the_file_is_refused(tmp_path: Path, length: int) -> None:
    data = gguf_header({"k": "text"}).replace(
        struct.pack("<Q4s", 4, b"text"), struct.pack("<Q4s", length, b"text")
    )
    _refused(tmp_path / "x", data, expected="bytes for k", found=str(length))


@pytest.mark.parametrize("length", [2**27, 2**62, 2**64 - 1])
def test_overlong_string_inside_a_large_array_is_refused(tmp_path: Path, length: int) -> None:
    texts = [f"t{number:05d}" for number in range(1000)]
    data = gguf_header({"k": texts}).replace(
        struct.pack("<Q6s", 6, b"t00700"), struct.pack("<Q6s", length, b"t00700")
    )
    _refused(tmp_path / "x", data, expected="string of k", found=str(length))


def test_boolean_of_two_is_refused(tmp_path: Path) -> None:
    data = gguf_header({"k": True}).replace(struct.pack("<IB", 7, 1), struct.pack("<IB", 7, 2))
    _refused(tmp_path / "x", data, expected="0 or 1", found="2")


@pytest.mark.parametrize("alignment", [0, 3, 48, 2**21])
def test_alignment_that_is_no_small_power_of_two_is_refused(tmp_path: Path, alignment: int) -> None:
    data = gguf_header({"general.alignment": alignment})
    _refused(tmp_path / "x", data, expected="power of two", found=str(alignment))


def test_alignment_of_another_type_is_refused(tmp_path: Path) -> None:
    data = gguf_header({"general.alignment": Typed("uint64", 32)})
    _refused(tmp_path / "x", data, expected="uint32", found="uint64")


def _with_tensors(*tensors: Tensor, **options: Any) -> bytes:
    header = gguf_header({}, tensors, **options)
    return header + bytes(sum(-(-tensor.size_bytes // 32) * 32 for tensor in tensors))


def test_duplicate_tensor_name_is_refused(tmp_path: Path) -> None:
    data = _with_tensors(Tensor("a", (8,)), Tensor("a", (8,)))
    _refused(tmp_path / "x", data, expected="every tensor name once", found="'a'")


def test_tensor_name_longer_than_the_engine_takes_is_refused(tmp_path: Path) -> None:
    data = _with_tensors(Tensor("n" * 64, (8,)))
    _refused(tmp_path / "x", data, expected="at most 63 bytes", found="64")


@pytest.mark.parametrize("rank", [0, 5, 2**32 - 1])
def test_tensor_of_another_rank_is_refused(tmp_path: Path, rank: int) -> None:
    data = bytearray(_with_tensors(Tensor("a", (8,))))
    struct.pack_into("<I", data, 24 + 8 + 1, rank)
    _refused(tmp_path / "x", bytes(data), expected="1 to 4 dimensions", found=str(rank))


@pytest.mark.parametrize("dimensions", [(0,), (8, 0), (2**32, 2**32), (2**63,), (2**64 - 1, 2)])
def test_tensor_with_impossible_dimensions_is_refused(
    tmp_path: Path, dimensions: tuple[int, ...]
) -> None:
    data = gguf_header({}, [Tensor("a", dimensions)])
    _refused(tmp_path / "x", data, expected="1 to 2^63-1 elements")


@pytest.mark.parametrize("number", [4, 5, 31, 38, 43, 1000, 2**32 - 1])
def test_removed_or_unknown_tensor_type_is_refused(tmp_path: Path, number: int) -> None:
    data = bytearray(_with_tensors(Tensor("a", (8,))))
    struct.pack_into("<I", data, 24 + 8 + 1 + 4 + 8, number)
    _refused(tmp_path / "x", bytes(data), expected="a known tensor type", found=str(number))


def test_row_that_is_no_whole_block_is_refused(tmp_path: Path) -> None:
    data = bytearray(_with_tensors(Tensor("a", (64,), "Q8_0")))
    struct.pack_into("<Q", data, 24 + 8 + 1 + 4, 63)
    _refused(tmp_path / "x", bytes(data), expected="whole blocks of 32", found="63")


@pytest.mark.parametrize(
    ("offset", "words"),
    [
        (8, "a multiple of 32"),
        (0, "overlaps the one before"),
        (64, "leaves a gap"),
        (2**64 - 32, "leaves a gap"),
    ],
)
def test_tensor_at_a_wrong_offset_is_refused(tmp_path: Path, offset: int, words: str) -> None:
    data = _with_tensors(Tensor("a", (8,)), Tensor("b", (8,), offset=offset))
    path = tmp_path / "x"
    path.write_bytes(data + bytes(64))
    with pytest.raises(GgufError, match=words):
        read_header(path)


def test_file_cut_inside_the_tensor_data_is_refused_as_truncated(tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "x")
    data = path.read_bytes()
    last = tiny_llama_tensors()[-1]
    padding = -last.size_bytes % 32
    _refused(path, data[: -1 - padding], expected="bytes of data", found="truncated")


def test_claimed_tensor_of_exabytes_is_refused_without_overflow(tmp_path: Path) -> None:
    data = gguf_header({}, [Tensor("a", (2**31, 2**31))])
    _refused(tmp_path / "x", data, expected=f"{2**64} bytes of data", found="truncated")


@pytest.mark.parametrize("version", [2, 3])
def test_every_value_type_is_read(tmp_path: Path, version: int) -> None:
    values: dict[str, Any] = {
        "uint8": Typed("uint8", 255),
        "int8": Typed("int8", -128),
        "uint16": Typed("uint16", 65535),
        "int16": Typed("int16", -32768),
        "uint32": Typed("uint32", 2**32 - 1),
        "int32": Typed("int32", -(2**31)),
        "uint64": Typed("uint64", 2**64 - 1),
        "int64": Typed("int64", -(2**63)),
        "float32": Typed("float32", 0.5),
        "float64": Typed("float64", 0.1),
        "bool": Typed("bool", True),
        "string": Typed("string", "größer"),
    }
    arrays = {f"{name}s": Typed(typed.kind, [typed.value] * 2) for name, typed in values.items()}
    header = read_header(write_gguf(tmp_path / "x", {**values, **arrays}, version=version))
    assert header.version == version
    for name, typed in values.items():
        assert header.metadata[name] == typed.value
        assert header.metadata[f"{name}s"] == (typed.value, typed.value)


def test_large_arrays_stay_in_the_file_and_read_on_demand(tmp_path: Path) -> None:
    tokens = [f"token {number}" for number in range(5000)]
    scores = [number / 2 for number in range(5000)]
    path = write_gguf(tmp_path / "x", {"tokens": tokens, "scores": scores})
    header = read_header(path)
    lazy_tokens, lazy_scores = header.metadata["tokens"], header.metadata["scores"]
    assert isinstance(lazy_tokens, GgufArray)
    assert isinstance(lazy_scores, GgufArray)
    assert [bytes(token) for token in lazy_tokens if isinstance(token, bytes)] == [
        token.encode() for token in tokens
    ]
    assert list(lazy_scores) == scores
    assert header.array_length("tokens") == 5000


def test_string_over_a_mebibyte_stays_in_the_file(tmp_path: Path) -> None:
    text = "x" * ((1 << 20) + 5)
    header = read_header(write_gguf(tmp_path / "x", {"long": text, "after": 1}))
    value = header.metadata["long"]
    assert isinstance(value, GgufArray)
    assert list(value) == [text.encode()]
    assert header.integer("after") == 1


def test_lazy_array_of_a_file_that_shrank_is_a_gguf_error(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x", {"tokens": ["t"] * 5000})
    value = read_header(path).metadata["tokens"]
    assert isinstance(value, GgufArray)
    os.truncate(path, 400)
    with pytest.raises(GgufError):
        list(value)


def test_tensors_carry_their_sizes_and_offsets(tmp_path: Path) -> None:
    tensors = [Tensor("a", (64, 3), "Q4_0"), Tensor("b", (5,), "F16"), Tensor("c", (2, 2, 2, 2))]
    header = read_header(
        write_gguf(tmp_path / "x", {"general.alignment": 64}, tensors, alignment=64)
    )
    assert [(t.ggml_type, t.dimensions, t.size_bytes) for t in header.tensors] == [
        ("Q4_0", (64, 3), 108),
        ("F16", (5,), 10),
        ("F32", (2, 2, 2, 2), 64),
    ]
    assert [tensor.offset_bytes for tensor in header.tensors] == [0, 128, 192]
    assert header.alignment == 64
    assert header.data_offset_bytes % 64 == 0


def test_demo_model_is_read() -> None:
    header = read_header(DEMO)
    assert header.string("general.architecture") == "llama"
    assert header.integer("llama.block_count") == 6
    last = header.tensors[-1]
    assert header.data_offset_bytes + last.offset_bytes + last.size_bytes <= DEMO.stat().st_size


def test_header_of_a_large_vocabulary_takes_little_memory(tmp_path: Path) -> None:
    """128 000 tokens and 280 000 merges, as a Llama 3 file has them, in below 40 MiB."""
    tokens = [f"token{number}" for number in range(128_000)]
    merges = [f"to {number}" for number in range(280_000)]
    path = write_gguf(tmp_path / "x", {"tokens": tokens, "merges": merges})
    del tokens, merges
    tracemalloc.start()
    try:
        header = read_header(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert header.array_length("merges") == 280_000
    assert peak < 8 << 20


def test_typed_readers_name_the_key_and_the_place(tmp_path: Path) -> None:
    header = read_header(write_gguf(tmp_path / "x", {"text": "a", "number": 1, "flag": True}))
    assert header.string("absent", "default") == "default"
    with pytest.raises(GgufError, match="text to be an integer"):
        header.integer("text")
    with pytest.raises(GgufError, match="flag to be an integer"):
        header.integer("flag")
    with pytest.raises(GgufError, match="number to be a string"):
        header.string("number")
    with pytest.raises(GgufError, match="no such key"):
        header.string("absent")
