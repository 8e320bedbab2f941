"""Write GGUF files: header first, then tensor data as it is produced.

Only what the models of the benchmark need: version 3, little-endian, alignment 32, F16 and F32.
Source of the layout: ggml's docs/gguf.md.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

ALIGNMENT_BYTES = 32

Value = bool | int | float | str | Sequence[str] | Sequence[int]
"""A ``bool``, ``int`` (uint32), ``float`` (float32), text, or an array of texts or int32."""

_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_TENSOR_TYPES: Mapping[str, tuple[int, type[np.float16 | np.float32]]] = {
    "F32": (0, np.float32),
    "F16": (1, np.float16),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor; ``make`` gives its values when its turn has come.

    Attributes:
        dimensions: fastest first, as the engine counts them: a matrix is (columns, rows).
        make: values in row-major order, ``dimensions`` reversed; cast to ``kind``.
    """

    name: str
    dimensions: tuple[int, ...]
    kind: Literal["F16", "F32"]
    make: Callable[[], npt.NDArray[np.float32]]

    @property
    def size_bytes(self) -> int:
        """Bytes of its data, without padding."""
        elements = int(np.prod(self.dimensions))
        return elements * np.dtype(_TENSOR_TYPES[self.kind][1]).itemsize


def write(path: Path, metadata: Mapping[str, Value], tensors: Sequence[Tensor]) -> None:
    """Write one file.

    Raises:
        OSError: the file cannot be written.
    """
    out = [struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata))]
    out += [_string(key) + _value(value) for key, value in metadata.items()]
    offset_bytes = 0
    for tensor in tensors:
        number, _ = _TENSOR_TYPES[tensor.kind]
        out.append(
            _string(tensor.name)
            + struct.pack("<I", len(tensor.dimensions))
            + b"".join(struct.pack("<Q", length) for length in tensor.dimensions)
            + struct.pack("<IQ", number, offset_bytes)
        )
        offset_bytes += tensor.size_bytes + _padding(tensor.size_bytes)
    header = b"".join(out)
    with path.open("wb") as file:
        file.write(header + b"\0" * _padding(len(header)))
        for tensor in tensors:
            data = tensor.make().astype(_TENSOR_TYPES[tensor.kind][1]).tobytes()
            assert len(data) == tensor.size_bytes
            file.write(data)
            file.write(b"\0" * _padding(len(data)))


def _padding(size_bytes: int) -> int:
    return -size_bytes % ALIGNMENT_BYTES


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Value) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    texts = [item for item in value if isinstance(item, str)]
    numbers = [item for item in value if isinstance(item, int)]
    if texts:
        kind, items = _STRING, b"".join(map(_string, texts))
    else:
        kind, items = _INT32, struct.pack(f"<{len(numbers)}i", *numbers)
    assert len(texts) in {0, len(value)}
    return struct.pack("<IIQ", _ARRAY, kind, len(value)) + items
