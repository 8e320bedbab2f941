"""The tensor records of a GGUF header: names, shapes, types, and where the data stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from hwprobe.errors import GgufError
from hwprobe.ggml_types import GGML_TYPES
from hwprobe.gguf_cursor import Cursor

MAX_TENSORS: Final = 65_536
"""Why: the largest known models have a few thousand tensors."""
MAX_TENSOR_NAME_BYTES: Final = 63
"""Source: GGML_MAX_NAME is 64 in ggml.h, its final NUL included."""
MAX_DIMENSIONS: Final = 4
"""Source: GGML_MAX_DIMS in ggml.h."""
MAX_ELEMENTS: Final = 2**63 - 1
"""Source: the engine counts elements in int64_t."""
MIN_TENSOR_RECORD_BYTES: Final = 8 + 1 + 4 + 8 + 4 + 8
"""A name of one byte, one dimension, type and offset."""
_U32_BYTES = 4


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


def tensor_records(cursor: Cursor, count: int) -> tuple[tuple[TensorInfo, ...], tuple[int, ...]]:
    """Read ``count`` tensor records; the tensors, and where each record stands.

    Raises:
        GgufError: a record is not one the engine would accept.
    """
    tensors: list[TensorInfo] = []
    records: list[int] = []
    names: set[str] = set()
    for _ in range(count):
        at = cursor.position
        name = cursor.text(MAX_TENSOR_NAME_BYTES, "a tensor name")
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
    rank = cursor.u32(f"the rank of {name}")
    if not 1 <= rank <= MAX_DIMENSIONS:
        raise cursor.fault(f"1 to {MAX_DIMENSIONS} dimensions of {name}", str(rank), at=at)
    dimensions = tuple(cursor.u64(f"the dimensions of {name}") for _ in range(rank))
    if 0 in dimensions or _product(dimensions) > MAX_ELEMENTS:
        raise cursor.fault(f"1 to 2^63-1 elements in {name}", str(dimensions), at=at + _U32_BYTES)
    at = cursor.position
    number = cursor.u32(f"the type of {name}")
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
        offset_bytes=cursor.u64(f"the offset of {name}"),
        size_bytes=kind.row_bytes(dimensions[0]) * _product(dimensions[1:]),
    )


def check_layout(
    tensors: tuple[TensorInfo, ...], records: tuple[int, ...], *, alignment: int, room: int
) -> None:
    """Tensors stand one after another, each padded to the alignment, all inside the file.

    The engine refuses gaps and other orders too (gguf.cpp), so no data can hide between tensors.

    Args:
        tensors: in the file's order.
        records: where the record of each stands, for messages.
        alignment: of each tensor's data, in bytes.
        room: bytes from the start of the data to the end of the file.

    Raises:
        GgufError: a tensor is misaligned, overlaps, leaves a gap, or ends behind the file.
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
        end = padded(end + tensor.size_bytes, alignment)


def padded(offset: int, alignment: int) -> int:
    """The next multiple of ``alignment``, a power of two."""
    return (offset + alignment - 1) & ~(alignment - 1)


def _product(numbers: tuple[int, ...]) -> int:
    result = 1
    for number in numbers:
        result *= number
    return result
