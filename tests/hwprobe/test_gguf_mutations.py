"""Any byte changed, dropped or cut: a `GgufError` or a valid parse, and no large allocation."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hwprobe.errors import GgufError
from hwprobe.gguf import GgufHeader, model_profile, read_header
from tests.fakes.gguf_writer import (
    Tensor,
    Typed,
    gguf_header,
    tiny_llama_metadata,
    tiny_llama_tensors,
    write_gguf,
)

MAX_EXTRA_BYTES = 2 << 20
"""A window of the file and the objects of a small header."""


@cache
def _honest(strings: int = 3) -> tuple[bytes, int]:
    """A complete small file, and the length of its header."""
    metadata = tiny_llama_metadata(many=["ab"] * strings, flags=[True, False])
    header = gguf_header(metadata, tiny_llama_tensors())
    room = sum(-(-tensor.size_bytes // 32) * 32 for tensor in tiny_llama_tensors())
    return header + bytes(room), len(header)


def _read(path: Path, data: bytes) -> GgufHeader | None:
    """Read ``data``; a refusal is ``None``; whatever else happens fails the test."""
    path.write_bytes(data)
    try:
        header = read_header(path)
    except GgufError:
        return None
    end = header.data_offset_bytes if header.tensors else 0
    for tensor in header.tensors:
        end = max(end, header.data_offset_bytes + tensor.offset_bytes + tensor.size_bytes)
    assert end <= len(data)
    try:
        model_profile(header)
    except GgufError:
        return None
    return header


def _variants(data: bytes, length: int) -> Iterator[bytes]:
    for position in range(length):
        byte = data[position]
        for value in {0, 0xFF, byte ^ 0x80, (byte + 1) % 256} - {byte}:
            yield data[:position] + bytes([value]) + data[position + 1 :]


def test_every_changed_byte_of_the_header_is_refused_or_parses(tmp_path: Path) -> None:
    data, length = _honest()
    path = tmp_path / "x"
    header = _read(path, data)
    assert header is not None
    tracemalloc.start()
    try:
        for variant in _variants(data, length):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            _read(path, variant)
            assert tracemalloc.get_traced_memory()[1] - before < MAX_EXTRA_BYTES
    finally:
        tracemalloc.stop()


def test_every_dropped_byte_of_the_header_is_refused_or_parses(tmp_path: Path) -> None:
    data, length = _honest()
    for position in range(length):
        _read(tmp_path / "x", data[:position] + data[position + 1 :])


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    data, length = _honest()
    last = tiny_llama_tensors()[-1]
    needed = len(data) - (-last.size_bytes % 32)
    for size in [*range(length), *range(length, needed, 97), needed - 1]:
        assert _read(tmp_path / "x", data[:size]) is None, size


@settings(
    deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    edits=st.lists(
        st.tuples(st.integers(0, 4000), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4
    ),
    cut=st.integers(0, 400),
)
def test_several_overwritten_stretches_are_refused_or_parse(
    tmp_path: Path, edits: list[tuple[int, bytes]], cut: int
) -> None:
    data, length = _honest(300)
    changed = bytearray(data)
    for position, replacement in edits:
        start = position % length
        changed[start : start + len(replacement)] = replacement
    _read(tmp_path / "x", bytes(changed[: len(changed) - cut]))


@settings(
    deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.binary(max_size=300))
def test_arbitrary_bytes_behind_the_preamble_are_refused_or_parse(
    tmp_path: Path, data: bytes
) -> None:
    _read(tmp_path / "x", b"GGUF\x03\0\0\0" + data)


_NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)
_SCALARS = st.one_of(
    st.integers(0, 2**32 - 1),
    st.booleans(),
    st.text(max_size=50),
    st.integers(-(2**63), 2**63 - 1).map(lambda value: Typed("int64", value)),
    st.floats(allow_nan=False).map(lambda value: Typed("float64", value)),
)


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    metadata=st.dictionaries(_NAMES.filter(lambda name: name != "general.alignment"), _SCALARS),
    rows=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), max_size=5),
    alignment=st.sampled_from([1, 8, 32, 4096]),
    version=st.sampled_from([2, 3]),
)
def test_what_is_written_is_read(
    tmp_path: Path,
    metadata: dict[str, object],
    rows: list[tuple[int, int]],
    alignment: int,
    version: int,
) -> None:
    tensors = [
        Tensor(f"t{number}", (32 * blocks, count), "Q8_0")
        for number, (blocks, count) in enumerate(rows)
    ]
    pairs = {"general.alignment": alignment, **metadata}
    path = write_gguf(tmp_path / "x", pairs, tensors, version=version, alignment=alignment)
    header = read_header(path)
    expected = {k: v.value if isinstance(v, Typed) else v for k, v in pairs.items()}
    assert dict(header.metadata) == expected
    assert [(t.name, t.dimensions, t.size_bytes) for t in header.tensors] == [
        (tensor.name, tensor.dimensions, tensor.size_bytes) for tensor in tensors
    ]
    assert header == read_header(path)


def test_sparse_file_of_many_gigabytes_is_read_by_its_header_alone(tmp_path: Path) -> None:
    tensors = [Tensor(f"blk.{n}.ffn_up.weight", (8192, 28673), "F16") for n in range(40)]
    path = write_gguf(tmp_path / "x", {}, tensors, sparse=True)
    assert path.stat().st_size > 17 << 30
    assert len(read_header(path).tensors) == 40


@pytest.mark.parametrize("length", [2**20 - 9, 2**20 - 8, 2**20 - 1, 2**20, 2**20 + 1])
def test_strings_across_the_edge_of_the_window_are_read(tmp_path: Path, length: int) -> None:
    texts = ["x" * (length - 200), *["after"] * 300]
    path = write_gguf(tmp_path / "x", {"a": "b" * 100, "texts": texts, "end": 7})
    assert read_header(path).integer("end") == 7
