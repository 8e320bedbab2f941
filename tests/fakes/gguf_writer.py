"""Write small GGUF files: honest ones in one call, lying ones by patching the bytes.

``write_gguf(path, metadata, tensors)`` takes plain Python values. An ``int`` becomes uint32, a
``float`` float32, a ``bool`` bool, a ``str`` string, a list an array of its first element's type;
``Typed("uint64", 5)`` says otherwise. A tensor is ``Tensor(name, dimensions, "Q8_0")``; without
``data`` its bytes are zero, and with ``sparse=True`` they are a hole that takes no disk space.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwprobe.ggml_types import GGML_TYPES, GGML_TYPES_BY_NAME

_VALUE_TYPES = {
    "uint8": (0, "<B"),
    "int8": (1, "<b"),
    "uint16": (2, "<H"),
    "int16": (3, "<h"),
    "uint32": (4, "<I"),
    "int32": (5, "<i"),
    "float32": (6, "<f"),
    "bool": (7, "<?"),
    "string": (8, ""),
    "array": (9, ""),
    "uint64": (10, "<Q"),
    "int64": (11, "<q"),
    "float64": (12, "<d"),
}
_TENSOR_TYPE_NUMBERS = {kind.name: number for number, kind in GGML_TYPES.items()}


@dataclass(frozen=True, slots=True)
class Typed:
    """A value, or a list of values, with its GGUF type spelled out."""

    kind: str
    value: Any


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor; ``offset`` lies about where its data stands."""

    name: str
    dimensions: tuple[int, ...]
    ggml_type: str = "F32"
    data: bytes | None = None
    offset: int | None = None

    @property
    def size_bytes(self) -> int:
        rows = 1
        for length in self.dimensions[1:]:
            rows *= length
        return GGML_TYPES_BY_NAME[self.ggml_type].row_bytes(self.dimensions[0]) * rows


def gguf_header(
    metadata: Mapping[str, Any] | Iterable[tuple[str, Any]] = (),
    tensors: Iterable[Tensor] = (),
    *,
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    """The bytes before the tensor data, padded to ``alignment`` when there are tensors."""
    pairs = list(metadata.items() if isinstance(metadata, Mapping) else metadata)
    infos = list(tensors)
    out = [struct.pack("<4sIQQ", b"GGUF", version, len(infos), len(pairs))]
    out += [_string(key) + _value(value) for key, value in pairs]
    end = 0
    for info in infos:
        offset = end if info.offset is None else info.offset
        out.append(
            _string(info.name)
            + struct.pack("<I", len(info.dimensions))
            + b"".join(struct.pack("<Q", length) for length in info.dimensions)
            + struct.pack("<IQ", _TENSOR_TYPE_NUMBERS[info.ggml_type], offset)
        )
        end += -(-info.size_bytes // alignment) * alignment
    header = b"".join(out)
    return header + b"\0" * (-len(header) % alignment if infos else 0)


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any] | Iterable[tuple[str, Any]] = (),
    tensors: Iterable[Tensor] = (),
    *,
    version: int = 3,
    alignment: int = 32,
    sparse: bool = False,
) -> Path:
    """Write a GGUF file and return its path. ``alignment`` is not added to the metadata."""
    infos = list(tensors)
    header = gguf_header(metadata, infos, version=version, alignment=alignment)
    with path.open("wb") as file:
        file.write(header)
        for info in infos:
            padding = -info.size_bytes % alignment
            if info.data is not None:
                file.write(info.data + b"\0" * padding)
            elif sparse:
                file.seek(info.size_bytes + padding, 1)
            else:
                file.write(b"\0" * (info.size_bytes + padding))
        file.truncate(file.tell())
    return path


def tiny_llama_metadata(**overrides: Any) -> dict[str, Any]:
    """Metadata of a one-block llama with four tokens; keys may be overridden or added."""
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "general.name": "tiny",
        "general.file_type": 0,
        "llama.block_count": 1,
        "llama.context_length": 512,
        "llama.embedding_length": 32,
        "llama.feed_forward_length": 64,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": 8,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "a"],
        "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -1.0],
        "tokenizer.ggml.token_type": Typed("int32", [2, 3, 3, 1]),
    }
    return {**metadata, **overrides}


def tiny_llama_tensors(ggml_type: str = "F32") -> list[Tensor]:
    """Tensors that go with `tiny_llama_metadata`."""
    return llama_tensors(
        blocks=1, embedding=32, heads=4, kv_heads=2, head=8, feed_forward=64, vocabulary=4,
        ggml_type=ggml_type,
    )  # fmt: skip


def write_tiny_llama(path: Path, **overrides: Any) -> Path:
    """A complete, valid file of a few kilobytes that the engine can load."""
    return write_gguf(path, tiny_llama_metadata(**overrides), tiny_llama_tensors())


def llama_tensors(
    *,
    blocks: int,
    embedding: int,
    heads: int,
    kv_heads: int,
    head: int,
    feed_forward: int,
    vocabulary: int,
    ggml_type: str = "Q4_K",
    output_type: str | None = None,
    tied: bool = False,
    biases: bool = False,
    head_norms: bool = False,
    post_norms: bool = False,
    fused: bool = False,
    experts: int = 0,
) -> list[Tensor]:
    """Tensors of a transformer of the llama family, in the order the engine's converter writes."""
    wide = output_type or ggml_type
    tensors = [Tensor("token_embd.weight", (embedding, vocabulary), wide if tied else ggml_type)]
    tensors += [Tensor("output_norm.weight", (embedding,))]
    tensors += [] if tied else [Tensor("output.weight", (embedding, vocabulary), wide)]
    query, key = heads * head, kv_heads * head
    for block in range(blocks):
        matrices: list[tuple[str, tuple[int, ...]]] = [("attn_output", (query, embedding))]
        if fused:
            matrices += [("attn_qkv", (embedding, query + 2 * key))]
            matrices += [("ffn_up", (embedding, 2 * feed_forward))]
        else:
            matrices += [("attn_q", (embedding, query)), ("attn_k", (embedding, key))]
            matrices += [("attn_v", (embedding, key))]
        three: list[tuple[str, tuple[int, ...]]]
        if experts:
            three = [("ffn_gate_exps", (embedding, feed_forward, experts))]
            three += [("ffn_up_exps", (embedding, feed_forward, experts))]
            three += [("ffn_down_exps", (feed_forward, embedding, experts))]
        elif fused:
            three = [("ffn_down", (feed_forward, embedding))]
        else:
            three = [("ffn_gate", (embedding, feed_forward)), ("ffn_up", (embedding, feed_forward))]
            three += [("ffn_down", (feed_forward, embedding))]
        vectors = [("attn_norm.weight", embedding), ("ffn_norm.weight", embedding)]
        if biases:
            vectors += [("attn_q.bias", query), ("attn_k.bias", key), ("attn_v.bias", key)]
        if head_norms:
            vectors += [("attn_q_norm.weight", head), ("attn_k_norm.weight", head)]
        if post_norms:
            vectors += [("post_attention_norm.weight", embedding)]
            vectors += [("post_ffw_norm.weight", embedding)]
        prefix = f"blk.{block}."
        tensors += [Tensor(prefix + name, (length,)) for name, length in vectors]
        if experts:
            tensors += [Tensor(prefix + "ffn_gate_inp.weight", (embedding, experts))]
        tensors += [
            Tensor(f"{prefix}{name}.weight", shape, ggml_type)
            for name, shape in [*matrices, *three]
        ]
    return tensors


def _string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    typed = value if isinstance(value, Typed) else Typed(_kind(value), value)
    if isinstance(typed.value, list | tuple):
        kind = typed.kind
        items = b"".join(_bare(kind, item) for item in typed.value)
        return struct.pack("<IIQ", 9, _VALUE_TYPES[kind][0], len(typed.value)) + items
    return struct.pack("<I", _VALUE_TYPES[typed.kind][0]) + _bare(typed.kind, typed.value)


def _kind(value: Any) -> str:
    if isinstance(value, list | tuple):
        return _kind(value[0]) if value else "string"
    if isinstance(value, bool):
        return "bool"
    return {int: "uint32", float: "float32", str: "string", bytes: "string"}[type(value)]


def _bare(kind: str, value: Any) -> bytes:
    return _string(value) if kind == "string" else struct.pack(_VALUE_TYPES[kind][1], value)
