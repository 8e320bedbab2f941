"""A model of three blocks made of pseudo-random numbers, to try the engine with. Pure.

It holds no knowledge. Its matrices have the quantizations whose kernels differ most between
builds of the engine, so that a build that computes nonsense or crashes on this processor shows
within a second. The same bytes come out on every machine.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from hwprobe.ggml_types import GGML_TYPES, GGML_TYPES_BY_NAME

EMBEDDING: Final = 256
FEED_FORWARD: Final = 512
HEADS: Final = 4
VOCABULARY: Final = 320
CONTEXT_TOKENS: Final = 256
_ALIGNMENT = 32
_HALF_SCALES: Final[Mapping[str, tuple[tuple[int, float], ...]]] = {
    "Q4_0": ((0, 0.01),),
    "Q8_0": ((0, 0.0007),),
    "Q4_K": ((0, 0.0004), (2, 0.003)),
    "Q6_K": ((208, 0.00005),),
}
"""Where a block keeps its half-precision scales, and values that make weights of about 0.05.
Source: the block structs of ggml-common.h."""

_BLOCKS: Final = ("Q4_0", "Q4_K", "Q8_0")
"""Quantization of the attention of each block; the feed-forward takes the next one."""


def canary_bytes() -> bytes:
    """The GGUF file, about two megabytes."""
    tensors = list(_tensors())
    infos, data, end = [], [], 0
    for name, shape, kind in tensors:
        content = _content(name, shape, kind)
        infos.append(
            _text(name)
            + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
            + struct.pack("<IQ", _NUMBERS[kind], end)
        )
        padded = content + b"\0" * (-len(content) % _ALIGNMENT)
        data.append(padded)
        end += len(padded)
    pairs = list(_metadata())
    header = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(pairs)) + b"".join(pairs + infos)
    return b"".join([header, b"\0" * (-len(header) % _ALIGNMENT), *data])


_NUMBERS = {kind.name: number for number, kind in GGML_TYPES.items()}


def _tensors() -> Iterator[tuple[str, tuple[int, ...], str]]:
    yield "token_embd.weight", (EMBEDDING, VOCABULARY), "Q8_0"
    yield "output_norm.weight", (EMBEDDING,), "F32"
    yield "output.weight", (EMBEDDING, VOCABULARY), "Q6_K"
    for number, attention in enumerate(_BLOCKS):
        wide = _BLOCKS[(number + 1) % len(_BLOCKS)]
        for name in ("attn_norm", "ffn_norm"):
            yield f"blk.{number}.{name}.weight", (EMBEDDING,), "F32"
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield f"blk.{number}.{name}.weight", (EMBEDDING, EMBEDDING), attention
        for name in ("ffn_gate", "ffn_up"):
            yield f"blk.{number}.{name}.weight", (EMBEDDING, FEED_FORWARD), wide
        yield f"blk.{number}.ffn_down.weight", (FEED_FORWARD, EMBEDDING), wide


def _content(name: str, shape: Sequence[int], kind: str) -> bytes:
    if kind == "F32":
        return struct.pack("<f", 1.0) * shape[0]
    one = GGML_TYPES_BY_NAME[kind]
    size = one.row_bytes(shape[0]) * shape[1]
    content = bytearray(hashlib.shake_128(name.encode()).digest(size))
    for place, scale in _HALF_SCALES[kind]:
        half = struct.pack("<e", scale)
        content[place :: one.block_bytes] = half[:1] * (size // one.block_bytes)
        content[place + 1 :: one.block_bytes] = half[1:] * (size // one.block_bytes)
    return bytes(content)


def _metadata() -> Iterator[bytes]:
    yield _text("general.architecture") + struct.pack("<I", 8) + _text("llama")
    numbers = {
        "block_count": len(_BLOCKS),
        "context_length": CONTEXT_TOKENS,
        "embedding_length": EMBEDDING,
        "feed_forward_length": FEED_FORWARD,
        "attention.head_count": HEADS,
        "attention.head_count_kv": HEADS,
    }
    for name, number in numbers.items():
        yield _text(f"llama.{name}") + struct.pack("<II", 4, number)
    yield _text("llama.attention.layer_norm_rms_epsilon") + struct.pack("<If", 6, 1e-5)
    yield _text("tokenizer.ggml.model") + struct.pack("<I", 8) + _text("llama")
    texts = b"".join(_text(f"t{number}") for number in range(VOCABULARY))
    yield _text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, VOCABULARY) + texts
    scores = struct.pack(f"<{VOCABULARY}f", *([0.0] * VOCABULARY))
    yield _text("tokenizer.ggml.scores") + struct.pack("<IIQ", 9, 6, VOCABULARY) + scores
    kinds = struct.pack(f"<{VOCABULARY}i", 2, *([1] * (VOCABULARY - 1)))
    yield _text("tokenizer.ggml.token_type") + struct.pack("<IIQ", 9, 5, VOCABULARY) + kinds


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()
