"""What placement and the catalogue need to know about a model, drawn from its GGUF header. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Final

from hwprobe.errors import GgufError
from hwprobe.ggml_types import FILE_TYPES
from hwprobe.gguf_reader import GgufArray, GgufHeader
from hwprobe.gguf_tensors import TensorInfo
from hwprobe.layers import (
    MAX_NUMBER,
    Keys,
    blocks_with_state,
    cached_heads,
    sliding_window,
    state_bytes,
    state_row_elements,
)

MAX_BLOCKS: Final = 512
"""Source: LLAMA_MAX_LAYERS in llama-hparams.h."""
_MAX_EXPERTS: Final = 1024
"""Why: the engine's own bound is 512 (LLAMA_MAX_EXPERTS in llama-hparams.h)."""
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

_DRAFT = "draft"
_BLOCK = re.compile(r"blk\.([0-9]{1,4})\.")
_INPUT_TENSORS = ("token_embd", "position_embd", "token_types", "per_layer_token_embd")
_POOLING = {0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"}  # llama_pooling_type, llama.h
NO_CACHE_ARCHITECTURES: Final = frozenset(
    {"bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "neo-bert"}
    | {"eurobert", "modern-bert", "gemma-embedding"}
)
"""Encoders. Source: llama_model::create_memory in llama-model.cpp returns none for these."""
_TIED_TWICE: Final = frozenset({"gemma3n", "gemma4"})
"""Architectures that store a tied embedding again whatever its buffer. Source: src/models, where
the output matrix is made before the embedding."""


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
        kv_heads: key and value heads of each block; 0 where a block has no cache of its own.
        key_length: elements of one key of one head.
        value_length: elements of one value of one head; 0 where values are computed from the
            keys (latent attention), so that no cache of them is kept.
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
        gated: the feed-forward layer has a gate beside its way up.
        state_blocks: blocks that keep a running state; empty in older records, which spread
            ``recurrent_bytes`` over all.
        state_row_elements: activations of one token at the widest stage of such a block.
        window_key_length: elements of a key in sliding blocks; 0 means ``key_length``.
        window_value_length: the same of a value.
        side_elements: activations of one token that run beside the residual stream.
        tied_twice: a tied embedding is stored again whatever its buffer.
        expert_bytes: of ``block_bytes``, what the experts of each block take; empty when unknown.
        draft: the model that proposes its tokens, loaded beside it; ``None`` without one.
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
    gated: bool = True
    state_blocks: tuple[int, ...] = ()
    state_row_elements: int = 0
    window_key_length: int = 0
    window_value_length: int = 0
    side_elements: int = 0
    tied_twice: bool = False
    expert_bytes: tuple[int, ...] = ()
    draft: ModelProfile | None = None

    @property
    def pools(self) -> bool:
        """Whether it only turns texts into vectors, each within one micro-batch.

        Causal models that take the last token's vector do not need that: what a token sees is
        already computed.
        """
        return not self.causal or self.pooling in {"mean", "cls", "rank"}

    def to_json(self) -> dict[str, Any]:
        """A dictionary of strings, integers, booleans, lists and ``None``; no floats.

        The draft model's is under ``draft``, if there is one.
        """
        record = {
            field.name: list(value) if isinstance(value, tuple) else value
            for field in fields(self)
            if field.name != _DRAFT
            for value in (getattr(self, field.name),)
        }
        return record if self.draft is None else {**record, _DRAFT: self.draft.to_json()}

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
            if field.name == _DRAFT:
                made[_DRAFT] = _draft(value)
                continue
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
            "embedding_length": (1, MAX_NUMBER),
            "context_length": (1, MAX_NUMBER),
            "sliding_window": (0, MAX_NUMBER),
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
        if len(self.expert_bytes) not in {0, self.block_count}:
            raise _bad_record("expert_bytes", "with one entry per block", len(self.expert_bytes))
        for name in ("sliding_blocks", "state_blocks"):
            listed = getattr(self, name)
            if any(block >= self.block_count for block in listed):
                raise _bad_record(name, "of blocks that exist", max(listed))
            if len(set(listed)) != len(listed):
                raise _bad_record(name, "with each block once", len(listed))

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
    keys = Keys(header, architecture)
    blocks = keys.integer("block_count", low=1, high=MAX_BLOCKS)
    heads = keys.per_block("attention.head_count", blocks, default=0)
    kv_heads = keys.per_block("attention.head_count_kv", blocks, default=max(heads))
    embedding = keys.integer("embedding_length", low=1)
    head_length = embedding // max(heads) if max(heads) else 0
    latent = keys.has("attention.key_length_mla") and keys.has("attention.value_length_mla")
    value_length = 0 if latent else keys.integer("attention.value_length", default=head_length)
    stateful = blocks_with_state(keys, header.tensors, blocks)
    template = header.metadata.get("tokenizer.chat_template")
    window, sliding = sliding_window(keys, blocks)
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
        kv_heads=cached_heads(keys, kv_heads, stateful),
        key_length=keys.integer("attention.key_length", default=head_length),
        value_length=value_length,
        feed_forward_length=max(keys.per_block("feed_forward_length", blocks, default=0)),
        context_length=keys.integer("context_length", low=1),
        vocabulary_size=_vocabulary_size(keys),
        merge_count=header.array_length("tokenizer.ggml.merges"),
        sliding_window=window,
        sliding_blocks=sliding,
        expert_count=keys.integer("expert_count", default=0, high=_MAX_EXPERTS),
        expert_used_count=keys.integer("expert_used_count", default=0, high=_MAX_EXPERTS),
        expert_feed_forward_length=keys.integer("expert_feed_forward_length", default=0),
        recurrent_bytes=len(stateful) * state_bytes(keys, embedding, max(heads)),
        state_blocks=stateful,
        state_row_elements=state_row_elements(keys, embedding) if stateful else 0,
        window_key_length=keys.integer("attention.key_length_swa", default=0),
        window_value_length=keys.integer("attention.value_length_swa", default=0),
        side_elements=_side_elements(keys, blocks, embedding),
        tied_twice=architecture in _TIED_TWICE,
        file_size_bytes=header.file_size_bytes,
        causal=_is_causal(keys),
        pooling=_pooling(keys),
        chat_template=template if isinstance(template, str) else None,
        **weights,
    )


def _weights(tensors: tuple[TensorInfo, ...], blocks: int) -> dict[str, Any]:
    by_block, experts = [0] * blocks, [0] * blocks
    by_name = {tensor.name: tensor for tensor in tensors}
    inputs = outputs = 0
    for tensor in tensors:
        size = -(-tensor.size_bytes // TENSOR_ALIGNMENT_BYTES) * TENSOR_ALIGNMENT_BYTES
        match = _BLOCK.match(tensor.name)
        if match and int(match[1]) < blocks:
            by_block[int(match[1])] += size
            experts[int(match[1])] += size if "_exps." in tensor.name else 0
        elif tensor.name.startswith(_INPUT_TENSORS):
            inputs += size
        else:
            outputs += size
    embedding = by_name.get("token_embd.weight")
    tied = embedding if embedding is not None and "output.weight" not in by_name else None
    return {
        "input_bytes": inputs,
        "block_bytes": tuple(by_block),
        "expert_bytes": tuple(experts) if any(experts) else (),
        "gated": _is_gated(by_name),
        "output_bytes": outputs,
        "tied_output_bytes": tied.size_bytes if tied else 0,
        "tied_output_type": tied.ggml_type if tied else "",
        "weights_bytes": inputs + sum(by_block) + outputs,
    }


def _is_gated(tensors: Mapping[str, TensorInfo]) -> bool:
    """Whether a feed-forward layer has a gate, be it fused into its way up."""
    up = tensors.get("blk.0.ffn_up.weight")
    down = tensors.get("blk.0.ffn_down.weight")
    if up is None or down is None or len(up.dimensions) < 2:  # noqa: PLR2004 - a matrix
        return True
    return "blk.0.ffn_gate.weight" in tensors or up.dimensions[1] > down.dimensions[0]


def _side_elements(keys: Keys, blocks: int, embedding: int) -> int:
    """Rows of embeddings per block, and the copies of the stream that Gemma 3n keeps."""
    copies = {"gemma3n": 8}.get(keys.architecture, 0)
    return blocks * keys.integer("embedding_length_per_layer_input", default=0) + copies * embedding


def _quantization(header: GgufHeader) -> str:
    number = header.metadata.get("general.file_type")
    if isinstance(number, int) and number in FILE_TYPES:
        return FILE_TYPES[number]
    bytes_by_type: Counter[str] = Counter()
    for tensor in header.tensors:
        bytes_by_type[tensor.ggml_type] += tensor.size_bytes
    most = max(bytes_by_type.items(), key=lambda item: (item[1], item[0]), default=("unknown", 0))
    return most[0]


def _vocabulary_size(metadata: Keys) -> int:
    header = metadata.header
    for tensor in header.tensors:
        if tensor.name == "token_embd.weight" and len(tensor.dimensions) > 1:
            return tensor.dimensions[1]
    tokens = header.array_length("tokenizer.ggml.tokens")
    return tokens or metadata.integer("vocab_size", default=0)


def _is_causal(metadata: Keys) -> bool:
    if metadata.architecture in NO_CACHE_ARCHITECTURES:
        return False
    value = metadata.header.metadata.get(metadata.key("attention.causal"), True)
    return bool(value) and not isinstance(value, GgufArray)


def _pooling(metadata: Keys) -> str | None:
    key = metadata.key("pooling_type")
    if key not in metadata.header.metadata:
        return None
    return _POOLING.get(metadata.integer("pooling_type"), "none")


def _draft(record: object) -> ModelProfile | None:
    if record is None:
        return None
    if not isinstance(record, Mapping) or record.get(_DRAFT) is not None:
        raise GgufError(
            offset=0, expected="a model profile of a draft model", found=repr(record)[:80]
        )
    return ModelProfile.from_json(record)


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
