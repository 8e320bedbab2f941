"""GGUF files with the dimensions of known model families and no weights: sparse, no vocabulary.

The engine computes their memory without reading tensor data, so a 4 GB model costs kilobytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.fakes.gguf_writer import llama_tensors, write_gguf


def _family(
    architecture: str,
    sizes: tuple[int, int, int, int, int],
    heads: tuple[int, int, int],
    types: tuple[str, str] = ("Q4_K", "Q6_K"),
    *,
    keys: dict[str, Any] | None = None,
    **shape: Any,
) -> dict[str, Any]:
    """Sizes are blocks, embedding, feed-forward, trained context and vocabulary."""
    blocks, embedding, feed_forward, context, vocabulary = sizes
    return {
        "architecture": architecture,
        "context": context,
        "keys": keys or {},
        "shape": {
            "blocks": blocks,
            "embedding": embedding,
            "heads": heads[0],
            "kv_heads": heads[1],
            "head": heads[2],
            "feed_forward": feed_forward,
            "vocabulary": vocabulary,
            "ggml_type": types[0],
            "output_type": types[1],
            **shape,
        },
    }


_SWA = "attention.sliding_window"
_MOE = {"expert_count": 8, "expert_used_count": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama-8b": _family("llama", (32, 4096, 14336, 131072, 128256), (32, 8, 128)),
    "llama-1b": _family("llama", (16, 2048, 8192, 131072, 128256), (32, 8, 64), tied=True),
    "mistral-7b": _family("llama", (32, 4096, 14336, 32768, 32000), (32, 8, 128), ("Q4_0", "Q6_K")),
    "mixtral-8x7b": _family(
        "llama", (32, 4096, 14336, 32768, 32000), (32, 8, 128), keys=_MOE, experts=8
    ),
    "qwen2-0.5b": _family(
        "qwen2", (24, 896, 4864, 32768, 151936), (14, 2, 64), ("Q4_0", "Q4_0"),
        tied=True, biases=True,
    ),
    "qwen3-0.6b": _family(
        "qwen3", (28, 1024, 3072, 40960, 151936), (16, 8, 128), ("Q8_0", "Q8_0"),
        tied=True, head_norms=True,
    ),
    "qwen3-8b": _family(
        "qwen3", (36, 4096, 12288, 40960, 151936), (32, 8, 128), head_norms=True
    ),
    "qwen3-30b-a3b": _family(
        "qwen3moe", (48, 2048, 768, 40960, 151936), (32, 4, 128), experts=128, head_norms=True,
        keys={"expert_count": 128, "expert_used_count": 8, "expert_feed_forward_length": 768},
    ),
    "gemma2-2b": _family(
        "gemma2", (26, 2304, 9216, 8192, 256000), (8, 4, 256), tied=True, post_norms=True,
        keys={_SWA: 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ),
    "gemma3-1b": _family(
        "gemma3", (26, 1152, 6912, 32768, 262144), (4, 1, 256), ("Q8_0", "Q8_0"), tied=True,
        head_norms=True, post_norms=True, keys={_SWA: 512},
    ),
    "gemma3-4b": _family(
        "gemma3", (34, 2560, 10240, 131072, 262144), (8, 4, 256), tied=True, head_norms=True,
        post_norms=True, keys={_SWA: 1024},
    ),
    "phi3-mini": _family(
        "phi3", (32, 3072, 8192, 4096, 32064), (32, 32, 96), ("Q8_0", "Q8_0"), fused=True,
        keys={_SWA: 2047},
    ),
}  # fmt: skip


def write_family(
    name: str, directory: Path, keys: dict[str, Any] | None = None, **replaced: Any
) -> Path:
    """Write the family called ``name``.

    Args:
        name: which.
        directory: where.
        keys: more header keys.
        replaced: overrides its shape, such as its types.
    """
    family = FAMILIES[name]
    shape = {**family["shape"], **replaced}
    prefix = family["architecture"]
    metadata: dict[str, Any] = {
        "general.architecture": prefix,
        "general.name": name,
        f"{prefix}.block_count": shape["blocks"],
        f"{prefix}.context_length": family["context"],
        f"{prefix}.embedding_length": shape["embedding"],
        f"{prefix}.feed_forward_length": shape["feed_forward"],
        f"{prefix}.attention.head_count": shape["heads"],
        f"{prefix}.attention.head_count_kv": shape["kv_heads"],
        f"{prefix}.attention.key_length": shape["head"],
        f"{prefix}.attention.value_length": shape["head"],
        f"{prefix}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{prefix}.rope.dimension_count": shape["head"],
        f"{prefix}.vocab_size": shape["vocabulary"],
        "tokenizer.ggml.model": "no_vocab",
        **{f"{prefix}.{key}": value for key, value in family["keys"].items()},
        **(keys or {}),
    }
    return write_gguf(directory / f"{name}.gguf", metadata, llama_tensors(**shape), sparse=True)
