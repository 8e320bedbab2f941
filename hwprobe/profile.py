"""What placement and the catalogue need to know about a model, drawn from its GGUF header. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Final

from hwprobe.errors import GgufError
from hwprobe.ggml_types import FILE_TYPES
from hwprobe.gguf_reader import GgufArray, GgufHeader
from hwprobe.gguf_tensors import TensorInfo

MAX_BLOCKS: Final = 512
"""Source: LLAMA_MAX_LAYERS in llama-hparams.h."""
_MAX_EXPERTS: Final = 1024
"""Why: the engine's own bound is 512 (LLAMA_MAX_EXPERTS in llama-hparams.h)."""
_MAX_NUMBER: Final = 2**31 - 1
"""Why: the engine keeps these numbers in int32_t."""
TENSOR_ALIGNMENT_BYTES: Final = 32
"""Each weight is padded to this in its buffer. Source: TENSOR_ALIGNMENT in ggml-impl.h."""

IDENTITY_FIELDS: Final = (
    "architecture",
    "parameter_count",
    "block_count",
    "embedding_length",
    "context_length",
    "vocabulary_size",
    "file_size_bytes",
)
"""What a signed profile and the profile of the file it describes must agree on."""

_BLOCK = re.compile(r"blk\.([0-9]{1,4})\.")
_INPUT_TENSORS = ("token_embd", "position_embd", "token_types", "per_layer_token_embd")
_POOLING = {0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"}  # llama_pooling_type, llama.h
NO_CACHE_ARCHITECTURES: Final = frozenset(
    {"bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "neo-bert"}
    | {"eurobert", "modern-bert", "gemma-embedding"}
)
"""Encoders. Source: llama_model::create_memory in llama-model.cpp returns none for these."""
_DEFAULT_SWA = {"gemma2": (4096, 2), "gemma3": (0, 6), "gpt-oss": (0, 2), "cohere2": (0, 4)}
"""Window when the file names none, and every how many blocks one attends to everything.

Source: load_arch_hparams of each architecture in the engine's src/models. Architectures that are
not listed here are taken to attend to everything, which over-predicts their cache.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProfile:
    """A model as numbers: everything placement needs, nothing of its weights. Hashable.

    Attributes:
        architecture: GGUF's name, such as ``llama`` or ``qwen3``.
        name: ``general.name``, or empty.
        quantization: such as ``Q4_K_M`` or ``F16``; the commonest tensor type when the file
            does not say.
        parameter_count: elements of all tensors.
        block_count: transformer blocks.
        embedding_length: width of the residual stream.
        head_count: query heads, the most of any block.
        head_count_kv: key and value heads, the most of any block.
        kv_heads: key and value heads of each block; 0 where a block has no attention.
        key_length: elements of one key of one head.
        value_length: elements of one value of one head.
        feed_forward_length: width of the feed-forward layer, the most of any block.
        context_length: context the model was trained on, in tokens.
        vocabulary_size: tokens, rows of the embedding matrix.
        merge_count: merges of a BPE tokenizer.
        sliding_window: tokens a sliding block looks back on; 0 when there is none.
        sliding_blocks: indices of the blocks that only look back that far.
        expert_count: experts of a mixture; 0 for a dense model.
        expert_used_count: experts one token passes through.
        expert_feed_forward_length: width of one expert; 0 for a dense model.
        input_bytes: weights that always stay in host memory (the embedding matrices).
        block_bytes: weights of each block.
        output_bytes: weights behind the last block.
        tied_output_bytes: size of the embedding matrix when it also serves as output matrix.
        tied_output_type: its tensor type, or empty.
        recurrent_bytes: recurrent state of one sequence; 0 for pure attention.
        weights_bytes: all weights, each padded as in the engine's buffers.
        file_size_bytes: size of the file.
        causal: attends to what came before only, so it can generate token after token.
        pooling: how an embedding model pools: ``none``, ``mean``, ``cls``, ``last``, ``rank``;
            ``None`` when the file does not say.
        chat_template: the Jinja source, or ``None``.
    """

    architecture: str
    name: str
    quantization: str
    parameter_count: int
    block_count: int
    embedding_length: int
    head_count: int
    head_count_kv: int
    kv_heads: tuple[int, ...]
    key_length: int
    value_length: int
    feed_forward_length: int
    context_length: int
    vocabulary_size: int
    merge_count: int
    sliding_window: int
    sliding_blocks: tuple[int, ...]
    expert_count: int
    expert_used_count: int
    expert_feed_forward_length: int
    input_bytes: int
    block_bytes: tuple[int, ...]
    output_bytes: int
    tied_output_bytes: int
    tied_output_type: str
    recurrent_bytes: int
    weights_bytes: int
    file_size_bytes: int
    causal: bool
    pooling: str | None
    chat_template: str | None = None

    @property
    def pools(self) -> bool:
        """Whether it only turns texts into vectors, each within one micro-batch.

        Causal models that take the last token's vector do not need that: what a token sees is
        already computed.
        """
        return not self.causal or self.pooling in {"mean", "cls", "rank"}

    def to_json(self) -> dict[str, Any]:
        """A dictionary of strings, integers, booleans, lists and ``None``; no floats."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> ModelProfile:
        """The inverse of `to_json`, also for records of other releases.

        A field this release does not know is ignored: a later one may have added it. A field
        that was added since must have a default, which stands in for it in an older record.

        Raises:
            GgufError: a field is missing or of another type.
        """
        made: dict[str, Any] = {}
        for field in fields(cls):
            if field.name not in record and field.default is not MISSING:
                continue
            value = record.get(field.name)
            if field.name not in record or not _fits(str(field.type), value):
                raise GgufError(
                    offset=0,
                    expected=f"a model profile with {field.name} as {field.type}",
                    found=repr(value)[:80],
                )
            made[field.name] = tuple(value) if isinstance(value, list) else value
        profile = cls(**made)
        profile.check_sizes()
        return profile

    def check_sizes(self) -> None:
        """Refuse sizes that contradict each other or that no file could have.

        A record comes from elsewhere, and whoever reckons with it makes lists of its lengths.

        Raises:
            GgufError: a number is out of range, or a list has not one entry per block.
        """
        ranges = {
            "block_count": (1, MAX_BLOCKS),
            "embedding_length": (1, _MAX_NUMBER),
            "context_length": (1, _MAX_NUMBER),
            "sliding_window": (0, _MAX_NUMBER),
            "expert_count": (0, _MAX_EXPERTS),
            "expert_used_count": (0, _MAX_EXPERTS),
        }
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise _bad_record(name, f"from {low} to {high}", getattr(self, name))
        for name in ("kv_heads", "block_bytes"):
            if len(getattr(self, name)) != self.block_count:
                expected = f"with one entry for each of {self.block_count} blocks"
                raise _bad_record(name, expected, len(getattr(self, name)))
        if any(block >= self.block_count for block in self.sliding_blocks):
            raise _bad_record("sliding_blocks", "of blocks that exist", max(self.sliding_blocks))
        if len(set(self.sliding_blocks)) != len(self.sliding_blocks):
            raise _bad_record("sliding_blocks", "with each block once", len(self.sliding_blocks))

    def identity(self) -> tuple[tuple[str, str | int], ...]:
        """The facts that stand in the file itself and mean the same in every release.

        Sizes that we derive may be derived better one day; these never change.
        """
        return tuple((name, getattr(self, name)) for name in IDENTITY_FIELDS)


def model_profile(header: GgufHeader) -> ModelProfile:
    """Draw the profile from a header.

    Raises:
        GgufError: the file is no language model, or a key is missing or out of range.
    """
    if header.string("general.type", "model") != "model":
        raise header.unexpected("general.type", "'model'")
    architecture = header.string("general.architecture")
    metadata = _Keys(header, architecture)
    blocks = metadata.integer("block_count", low=1, high=MAX_BLOCKS)
    heads = metadata.per_block("attention.head_count", blocks, default=0)
    kv_heads = metadata.per_block("attention.head_count_kv", blocks, default=max(heads))
    embedding = metadata.integer("embedding_length", low=1)
    head_length = embedding // max(heads) if max(heads) else 0
    template = header.metadata.get("tokenizer.chat_template")
    window, sliding = _sliding(metadata, blocks)
    weights = _weights(header.tensors, blocks)
    return ModelProfile(
        architecture=architecture,
        name=header.string("general.name", ""),
        quantization=_quantization(header),
        parameter_count=sum(tensor.element_count for tensor in header.tensors),
        block_count=blocks,
        embedding_length=embedding,
        head_count=max(heads),
        head_count_kv=max(kv_heads),
        kv_heads=kv_heads,
        key_length=metadata.integer("attention.key_length", default=head_length),
        value_length=metadata.integer("attention.value_length", default=head_length),
        feed_forward_length=max(metadata.per_block("feed_forward_length", blocks, default=0)),
        context_length=metadata.integer("context_length", low=1),
        vocabulary_size=_vocabulary_size(metadata),
        merge_count=header.array_length("tokenizer.ggml.merges"),
        sliding_window=window,
        sliding_blocks=sliding,
        expert_count=metadata.integer("expert_count", default=0, high=_MAX_EXPERTS),
        expert_used_count=metadata.integer("expert_used_count", default=0, high=_MAX_EXPERTS),
        expert_feed_forward_length=metadata.integer("expert_feed_forward_length", default=0),
        recurrent_bytes=_recurrent_bytes(metadata, blocks),
        file_size_bytes=header.file_size_bytes,
        causal=_is_causal(metadata),
        pooling=_pooling(metadata),
        chat_template=template if isinstance(template, str) else None,
        **weights,
    )


class _Keys:
    """Typed access to the keys of one architecture."""

    def __init__(self, header: GgufHeader, architecture: str) -> None:
        self.header = header
        self.architecture = architecture

    def key(self, suffix: str) -> str:
        return f"{self.architecture}.{suffix}"

    def integer(
        self, suffix: str, *, default: int | None = None, low: int = 0, high: int = _MAX_NUMBER
    ) -> int:
        value = self.header.integer(self.key(suffix), default)
        if not low <= value <= high:
            raise self.header.unexpected(self.key(suffix), f"an integer from {low} to {high}")
        return value

    def per_block(self, suffix: str, blocks: int, *, default: int) -> tuple[int, ...]:
        """One number for all blocks, or one per block."""
        value = self.header.metadata.get(self.key(suffix))
        if not isinstance(value, tuple):
            return (self.integer(suffix, default=default),) * blocks
        numbers = tuple(item for item in value if isinstance(item, int) and 0 <= item < 2**31)
        if len(numbers) != len(value) or len(numbers) < blocks:
            raise self.header.unexpected(self.key(suffix), f"{blocks} integers")
        return numbers[:blocks]


def _sliding(metadata: _Keys, blocks: int) -> tuple[int, tuple[int, ...]]:
    if metadata.architecture not in _DEFAULT_SWA:
        return 0, ()
    default_window, period = _DEFAULT_SWA[metadata.architecture]
    window = metadata.integer("attention.sliding_window", default=default_window)
    if window == 0:
        return 0, ()
    pattern = metadata.header.metadata.get(metadata.key("attention.sliding_window_pattern"))
    if isinstance(pattern, tuple):
        return window, tuple(index for index, flag in enumerate(pattern[:blocks]) if flag)
    period = metadata.integer("attention.sliding_window_pattern", default=period)
    return window, tuple(
        index for index in range(blocks) if period == 0 or index % period < period - 1
    )


def _weights(tensors: tuple[TensorInfo, ...], blocks: int) -> dict[str, Any]:
    by_block = [0] * blocks
    by_name = {tensor.name: tensor for tensor in tensors}
    inputs = outputs = 0
    for tensor in tensors:
        size = -(-tensor.size_bytes // TENSOR_ALIGNMENT_BYTES) * TENSOR_ALIGNMENT_BYTES
        match = _BLOCK.match(tensor.name)
        if match and int(match[1]) < blocks:
            by_block[int(match[1])] += size
        elif tensor.name.startswith(_INPUT_TENSORS):
            inputs += size
        else:
            outputs += size
    embedding = by_name.get("token_embd.weight")
    tied = embedding if embedding is not None and "output.weight" not in by_name else None
    return {
        "input_bytes": inputs,
        "block_bytes": tuple(by_block),
        "output_bytes": outputs,
        "tied_output_bytes": tied.size_bytes if tied else 0,
        "tied_output_type": tied.ggml_type if tied else "",
        "weights_bytes": inputs + sum(by_block) + outputs,
    }


def _quantization(header: GgufHeader) -> str:
    number = header.metadata.get("general.file_type")
    if isinstance(number, int) and number in FILE_TYPES:
        return FILE_TYPES[number]
    bytes_by_type: Counter[str] = Counter()
    for tensor in header.tensors:
        bytes_by_type[tensor.ggml_type] += tensor.size_bytes
    most = max(bytes_by_type.items(), key=lambda item: (item[1], item[0]), default=("unknown", 0))
    return most[0]


def _vocabulary_size(metadata: _Keys) -> int:
    header = metadata.header
    for tensor in header.tensors:
        if tensor.name == "token_embd.weight" and len(tensor.dimensions) > 1:
            return tensor.dimensions[1]
    tokens = header.array_length("tokenizer.ggml.tokens")
    return tokens or metadata.integer("vocab_size", default=0)


def _recurrent_bytes(metadata: _Keys, blocks: int) -> int:
    """State of one sequence in F32. Source: n_embd_r and n_embd_s in llama-hparams.cpp (Mamba).

    All blocks are counted, also the attention blocks of a hybrid: an upper bound.
    """
    inner = metadata.integer("ssm.inner_size", default=0)
    state = metadata.integer("ssm.state_size", default=0)
    kernel = metadata.integer("ssm.conv_kernel", default=0)
    groups = metadata.integer("ssm.group_count", default=0)
    convolution = max(0, kernel - 1) * (inner + 2 * groups * state)
    return blocks * 4 * (convolution + state * inner)


def _is_causal(metadata: _Keys) -> bool:
    if metadata.architecture in NO_CACHE_ARCHITECTURES:
        return False
    value = metadata.header.metadata.get(metadata.key("attention.causal"), True)
    return bool(value) and not isinstance(value, GgufArray)


def _pooling(metadata: _Keys) -> str | None:
    key = metadata.key("pooling_type")
    if key not in metadata.header.metadata:
        return None
    return _POOLING.get(metadata.integer("pooling_type"), "none")


def _bad_record(name: str, expected: str, found: int) -> GgufError:
    return GgufError(offset=0, expected=f"a model profile with {name} {expected}", found=str(found))


def _fits(annotation: str, value: object) -> bool:
    """Whether a JSON value has the type that a field of the profile is annotated with."""
    if annotation == "bool":
        return isinstance(value, bool)
    if annotation == "int":
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if annotation == "tuple[int, ...]":
        return isinstance(value, list | tuple) and all(_fits("int", item) for item in value)
    return isinstance(value, str) or (annotation == "str | None" and value is None)
