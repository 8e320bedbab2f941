"""Write a GGUF file tensor by tensor. Owner of the package ``gguf``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from bundler.convert.families import Value
from bundler.convert.tokenizers import Vocabulary
from bundler.errors import PackError
from bundler.progress import Progress

GgufType = Literal["F32", "F16", "BF16"]
_BYTES: Final = {"F32": 4, "F16": 2, "BF16": 2}
_FILE_TYPES: Final = {"F32": 0, "F16": 1, "BF16": 32}
"""Source: ``enum llama_ftype`` in llama.h."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutTensor:
    """A tensor to be written.

    Attributes:
        name: in GGUF.
        shape: elements per dimension, the row last.
        kind: element type in the file.
        make: gives the elements when their turn comes; bfloat16 as its 16 bits.
    """

    name: str
    shape: tuple[int, ...]
    kind: GgufType
    make: Callable[[], npt.NDArray[Any]]

    @property
    def size_bytes(self) -> int:
        """Bytes of its data."""
        return int(np.prod(self.shape, dtype=np.int64)) * _BYTES[self.kind]


def write_model(
    target: Path,
    *,
    architecture: str,
    keys: Mapping[str, Value | Sequence[str]],
    vocabulary: Vocabulary | None,
    tensors: Sequence[OutTensor],
    progress: Progress,
) -> None:
    """Write a file; equal inputs give equal bytes. At most one tensor is in memory.

    Args:
        target: must not exist.
        architecture: ``general.architecture``.
        keys: all other keys, by their full names.
        vocabulary: of the model; none in an adapter.
        tensors: in the order of the file.
        progress: shows the bytes written.

    Raises:
        PackError: the package ``gguf`` is not installed, or the file cannot be written.
    """
    try:
        import gguf  # noqa: PLC0415 - connected side only
    except ImportError as error:
        raise PackError(
            "convert: the Python package gguf is not installed",
            hint="on the connected computer: pip install 'satchel[connected]'",
        ) from error
    writer = gguf.GGUFWriter(path=None, arch=architecture)
    for key, value in keys.items():
        _add(writer, key, value)
    if tensors and "general.type" not in keys:
        writer.add_file_type(_FILE_TYPES[_commonest(tensors)])
    if vocabulary is not None:
        _add_vocabulary(writer, vocabulary)
    types = gguf.GGMLQuantizationType
    for tensor in tensors:
        writer.add_tensor_info(
            tensor.name,
            tensor.shape,
            np.dtype(np.float32 if tensor.kind == "F32" else np.float16),
            tensor.size_bytes,
            raw_dtype=types[tensor.kind],
        )
    total = sum(tensor.size_bytes for tensor in tensors)
    try:
        writer.write_header_to_file(path=target)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        with progress.stage("converting", total) as advance:
            for tensor in tensors:
                writer.write_tensor_data(np.ascontiguousarray(tensor.make()))
                advance(tensor.size_bytes)
    except OSError as error:
        target.unlink(missing_ok=True)
        raise PackError(f"{target}: {(error.strerror or 'unwritable').lower()}") from error
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    finally:
        writer.close()


def _commonest(tensors: Sequence[OutTensor]) -> str:
    """The element type of most weights; vectors stay in 32 bits whatever the file is called."""
    sizes = dict.fromkeys(_BYTES, 0)
    for tensor in tensors:
        if len(tensor.shape) > 1:
            sizes[tensor.kind] += tensor.size_bytes
    return max(sizes, key=lambda kind: sizes[kind])


def _add(writer: Any, key: str, value: Value | Sequence[str]) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, list(value))


def _add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    prefix = "tokenizer.ggml."
    writer.add_string(prefix + "model", vocabulary.model)
    writer.add_string(prefix + "pre", vocabulary.pre)
    writer.add_array(prefix + "tokens", list(vocabulary.tokens))
    writer.add_array(prefix + "token_type", list(vocabulary.kinds))
    if vocabulary.scores:
        writer.add_array(prefix + "scores", list(vocabulary.scores))
    if vocabulary.merges:
        writer.add_array(prefix + "merges", list(vocabulary.merges))
    for key, value in vocabulary.flags.items():
        _add(writer, prefix + key, value)
