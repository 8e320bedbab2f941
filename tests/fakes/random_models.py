"""Tiny models of each kind of memory, with random weights and a real tokenizer.

What they say means nothing, but it depends on every token before, so a cache that is wrong shows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench import gguf, vocabulary

WIDE, HEADS, FORWARD, VOCABULARY = 64, 2, 128, 4096
WINDOW_TOKENS = 32
STDDEV = 0.25
"""Large, so that every token leaves a clear trace in what follows."""

Shapes = dict[str, tuple[int, ...]]


def _attention(at: str) -> Shapes:
    names = ("attn_q", "attn_k", "attn_v", "attn_output")
    return {f"{at}.{name}.weight": (WIDE, WIDE) for name in names}


def _forward(at: str) -> Shapes:
    return {
        f"{at}.ffn_norm.weight": (WIDE,),
        f"{at}.ffn_gate.weight": (WIDE, FORWARD),
        f"{at}.ffn_up.weight": (WIDE, FORWARD),
        f"{at}.ffn_down.weight": (FORWARD, WIDE),
    }


def _plain(at: str, _index: int) -> Shapes:
    return {f"{at}.attn_norm.weight": (WIDE,), **_attention(at), **_forward(at)}


def _windowed(at: str, index: int) -> Shapes:
    norms = ("attn_q_norm", "attn_k_norm")
    return {
        **_plain(at, index),
        **{f"{at}.{name}.weight": (WIDE // HEADS,) for name in norms},
        f"{at}.post_attention_norm.weight": (WIDE,),
        f"{at}.post_ffw_norm.weight": (WIDE,),
    }


def _normed(at: str, index: int) -> Shapes:
    norms = ("attn_q_norm", "attn_k_norm")
    return {**_plain(at, index), **{f"{at}.{name}.weight": (WIDE // HEADS,) for name in norms}}


def _recurrent(at: str, _index: int) -> Shapes:
    inner, state, rank = 2 * WIDE, 16, 4
    return {
        f"{at}.attn_norm.weight": (WIDE,),
        f"{at}.ssm_in.weight": (WIDE, 2 * inner),
        f"{at}.ssm_conv1d.weight": (4, inner),
        f"{at}.ssm_conv1d.bias": (inner,),
        f"{at}.ssm_x.weight": (inner, rank + 2 * state),
        f"{at}.ssm_dt.weight": (rank, inner),
        f"{at}.ssm_dt.bias": (inner,),
        f"{at}.ssm_a": (state, inner),
        f"{at}.ssm_d": (inner,),
        f"{at}.ssm_out.weight": (inner, WIDE),
    }


def _hybrid(at: str, index: int) -> Shapes:
    shapes: Shapes = {f"{at}.attn_norm.weight": (WIDE,), **_forward(at)}
    if index % 2:
        norms = ("attn_q_norm", "attn_k_norm")
        return {
            **shapes,
            **_attention(at),
            **{f"{at}.{name}.weight": (WIDE // HEADS,) for name in norms},
        }
    return {
        **shapes,
        f"{at}.shortconv.conv.weight": (3, WIDE),
        f"{at}.shortconv.in_proj.weight": (WIDE, 3 * WIDE),
        f"{at}.shortconv.out_proj.weight": (WIDE, WIDE),
    }


_BLOCKS: dict[str, tuple[str, int, str, Callable[[str, int], Shapes]]] = {
    "plain": ("llama", 2, "output_norm", _plain),
    "ranking": ("qwen3", 2, "output_norm", _normed),
    "sectioned": ("qwen2vl", 2, "output_norm", _plain),
    "windowed": ("gemma3", 6, "output_norm", _windowed),
    "sighted": ("gemma3", 2, "output_norm", _windowed),
    "recurrent": ("mamba", 2, "output_norm", _recurrent),
    "hybrid": ("lfm2", 4, "token_embd_norm", _hybrid),
}
"""Kind to architecture, blocks, the name of the last norm, and the tensors of a block.

Source of names and shapes: the engine's src/models, one file per architecture."""


def write_random(
    kind: str,
    path: Path,
    *,
    seed: int = 1,
    metadata: dict[str, gguf.Value] | None = None,
    judges: tuple[int, ...] = (),
) -> Path:
    """Write a model of a kind of `_BLOCKS`.

    Args:
        kind: which.
        path: the file.
        seed: of the weights.
        metadata: keys beside the usual ones.
        judges: tokens whose rows become a classification head, as converted rerankers have it.
    """
    architecture, blocks, last_norm, block = _BLOCKS[kind]
    shapes: Shapes = {"token_embd.weight": (WIDE, VOCABULARY), f"{last_norm}.weight": (WIDE,)}
    if kind == "sighted":  # else each token follows itself, whatever was seen
        shapes["output.weight"] = (WIDE, VOCABULARY)
    for index in range(blocks):
        shapes |= block(f"blk.{index}", index)
    rng = np.random.default_rng(seed)
    tensors = [_tensor(name, shape, rng) for name, shape in shapes.items()]
    if judges:
        embedding = next(one for one in tensors if one.name == "token_embd.weight").make()
        rows = embedding[list(judges)]
        head = gguf.Tensor(
            name="cls.output.weight",
            dimensions=(WIDE, len(judges)),
            kind="F32",
            make=lambda: rows,
        )
        tensors.append(head)
    gguf.write(path, {**_metadata(architecture, blocks), **(metadata or {})}, tensors)
    return path


def _metadata(architecture: str, blocks: int) -> dict[str, gguf.Value]:
    tokens = vocabulary.make(VOCABULARY)
    kv_heads: gguf.Value = HEADS
    if architecture == "lfm2":
        kv_heads = [HEADS if index % 2 else 0 for index in range(blocks)]
    own: dict[str, gguf.Value] = {
        "block_count": blocks,
        "context_length": 4096,
        "embedding_length": WIDE,
        "feed_forward_length": 0 if architecture == "mamba" else FORWARD,
        "attention.head_count": 0 if architecture == "mamba" else HEADS,
        "attention.head_count_kv": 0 if architecture == "mamba" else kv_heads,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "vocab_size": VOCABULARY,
        "shortconv.l_cache": 3,
        "ssm.conv_kernel": 4,
        "ssm.inner_size": 2 * WIDE,
        "ssm.state_size": 16,
        "ssm.time_step_rank": 4,
    }
    if architecture == "qwen2vl":
        own["rope.dimension_sections"] = [4, 6, 6, 0]
    if architecture == "gemma3":
        own["attention.sliding_window"] = WINDOW_TOKENS
        own["attention.key_length"] = own["attention.value_length"] = WIDE // HEADS
    return {
        "general.architecture": architecture,
        "general.name": f"random weights, {architecture}",
        **{f"{architecture}.{key}": value for key, value in own.items()},
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens.tokens,
        "tokenizer.ggml.token_type": tokens.types,
        "tokenizer.ggml.merges": tokens.merges,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
    }


def _tensor(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> gguf.Tensor:
    size = tuple(reversed(shape))
    values: npt.NDArray[np.float32] = rng.standard_normal(size, dtype=np.float32)
    values *= np.float32(STDDEV)
    if name.endswith("norm.weight"):
        values = np.ones(size, np.float32)
    elif name.endswith(".ssm_a"):
        values = -np.abs(values) - np.float32(0.1)  # a state that fades, not one that explodes
    elif name == "token_embd.weight":
        values[0] = 0.0  # the token that ends an answer is never the likeliest
    return gguf.Tensor(name=name, dimensions=shape, kind="F32", make=lambda: values)
