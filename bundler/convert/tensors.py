"""Tensors of a safetensors directory, read one at a time. Owner of the package ``safetensors``.

The library checks each file: lengths, offsets, no overlap. The bytes are then mapped, because
its numpy side knows no bfloat16.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from bundler.errors import PackError, SourceDamagedError

DType = Literal["F32", "F16", "BF16"]
SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
_MAX_INDEX_BYTES: Final = 64 << 20
_WIDTHS: Final[dict[str, Any]] = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """One tensor of a file.

    Attributes:
        name: as the checkpoint calls it.
        dtype: safetensors' name, such as ``BF16`` or ``I64``.
        shape: elements per dimension, the row last.
        path: the file, and ``offset_bytes`` where the data starts in it.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset_bytes: int

    @property
    def element_count(self) -> int:
        """Product of the shape."""
        return int(np.prod(self.shape, dtype=np.int64))

    def raw(self) -> npt.NDArray[Any]:
        """The stored elements, mapped from the file; bfloat16 as its 16 bits.

        Raises:
            PackError: another element type than F32, F16 or BF16.
        """
        if self.dtype not in _WIDTHS:
            raise PackError(
                f"{self.path.name}: {self.name}: expected F32, F16 or BF16 weights, "
                f"found {self.dtype}",
                hint="convert from the checkpoint before it was quantized",
            )
        if not self.element_count:
            return np.empty(self.shape, _WIDTHS[self.dtype])
        return np.memmap(
            self.path, _WIDTHS[self.dtype], "r", offset=self.offset_bytes, shape=self.shape
        )

    def floats(self) -> npt.NDArray[np.float32]:
        """The elements in 32 bits; exact for all three types."""
        raw = self.raw()
        if self.dtype == "BF16":
            return (raw.astype(np.uint32) << 16).view(np.float32)
        return raw.astype(np.float32)


def checkpoint_files(directory: Path) -> tuple[Path, ...]:
    """The weight files of a directory, in the order of their names.

    Raises:
        PackError: there are none, or the index is none.
        SourceDamagedError: a file the index names is missing.
    """
    index = directory / INDEX
    if index.is_file():
        names = sorted(set(_weight_map(index).values()))
        missing = [name for name in names if not (directory / name).is_file()]
        if missing:
            raise SourceDamagedError(
                f"{directory}: {len(missing)} of {len(names)} weight files are missing: "
                f"{', '.join(missing[:4])}",
                hint="download them again into the same directory",
            )
        return tuple(directory / name for name in names)
    single = directory / SINGLE
    if single.is_file():
        return (single,)
    raise PackError(
        f"{directory}: expected {SINGLE} or {INDEX}, found neither",
        hint="weights in pickle files (.bin, .pt) are not read: they can run programs",
    )


def _weight_map(index: Path) -> dict[str, str]:
    try:
        if index.stat().st_size > _MAX_INDEX_BYTES:
            raise PackError(f"{index}: expected at most {_MAX_INDEX_BYTES} bytes")
        value = json.loads(index.read_bytes())["weight_map"]
        names = {str(name): str(file) for name, file in value.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise PackError(f"{index}: expected an index of weight files, found none") from error
    if bad := [file for file in names.values() if Path(file).name != file]:
        raise PackError(f"{index}: expected plain file names, found {bad[0][:80]!r}")
    return names


def read_tensors(files: tuple[Path, ...]) -> dict[str, StoredTensor]:
    """Every tensor of these files by name; no data is read.

    Raises:
        SourceDamagedError: a file is cut off or malformed, or two hold a tensor of one name.
        PackError: the package ``safetensors`` is not installed.
    """
    found: dict[str, StoredTensor] = {}
    for path in files:
        for tensor in _file_tensors(path):
            if tensor.name in found:
                raise SourceDamagedError(f"{path.name}: tensor {tensor.name} stands in two files")
            found[tensor.name] = tensor
    return found


def _file_tensors(path: Path) -> Iterator[StoredTensor]:
    try:
        from safetensors import SafetensorError, safe_open  # noqa: PLC0415 - connected side only
    except ImportError as error:
        raise PackError(
            "safetensors: the Python package safetensors is not installed",
            hint="on the connected computer: pip install 'satchel[connected]'",
        ) from error
    try:
        # Opening checks the header against the file; the handle is not needed further.
        with safe_open(path, framework="numpy"):
            pass
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError, struct.error) as error:
        raise SourceDamagedError(
            f"{path}: not a usable safetensors file: {error}",
            hint="it is cut off or damaged; download it again",
        ) from error
    for name, entry in header.items():
        if name != "__metadata__":
            yield StoredTensor(
                name=name,
                dtype=entry["dtype"],
                shape=tuple(entry["shape"]),
                path=path,
                offset_bytes=8 + length + entry["data_offsets"][0],
            )
