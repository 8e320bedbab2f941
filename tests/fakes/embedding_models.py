"""Encoders that turn texts into vectors: sparse ones of known dimensions, and tiny ones that run.

The tiny ones have random weights and a word-piece vocabulary of letters and a few words, so that
every text has tokens and different texts get different vectors.
"""

from __future__ import annotations

import random
import string
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.fakes.gguf_writer import Tensor, Typed, write_gguf

POOLING = {"none": 0, "mean": 1, "cls": 2, "last": 3, "rank": 4}
WORDS = ("sky", "blue", "grass", "green", "the", "is", "cat", "dog", "and", "hello", "world")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNK, CLS, SEP, MASK = range(5)
SPACE = "\u2581"
"""How the engine marks the first piece of a word."""

SHAPES: dict[str, tuple[str, int, int, int, int, int, int]] = {
    "minilm-l6": ("bert", 6, 384, 1536, 12, 512, 30522),
    "bge-large": ("bert", 24, 1024, 4096, 16, 512, 30522),
    "bge-m3": ("bert", 24, 1024, 4096, 16, 8192, 250002),
    "nomic-embed": ("nomic-bert", 12, 768, 3072, 12, 2048, 30522),
}
"""Architecture, blocks, embedding, feed-forward, heads, trained context, vocabulary."""


def vocabulary() -> list[str]:
    """Special tokens, letters at the start of a word and inside, and a few words."""
    letters = string.ascii_lowercase + string.digits + ".,!?"
    return [*SPECIAL, *(SPACE + c for c in letters), *letters, *(SPACE + word for word in WORDS)]


def encoder_metadata(
    shape: tuple[str, int, int, int, int, int, int], *, pooling: str | None, tokens: list[str]
) -> dict[str, Any]:
    """The header of an encoder; no ``tokens`` leave it without a vocabulary."""
    architecture, blocks, embedding, inner, heads, context, size = shape
    keys: dict[str, Any] = {
        "general.architecture": architecture,
        "general.name": "encoder",
        f"{architecture}.block_count": blocks,
        f"{architecture}.context_length": context,
        f"{architecture}.embedding_length": embedding,
        f"{architecture}.feed_forward_length": inner,
        f"{architecture}.attention.head_count": heads,
        f"{architecture}.attention.layer_norm_epsilon": 1e-12,
        f"{architecture}.attention.causal": False,
        f"{architecture}.vocab_size": size,
        "tokenizer.ggml.token_type_count": 2,
    }
    if architecture == "nomic-bert":
        keys[f"{architecture}.rope.freq_base"] = 1000.0
    if pooling is not None:
        keys[f"{architecture}.pooling_type"] = POOLING[pooling]
    if not tokens:
        return keys | {"tokenizer.ggml.model": "no_vocab"}
    kinds = [3 if token in SPECIAL else 1 for token in tokens]
    return keys | {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": Typed("int32", kinds),
        "tokenizer.ggml.unknown_token_id": UNK,
        "tokenizer.ggml.seperator_token_id": SEP,
        "tokenizer.ggml.padding_token_id": PAD,
        "tokenizer.ggml.cls_token_id": CLS,
        "tokenizer.ggml.bos_token_id": CLS,
        "tokenizer.ggml.mask_token_id": MASK,
    }


def encoder_tensors(
    shape: tuple[str, int, int, int, int, int, int], *, ggml_type: str = "F32", classes: int = 0
) -> list[Tensor]:
    """The tensors of an encoder, with a head of ``classes`` outputs if there are any."""
    architecture, blocks, embedding, inner, _heads, context, size = shape
    nomic = architecture == "nomic-bert"
    tensors = [
        Tensor("token_embd.weight", (embedding, size), ggml_type),
        Tensor("token_types.weight", (embedding, 2)),
        Tensor("token_embd_norm.weight", (embedding,)),
        Tensor("token_embd_norm.bias", (embedding,)),
    ]
    if not nomic:
        tensors.append(Tensor("position_embd.weight", (embedding, context)))
    for block in range(blocks):
        matrices = {"attn_output": (embedding, embedding)}
        if nomic:
            matrices |= {"attn_qkv": (embedding, 3 * embedding), "ffn_gate": (embedding, inner)}
        else:
            matrices |= {f"attn_{part}": (embedding, embedding) for part in "qkv"}
        matrices |= {"ffn_up": (embedding, inner), "ffn_down": (inner, embedding)}
        for name, dimensions in matrices.items():
            tensors.append(Tensor(f"blk.{block}.{name}.weight", dimensions, ggml_type))
            if not nomic:
                tensors.append(Tensor(f"blk.{block}.{name}.bias", dimensions[1:]))
        for norm in ("attn_output_norm", "layer_output_norm"):
            tensors.append(Tensor(f"blk.{block}.{norm}.weight", (embedding,)))
            tensors.append(Tensor(f"blk.{block}.{norm}.bias", (embedding,)))
    if classes:
        tensors.append(Tensor("cls.weight", (embedding, embedding)))
        tensors.append(Tensor("cls.bias", (embedding,)))
        tensors.append(Tensor("cls.output.weight", (embedding, classes)))
        tensors.append(Tensor("cls.output.bias", (classes,)))
    return tensors


def write_shape(name: str, directory: Path, ggml_type: str = "F16") -> Path:
    """A sparse file of a known model's dimensions."""
    shape = SHAPES[name]
    metadata = encoder_metadata(shape, pooling="mean", tokens=[])
    tensors = encoder_tensors(shape, ggml_type=ggml_type)
    return write_gguf(directory / f"{name}.gguf", metadata, tensors, sparse=True)


def write_encoder(
    path: Path,
    *,
    pooling: str | None = "mean",
    architecture: str = "bert",
    context: int = 64,
    classes: int = 0,
    seed: int = 1,
    keys: Mapping[str, Any] | None = None,
) -> Path:
    """A tiny encoder with random weights that the engine runs.

    Args:
        path: the file.
        pooling: how it pools; ``None`` leaves the key out.
        architecture: ``bert`` or ``nomic-bert``.
        context: trained context in tokens.
        classes: outputs of a classification head, as rerankers have; 0 for none.
        seed: of the weights.
        keys: more header keys.
    """
    tokens = vocabulary()
    shape = (architecture, 2, 32, 64, 4, context, len(tokens))
    dice = random.Random(seed)
    tensors = [_filled(one, dice) for one in encoder_tensors(shape, classes=classes)]
    metadata = encoder_metadata(shape, pooling=pooling, tokens=tokens)
    return write_gguf(path, {**metadata, **(keys or {})}, tensors)


def _filled(tensor: Tensor, dice: random.Random) -> Tensor:
    count = tensor.size_bytes // 4
    if "norm.weight" in tensor.name:
        numbers = [1.0] * count
    elif tensor.name.endswith(".bias"):
        numbers = [0.0] * count
    else:
        numbers = [dice.gauss(0.0, 0.3) for _ in range(count)]
    return replace(tensor, data=struct.pack(f"<{count}f", *numbers))
