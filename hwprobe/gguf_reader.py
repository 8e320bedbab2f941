"""Read the header of a GGUF file, strictly and within bounds.

Rules:
 * GGUF version 2 or 3, little endian; nothing else;
 * every length, count, product and offset is checked against the file's size before use;
 * what the engine would refuse later is refused here: duplicate keys and names, unknown types,
   tensors that are misaligned, overlap, leave gaps or end behind the file;
 * large arrays are stepped over and read on demand; tensor data is never read.

Source: the GGUF specification (ggml/docs/gguf.md) and the engine's own reader, gguf.cpp.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

from hwprobe.errors import GgufError
from hwprobe.ggml_types import GGML_TYPES
from hwprobe.gguf_cursor import WINDOW_BYTES, Cursor

MAX_KEYS: Final = 65_536
"""Why: real files have below a hundred keys; a thousand times that is not a model."""
MAX_TENSORS: Final = 65_536
"""Why: the largest known models have a few thousand tensors."""
MAX_KEY_BYTES: Final = 65_535
"""Source: GGUF specification, "up to 2^16-1 bytes"."""
MAX_TENSOR_NAME_BYTES: Final = 63
"""Source: GGML_MAX_NAME is 64 in ggml.h, its final NUL included."""
MAX_STRING_BYTES: Final = 64 << 20
"""64 MiB. Why: an embedded tokenizer.json is the longest value seen, about 30 MB."""
EAGER_STRING_BYTES: Final = WINDOW_BYTES
"""Longer strings stay lazy. Why: the longest chat template known is below 100 kB."""
EAGER_NUMBERS: Final = 4_096
"""Longer arrays of numbers stay lazy. Why: per-layer arrays have at most 512 entries."""
EAGER_STRINGS: Final = 256
"""Longer arrays of strings stay lazy. Why: tags and languages have a few dozen entries."""
MAX_EAGER_BYTES: Final = 64 << 20
"""Sum of all values held in memory. Why: bounds what 65 536 keys can ask for together."""
MAX_HEADER_BYTES: Final = 512 << 20
"""Why: ten times the header of a vocabulary of a million tokens; bounds the time of a scan."""
MAX_ALIGNMENT_BYTES: Final = 1 << 20
"""Why: files use 32; direct I/O and huge pages would ask for at most 2^20 here."""
DEFAULT_ALIGNMENT_BYTES: Final = 32
"""Source: GGUF_DEFAULT_ALIGNMENT in gguf.h."""
MAX_DIMENSIONS: Final = 4
"""Source: GGML_MAX_DIMS in ggml.h."""
MAX_ELEMENTS: Final = 2**63 - 1
"""Source: the engine counts elements in int64_t."""

_STRING = "string"
_BOOL = "bool"
_ARRAY = "array"
_TYPE_NAMES: Final[dict[int, str]] = {
    0: "uint8",
    1: "int8",
    2: "uint16",
    3: "int16",
    4: "uint32",
    5: "int32",
    6: "float32",
    7: _BOOL,
    8: _STRING,
    9: _ARRAY,
    10: "uint64",
    11: "int64",
    12: "float64",
}
_STRUCTS: Final[dict[str, struct.Struct]] = {
    "uint8": struct.Struct("<B"),
    "int8": struct.Struct("<b"),
    "uint16": struct.Struct("<H"),
    "int16": struct.Struct("<h"),
    "uint32": struct.Struct("<I"),
    "int32": struct.Struct("<i"),
    "float32": struct.Struct("<f"),
    _BOOL: struct.Struct("<B"),
    "uint64": struct.Struct("<Q"),
    "int64": struct.Struct("<q"),
    "float64": struct.Struct("<d"),
}
_U32, _U64 = _STRUCTS["uint32"], _STRUCTS["uint64"]
_VERSIONS = (2, 3)
_PREAMBLE_BYTES = 24
_MIN_KEY_RECORD_BYTES = 8 + 1 + 4 + 1
_MIN_TENSOR_RECORD_BYTES = 8 + 1 + 4 + 8 + 4 + 8


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufArray:
    """A value too large to hold: where it stands, to be read on demand.

    Attributes:
        element_type: GGUF's name of the type, such as ``string`` or ``float32``.
        length: number of elements.
        offset_bytes: where the first element stands in the file.
        path: the file.
    """

    element_type: str
    length: int
    offset_bytes: int
    path: Path = field(compare=False)

    def __iter__(self) -> Iterator[int | float | bool | bytes]:
        """Read the elements from the file; a string comes as its bytes.

        Raises:
            GgufError: the file has changed since its header was read.
            OSError: the file cannot be read.
        """
        with _open_regular(self.path) as opened:
            cursor = Cursor(opened.fd, size_bytes=opened.size_bytes, position=self.offset_bytes)
            for _ in range(self.length):
                if self.element_type == _STRING:
                    yield _long_string(cursor, "a lazy array")
                else:
                    yield _scalar(cursor, self.element_type, "a lazy array")


GgufValue = (
    bool
    | int
    | float
    | str
    | tuple[bool, ...]
    | tuple[int, ...]
    | tuple[float, ...]
    | tuple[str, ...]
    | GgufArray
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """One tensor as the header describes it.

    Attributes:
        name: such as ``blk.0.attn_q.weight``.
        dimensions: elements per dimension, the row length first; 1 to 4 of them.
        ggml_type: name of the element type, such as ``Q4_K``.
        offset_bytes: where its data starts, counted from ``GgufHeader.data_offset_bytes``.
        size_bytes: length of its data without padding.
    """

    name: str
    dimensions: tuple[int, ...]
    ggml_type: str
    offset_bytes: int
    size_bytes: int

    @property
    def element_count(self) -> int:
        """Product of the dimensions."""
        return _product(self.dimensions)


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """Everything before the tensor data.

    Attributes:
        version: 2 or 3.
        metadata: keys to values, in the file's order.
        tensors: in the file's order.
        alignment: of every tensor's data, in bytes.
        data_offset_bytes: where the tensor data starts.
        file_size_bytes: size of the file when it was read.
        value_offsets: where each key's value stands, for messages.
    """

    version: int
    metadata: Mapping[str, GgufValue]
    tensors: tuple[TensorInfo, ...]
    alignment: int
    data_offset_bytes: int
    file_size_bytes: int
    value_offsets: Mapping[str, int] = field(compare=False, repr=False)

    def string(self, key: str, default: str | None = None) -> str:
        """The text under ``key``, or ``default``.

        Raises:
            GgufError: the value is no text, or it is missing and there is no default.
        """
        value = self.metadata.get(key, default)
        if not isinstance(value, str):
            raise self.unexpected(key, "a string")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        """The integer under ``key``, 0 to 2^32-1, or ``default``.

        Raises:
            GgufError: the value is none, or it is missing and there is no default.
        """
        value = self.metadata.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**32:
            raise self.unexpected(key, "an integer from 0 to 4294967295")
        return value

    def array_length(self, key: str) -> int:
        """Number of elements of the array under ``key``; 0 when there is none."""
        value = self.metadata.get(key)
        if isinstance(value, GgufArray):
            return value.length
        return len(value) if isinstance(value, tuple) else 0

    def unexpected(self, key: str, expected: str) -> GgufError:
        """An error for the value under ``key``."""
        found = repr(self.metadata[key])[:80] if key in self.metadata else "no such key"
        return GgufError(
            offset=self.value_offsets.get(key, _PREAMBLE_BYTES),
            expected=f"{key} to be {expected}",
            found=found,
        )


def read_header(path: Path) -> GgufHeader:
    """Read and check the header of the GGUF file at ``path``.

    Takes below 0.3 s and below 40 MiB for a vocabulary of 128 000 tokens.

    Raises:
        GgufError: the file is not a GGUF that the engine would load.
        OSError: the file cannot be opened or read.
    """
    with _open_regular(path) as opened:
        cursor = Cursor(opened.fd, size_bytes=min(opened.size_bytes, MAX_HEADER_BYTES))
        version, tensor_count, key_count = _preamble(cursor)
        metadata, offsets = _metadata(cursor, key_count, path)
        alignment = _alignment(cursor, metadata, offsets)
        tensors, records = _tensor_records(cursor, tensor_count)
        data_offset = _padded(cursor.position, alignment)
        _check_layout(tensors, records, alignment=alignment, room=opened.size_bytes - data_offset)
        return GgufHeader(
            version=version,
            metadata=MappingProxyType(metadata),
            tensors=tensors,
            alignment=alignment,
            data_offset_bytes=data_offset,
            file_size_bytes=opened.size_bytes,
            value_offsets=MappingProxyType(offsets),
        )


@dataclass(frozen=True, slots=True)
class _Opened:
    fd: int
    size_bytes: int


@contextmanager
def _open_regular(path: Path) -> Iterator[_Opened]:
    # O_NONBLOCK: opening a named pipe must not wait for its writer.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            found = stat.filemode(status.st_mode)
            raise GgufError(offset=0, expected="a regular file", found=found)
        yield _Opened(fd, status.st_size)
    finally:
        os.close(fd)


def _preamble(cursor: Cursor) -> tuple[int, int, int]:
    index = cursor.take(4, "the magic")
    magic = cursor.window[index : index + 4]
    if magic != b"GGUF":
        raise cursor.fault("the magic b'GGUF'", repr(magic), at=0)
    version = _u32(cursor, "the version")
    if version & 0xFFFF == 0:
        raise cursor.fault("a little-endian file", "a big-endian version number", at=4)
    if version not in _VERSIONS:
        raise cursor.fault("version 2 or 3", str(version), at=4)
    tensor_count = _count(cursor, MAX_TENSORS, _MIN_TENSOR_RECORD_BYTES, "tensors")
    key_count = _count(cursor, MAX_KEYS, _MIN_KEY_RECORD_BYTES, "keys")
    return version, tensor_count, key_count


def _count(cursor: Cursor, maximum: int, record_bytes: int, what: str) -> int:
    at = cursor.position
    count = _u64(cursor, f"the number of {what}")
    most = min(maximum, cursor.left_bytes // record_bytes)
    if count > most:
        raise cursor.fault(f"at most {most} {what} in this file", str(count), at=at)
    return count


def _metadata(
    cursor: Cursor, count: int, path: Path
) -> tuple[dict[str, GgufValue], dict[str, int]]:
    metadata: dict[str, GgufValue] = {}
    offsets: dict[str, int] = {}
    eager_bytes = 0
    for _ in range(count):
        at = cursor.position
        key = _text(cursor, MAX_KEY_BYTES, "a key")
        if not key:
            raise cursor.fault("a key", "an empty one", at=at)
        if key in metadata:
            raise cursor.fault("every key once", f"{key!r} again", at=at)
        kind = _type_name(cursor, key)
        offsets[key] = cursor.position
        value = _array(cursor, key, path) if kind == _ARRAY else _single(cursor, kind, key, path)
        metadata[key] = value
        if key == "general.alignment" and kind != "uint32":
            raise cursor.fault("general.alignment to be uint32", kind, at=offsets[key])
        if not isinstance(value, GgufArray):
            eager_bytes += cursor.position - at
        if eager_bytes > MAX_EAGER_BYTES:
            raise cursor.fault(f"at most {MAX_EAGER_BYTES} bytes of short values", "more", at=at)
    return metadata, offsets


def _type_name(cursor: Cursor, key: str) -> str:
    at = cursor.position
    number = _u32(cursor, f"the type of {key}")
    name = _TYPE_NAMES.get(number)
    if name is None:
        raise cursor.fault(f"a value type from 0 to 12 for {key}", str(number), at=at)
    return name


def _single(cursor: Cursor, kind: str, key: str, path: Path) -> GgufValue:
    if kind != _STRING:
        return _scalar(cursor, kind, key)
    at = cursor.position
    length = _length(cursor, MAX_STRING_BYTES, key)
    if length > EAGER_STRING_BYTES:
        cursor.skip(length, key)
        return GgufArray(element_type=_STRING, length=1, offset_bytes=at, path=path)
    return _decoded(cursor, length, key)


def _array(cursor: Cursor, key: str, path: Path) -> GgufValue:
    kind = _type_name(cursor, key)
    if kind == _ARRAY:
        raise cursor.fault(f"an array of single values for {key}", "an array of arrays")
    at = cursor.position
    length = _u64(cursor, f"the length of {key}")
    element_bytes = _U64.size if kind == _STRING else _STRUCTS[kind].size
    if length > cursor.left_bytes // element_bytes:
        raise cursor.fault(
            f"at most {cursor.left_bytes // element_bytes} elements of {key} in this file",
            str(length),
            at=at,
        )
    start = cursor.position
    if kind == _STRING:
        if length <= EAGER_STRINGS:
            return tuple(_text(cursor, EAGER_STRING_BYTES, key) for _ in range(length))
        cursor.skip_strings(length, max_bytes=MAX_STRING_BYTES, what=key)
    elif length <= EAGER_NUMBERS:
        return tuple(_scalar(cursor, kind, key) for _ in range(length))
    else:
        cursor.skip(length * element_bytes, key)
    return GgufArray(element_type=kind, length=length, offset_bytes=start, path=path)


def _alignment(cursor: Cursor, metadata: Mapping[str, GgufValue], at: Mapping[str, int]) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT_BYTES)
    assert isinstance(value, int)
    if not 0 < value <= MAX_ALIGNMENT_BYTES or value & (value - 1):
        raise cursor.fault(
            f"general.alignment to be a power of two up to {MAX_ALIGNMENT_BYTES}",
            str(value),
            at=at["general.alignment"],
        )
    return value


def _tensor_records(cursor: Cursor, count: int) -> tuple[tuple[TensorInfo, ...], tuple[int, ...]]:
    tensors: list[TensorInfo] = []
    records: list[int] = []
    names: set[str] = set()
    for _ in range(count):
        at = cursor.position
        name = _text(cursor, MAX_TENSOR_NAME_BYTES, "a tensor name")
        if not name:
            raise cursor.fault("a tensor name", "an empty one", at=at)
        if name in names:
            raise cursor.fault("every tensor name once", f"{name!r} again", at=at)
        names.add(name)
        tensors.append(_tensor(cursor, name))
        records.append(at)
    return tuple(tensors), tuple(records)


def _tensor(cursor: Cursor, name: str) -> TensorInfo:
    at = cursor.position
    rank = _u32(cursor, f"the rank of {name}")
    if not 1 <= rank <= MAX_DIMENSIONS:
        raise cursor.fault(f"1 to {MAX_DIMENSIONS} dimensions of {name}", str(rank), at=at)
    dimensions = tuple(_u64(cursor, f"the dimensions of {name}") for _ in range(rank))
    if 0 in dimensions or _product(dimensions) > MAX_ELEMENTS:
        raise cursor.fault(f"1 to 2^63-1 elements in {name}", str(dimensions), at=at + _U32.size)
    at = cursor.position
    number = _u32(cursor, f"the type of {name}")
    kind = GGML_TYPES.get(number)
    if kind is None:
        raise cursor.fault(f"a known tensor type for {name}", str(number), at=at)
    if dimensions[0] % kind.block_size:
        raise cursor.fault(
            f"rows of {name} in whole blocks of {kind.block_size}", str(dimensions[0]), at=at
        )
    return TensorInfo(
        name=name,
        dimensions=dimensions,
        ggml_type=kind.name,
        offset_bytes=_u64(cursor, f"the offset of {name}"),
        size_bytes=kind.row_bytes(dimensions[0]) * _product(dimensions[1:]),
    )


def _check_layout(
    tensors: tuple[TensorInfo, ...], records: tuple[int, ...], *, alignment: int, room: int
) -> None:
    """Tensors stand one after another, each padded to the alignment, all inside the file.

    The engine refuses gaps and other orders too (gguf.cpp), so no data can hide between tensors.
    """
    end = 0
    for tensor, record in zip(tensors, records, strict=True):
        if tensor.offset_bytes % alignment:
            raise GgufError(
                offset=record,
                expected=f"the offset of {tensor.name} to be a multiple of {alignment}",
                found=str(tensor.offset_bytes),
            )
        if tensor.offset_bytes != end:
            fault = "overlaps the one before" if tensor.offset_bytes < end else "leaves a gap"
            raise GgufError(
                offset=record,
                expected=f"the data of {tensor.name} at {end}",
                found=f"{tensor.offset_bytes}, which {fault}",
            )
        if end + tensor.size_bytes > room:
            raise GgufError(
                offset=record,
                expected=f"{tensor.size_bytes} bytes of data for {tensor.name}",
                found=f"a file with room for {max(0, room - end)}: it is truncated",
            )
        end = _padded(end + tensor.size_bytes, alignment)


def _scalar(cursor: Cursor, kind: str, what: str) -> bool | int | float:
    form = _STRUCTS[kind]
    at = cursor.position
    index = cursor.take(form.size, what)
    (value,) = form.unpack_from(cursor.window, index)
    if kind != _BOOL:
        assert isinstance(value, int | float)
        return value
    if value > 1:
        raise cursor.fault(f"0 or 1 for the boolean {what}", str(value), at=at)
    return bool(value)


def _u32(cursor: Cursor, what: str) -> int:
    index = cursor.take(_U32.size, what)
    (value,) = _U32.unpack_from(cursor.window, index)
    return int(value)


def _u64(cursor: Cursor, what: str) -> int:
    index = cursor.take(_U64.size, what)
    (value,) = _U64.unpack_from(cursor.window, index)
    return int(value)


def _length(cursor: Cursor, maximum: int, what: str) -> int:
    at = cursor.position
    length = _u64(cursor, f"the length of {what}")
    if length > min(maximum, cursor.left_bytes):
        most = min(maximum, cursor.left_bytes)
        raise cursor.fault(f"at most {most} bytes for {what}", str(length), at=at)
    return length


def _text(cursor: Cursor, maximum: int, what: str) -> str:
    return _decoded(cursor, _length(cursor, maximum, what), what)


def _decoded(cursor: Cursor, length: int, what: str) -> str:
    at = cursor.position
    index = cursor.take(length, what)
    try:
        return cursor.window[index : index + length].decode()
    except UnicodeDecodeError as error:
        raise cursor.fault(f"UTF-8 text for {what}", str(error.reason), at=at) from error


def _long_string(cursor: Cursor, what: str) -> bytes:
    left = _length(cursor, MAX_STRING_BYTES, what)
    pieces: list[bytes] = []
    while left:
        part = min(left, WINDOW_BYTES)
        index = cursor.take(part, what)
        pieces.append(cursor.window[index : index + part])
        left -= part
    return b"".join(pieces)


def _padded(offset: int, alignment: int) -> int:
    return (offset + alignment - 1) & ~(alignment - 1)


def _product(numbers: tuple[int, ...]) -> int:
    result = 1
    for number in numbers:
        result *= number
    return result
