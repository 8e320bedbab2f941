"""Models made of pseudo-random numbers, to try and to time the engine with. Pure.

They hold no knowledge. The canary has three blocks, whose matrices have the quantizations whose
kernels differ most between builds of the engine, so that a build that computes nonsense or crashes
on this processor shows within a second. The same bytes come out on every machine.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from hwprobe.ggml_types import GGML_TYPES, GGML_TYPES_BY_NAME

CONTEXT_TOKENS: Final = 256
"""Context of the canary; every model here takes prompts of this length."""
_ALIGNMENT = 32
_HALF_SCALES: Final[Mapping[str, tuple[tuple[int, float], ...]]] = {
    "Q4_0": ((0, 0.01),),
    "Q8_0": ((0, 0.0007),),
    "Q4_K": ((0, 0.0004), (2, 0.003)),
    "Q6_K": ((208, 0.00005),),
}
"""Where a block keeps its half-precision scales, and values that make weights of about 0.05.
Source: the block structs of ggml-common.h."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The sizes of a made-up model of the llama architecture.

    Attributes:
        embedding: width of the residual stream; a multiple of 256 and of ``heads``.
        feed_forward: width of the feed-forward layer; a multiple of 256.
        heads: attention heads, each with keys and values of its own.
        vocabulary: tokens.
        quantizations: of the attention of each block; the feed-forward takes the next one.
    """

    embedding: int
    feed_forward: int
    heads: int
    vocabulary: int
    quantizations: tuple[str, ...]


CANARY: Final = Shape(
    embedding=256,
    feed_forward=512,
    heads=4,
    vocabulary=320,
    quantizations=("Q4_0", "Q4_K", "Q8_0"),
)


def canary_bytes() -> bytes:
    """The canary's GGUF file, about two megabytes."""
    return b"".join(model_pieces(CANARY))


def model_pieces(shape: Shape) -> Iterator[bytes]:
    """The GGUF file of a made-up model, piece by piece: its header, then each matrix."""
    tensors = list(_tensors(shape))
    infos, end = [], 0
    for name, sizes, kind in tensors:
        infos.append(
            _text(name)
            + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
            + struct.pack("<IQ", _NUMBERS[kind], end)
        )
        size = _size(sizes, kind)
        end += size + -size % _ALIGNMENT
    pairs = list(_metadata(shape))
    header = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(pairs)) + b"".join(pairs + infos)
    yield header + b"\0" * (-len(header) % _ALIGNMENT)
    for name, sizes, kind in tensors:
        content = _content(name, sizes, kind)
        yield content + b"\0" * (-len(content) % _ALIGNMENT)


_NUMBERS = {kind.name: number for number, kind in GGML_TYPES.items()}


def _tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...], str]]:
    embedding, inner = shape.embedding, shape.feed_forward
    yield "token_embd.weight", (embedding, shape.vocabulary), "Q8_0"
    yield "output_norm.weight", (embedding,), "F32"
    yield "output.weight", (embedding, shape.vocabulary), "Q6_K"
    for number, attention in enumerate(shape.quantizations):
        wide = shape.quantizations[(number + 1) % len(shape.quantizations)]
        for name in ("attn_norm", "ffn_norm"):
            yield f"blk.{number}.{name}.weight", (embedding,), "F32"
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield f"blk.{number}.{name}.weight", (embedding, embedding), attention
        for name in ("ffn_gate", "ffn_up"):
            yield f"blk.{number}.{name}.weight", (embedding, inner), wide
        yield f"blk.{number}.ffn_down.weight", (inner, embedding), wide


def _size(sizes: Sequence[int], kind: str) -> int:
    rows = sizes[1] if len(sizes) > 1 else 1
    return GGML_TYPES_BY_NAME[kind].row_bytes(sizes[0]) * rows


def _content(name: str, shape: Sequence[int], kind: str) -> bytes:
    if kind == "F32":
        return struct.pack("<f", 1.0) * shape[0]
    one = GGML_TYPES_BY_NAME[kind]
    size = _size(shape, kind)
    content = bytearray(hashlib.shake_128(name.encode()).digest(size))
    for place, scale in _HALF_SCALES[kind]:
        half = struct.pack("<e", scale)
        content[place :: one.block_bytes] = half[:1] * (size // one.block_bytes)
        content[place + 1 :: one.block_bytes] = half[1:] * (size // one.block_bytes)
    return bytes(content)


def _metadata(shape: Shape) -> Iterator[bytes]:
    yield _text("general.architecture") + struct.pack("<I", 8) + _text("llama")
    numbers = {
        "block_count": len(shape.quantizations),
        "context_length": CONTEXT_TOKENS,
        "embedding_length": shape.embedding,
        "feed_forward_length": shape.feed_forward,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.heads,
    }
    for name, number in numbers.items():
        yield _text(f"llama.{name}") + struct.pack("<II", 4, number)
    yield _text("llama.attention.layer_norm_rms_epsilon") + struct.pack("<If", 6, 1e-5)
    yield _text("tokenizer.ggml.model") + struct.pack("<I", 8) + _text("llama")
    texts = b"".join(_text(f"t{number}") for number in range(shape.vocabulary))
    yield _text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, shape.vocabulary) + texts
    scores = struct.pack(f"<{shape.vocabulary}f", *([0.0] * shape.vocabulary))
    yield _text("tokenizer.ggml.scores") + struct.pack("<IIQ", 9, 6, shape.vocabulary) + scores
    kinds = struct.pack(f"<{shape.vocabulary}i", 2, *([1] * (shape.vocabulary - 1)))
    yield _text("tokenizer.ggml.token_type") + struct.pack("<IIQ", 9, 5, shape.vocabulary) + kinds


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()
