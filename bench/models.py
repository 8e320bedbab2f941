"""Make the models of the benchmark: real shapes, random weights, the same bytes on every machine.

    python -m bench.models NAME…

Speed does not depend on what the weights say, so none are fetched. Random weights give flat
logits, which is the worst case for samplers and grammars. Rows of the embedding that belong to
`vocabulary.Vocabulary.silent` are zero: with tied weights their logit is exactly 0, so top-k and
greedy sampling never choose them, and no run ends early.

Files are kept under ``build/bench/models``, named after everything that decides their content.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench import gguf, vocabulary

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "bench" / "models"
RECIPE = 1
"""Raised when the same `Shape` would give other bytes."""

QUANTIZE_TIMEOUT_S = 600
WEIGHT_STDDEV = 0.02
"""The usual initialisation of transformers; small enough that activations stay finite."""

CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
"""Adds nothing, so that a chat's prompt is its text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The numbers of a model of the llama family with tied embeddings."""

    blocks: int
    embedding: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocabulary: int
    context: int = 16384
    seed: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model file to be made."""

    name: str
    shape: Shape
    quantization: str


SMOL = Shape(blocks=30, embedding=576, heads=9, kv_heads=3, feed_forward=1536, vocabulary=49_152)
"""The shape of SmolLM2-135M. Source: its config.json. The context is longer, for long prefills."""


def _thin(vocabulary_size: int) -> Shape:
    """One block, so that sampling is what a step costs."""
    return Shape(
        blocks=1,
        embedding=256,
        heads=4,
        kv_heads=4,
        feed_forward=512,
        vocabulary=vocabulary_size,
    )


MODELS: dict[str, Model] = {
    model.name: model
    for model in (
        Model(name="smol-q4", shape=SMOL, quantization="Q4_0"),
        Model(name="smol-q8", shape=SMOL, quantization="Q8_0"),
        # Vocabularies of the Llama 2, Qwen 2.5 and Gemma families.
        Model(name="thin-32k", shape=_thin(32_000), quantization="Q8_0"),
        Model(name="thin-152k", shape=_thin(151_936), quantization="Q8_0"),
        Model(name="thin-262k", shape=_thin(262_144), quantization="Q8_0"),
    )
}


def ensure(name: str) -> Path:
    """The file of a model, made now if it is not there.

    Raises:
        OSError: it cannot be written.
        subprocess.SubprocessError: the engine did not quantize it.
    """
    model = MODELS[name]
    target = FOLDER / f"{name}-{_key(model)}.gguf"
    if target.exists():
        return target
    FOLDER.mkdir(parents=True, exist_ok=True)
    source = target.with_suffix(".f16")
    partial = target.with_suffix(".partial")
    try:
        _write_f16(source, model)
        subprocess.run(
            [sys.executable, "-m", "bench.quantize", source, partial, model.quantization],
            cwd=ROOT,
            check=True,
            capture_output=True,
            timeout=QUANTIZE_TIMEOUT_S,
        )
        partial.rename(target)
    finally:
        source.unlink(missing_ok=True)
        partial.unlink(missing_ok=True)
    return target


def words(name: str) -> tuple[str, ...]:
    """Words that are one token each in this model, with the space before them."""
    return vocabulary.make(MODELS[name].shape.vocabulary).words


def _key(model: Model) -> str:
    facts = {"recipe": RECIPE, **asdict(model)}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def _write_f16(path: Path, model: Model) -> None:
    shape, tokens = model.shape, vocabulary.make(model.shape.vocabulary)
    prefix = "llama"
    metadata: dict[str, gguf.Value] = {
        "general.architecture": prefix,
        "general.name": f"random weights, {model.name}",
        "general.file_type": 1,
        f"{prefix}.block_count": shape.blocks,
        f"{prefix}.context_length": shape.context,
        f"{prefix}.embedding_length": shape.embedding,
        f"{prefix}.feed_forward_length": shape.feed_forward,
        f"{prefix}.attention.head_count": shape.heads,
        f"{prefix}.attention.head_count_kv": shape.kv_heads,
        f"{prefix}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{prefix}.rope.dimension_count": shape.embedding // shape.heads,
        f"{prefix}.rope.freq_base": 100_000.0,
        f"{prefix}.vocab_size": shape.vocabulary,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens.tokens,
        "tokenizer.ggml.token_type": tokens.types,
        "tokenizer.ggml.merges": tokens.merges,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }
    gguf.write(path, metadata, _tensors(shape, tokens.silent))


def _tensors(shape: Shape, silent: range) -> list[gguf.Tensor]:
    rng = np.random.default_rng(shape.seed)
    wide, key = shape.embedding, shape.embedding // shape.heads * shape.kv_heads

    def matrix(name: str, columns: int, rows: int) -> gguf.Tensor:
        return gguf.Tensor(
            name=f"{name}.weight",
            dimensions=(columns, rows),
            kind="F16",
            make=_normal(rng, (rows, columns)),
        )

    def ones(name: str) -> gguf.Tensor:
        return gguf.Tensor(
            name=f"{name}.weight",
            dimensions=(wide,),
            kind="F32",
            make=lambda: np.ones(wide, dtype=np.float32),
        )

    tensors = [
        gguf.Tensor(
            name="token_embd.weight",
            dimensions=(wide, shape.vocabulary),
            kind="F16",
            make=_silenced(_normal(rng, (shape.vocabulary, wide)), silent),
        ),
        ones("output_norm"),
    ]
    for block in range(shape.blocks):
        at = f"blk.{block}"
        tensors += [
            ones(f"{at}.attn_norm"),
            matrix(f"{at}.attn_q", wide, wide),
            matrix(f"{at}.attn_k", wide, key),
            matrix(f"{at}.attn_v", wide, key),
            matrix(f"{at}.attn_output", wide, wide),
            ones(f"{at}.ffn_norm"),
            matrix(f"{at}.ffn_gate", wide, shape.feed_forward),
            matrix(f"{at}.ffn_up", wide, shape.feed_forward),
            matrix(f"{at}.ffn_down", shape.feed_forward, wide),
        ]
    return tensors


def _normal(
    rng: np.random.Generator, size: tuple[int, int]
) -> Callable[[], npt.NDArray[np.float32]]:
    def make() -> npt.NDArray[np.float32]:
        return rng.standard_normal(size, dtype=np.float32) * np.float32(WEIGHT_STDDEV)

    return make


def _silenced(
    make: Callable[[], npt.NDArray[np.float32]], silent: range
) -> Callable[[], npt.NDArray[np.float32]]:
    def silenced() -> npt.NDArray[np.float32]:
        rows = make()
        rows[silent.start : silent.stop] = 0
        return rows

    return silenced


def main() -> None:
    """Make the named models, or all."""
    for name in sys.argv[1:] or MODELS:
        path = ensure(name)
        print(f"{name}: {path} ({path.stat().st_size / 1e6:.0f} MB)")


if __name__ == "__main__":
    main()
