"""How much memory a model will take with given settings, per pool and by named term. Pure.

The formulas reproduce the engine's own accounting (``llama_get_memory_breakdown``) and add what
that leaves out. They are derived in ``docs/sources.md``; an engine test compares the two.
Pools are ``host``, ``gpu0``, ``gpu1``, … in the driver's order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from hwprobe.ggml_types import GGML_TYPES_BY_NAME
from hwprobe.machine import Cpu
from hwprobe.profile import NO_CACHE_ARCHITECTURES, ModelProfile
from hwprobe.settings import CONTEXT_PADDING_TOKENS, EngineSettings

HOST: Final = "host"

WEIGHTS: Final = "weights"
TIED_COPY: Final = "second copy of the tied embedding"
KV_CACHE: Final = "KV cache"
STATE: Final = "recurrent state"
COMPUTE: Final = "compute"
OUTPUT: Final = "output rows"
TOKENIZER: Final = "tokenizer"
WORK: Final = "work space"
PROGRAM: Final = "program"
SAVED: Final = "saved prompts"
DRAFT: Final = "draft model"
UNCHECKED: Final = "allowance for an unchecked architecture"

ENGINE_TERMS: Final = (WEIGHTS, TIED_COPY, KV_CACHE, STATE, COMPUTE)
"""The terms that the engine accounts for itself; the others come on top of its figures."""

UNFUSED_ARCHITECTURES: Final = frozenset(
    {"llama", "qwen2", "qwen3", "qwen3moe", "gemma2", "gemma3", "phi3", "bert", "nomic-bert"}
)
"""Architectures whose estimate is compared with the engine with and without fused attention.
Mistral's files say ``llama``."""
CHECKED_ARCHITECTURES: Final = UNFUSED_ARCHITECTURES | frozenset(
    {"arcee", "baichuan", "chatglm", "cohere2", "command-r", "deepseek2", "ernie4_5-moe"}
    | {"exaone4", "falcon", "falcon-h1", "gemma3n", "gemma4", "glm4", "glm4moe", "gpt-oss"}
    | {"gpt2", "gptneox", "granite", "granitehybrid", "granitemoe", "hunyuan-dense"}
    | {"internlm2", "jamba", "lfm2", "llama4", "mamba", "mamba2", "minicpm3", "mpt", "nemotron"}
    | {"olmo2", "olmoe", "phi2", "qwen2moe", "qwen3next", "rwkv6", "rwkv7", "seed_oss"}
    | {"smallthinker", "smollm3", "stablelm", "starcoder2"}
)
"""Architectures whose estimate `bench.memory` compares with the engine, a test some of them."""
_SQUARED_ARCHITECTURES: Final = frozenset({"arcee", "nemotron"})
"""Architectures whose feed-forward layer squares in place; measured."""
UNCHECKED_SHARE: Final = 0.25
"""Share of cache and compute added for other architectures.

Why: their graphs differ in a few rows of activations; caches are over-predicted already.
"""
ALL_REPACKED_TYPES: Final = frozenset(
    {"Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "Q2_K", "IQ4_NL", "MXFP4", "Q1_0"}
)
"""Types that the CPU backend keeps in a layout of its own on some processor.

Source: ggml_repack_get_optimal_repack_type in ggml-cpu/repack.cpp. The engine is built without
AMX, whose buffers would come on top.
"""
_REPACKED_ON_AVX2 = frozenset({"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"})
_REPACKED_ON_AVX512 = _REPACKED_ON_AVX2 | {"Q2_K"}
_REPACKED_ON_ARM = ALL_REPACKED_TYPES - {"Q2_K"}
_REPACKED_ON_AMX = _REPACKED_ON_AVX512 | {"Q4_1", "Q8_0", "Q5_K", "Q6_K", "IQ4_XS"}
_REPACKED_BY_VARIANT: Final = {
    "baseline": frozenset[str](),
    "avx2": _REPACKED_ON_AVX2,
    "avx512": _REPACKED_ON_AVX512,
    "amx": _REPACKED_ON_AMX,
}
"""By the build of the CPU backend. Source for AMX: ggml-cpu/amx/common.h, qtype_has_amx_kernels."""
REPACK_ROWS: Final = 8
"""Source: the same function asks for rows in multiples of 4 or 8."""
TOKEN_BYTES: Final = 150
"""Host memory per token of the vocabulary, measured: 4.6 MiB for 30 000 tokens without merges."""
MERGE_BYTES: Final = 140
"""Host memory per merge, measured: 44 MiB for 152 000 tokens with as many merges."""
PROGRAM_BYTES: Final = 48 << 20
"""Interpreter and bindings of one runner, measured: 40 MiB resident, half of it private."""
GRAPH_BYTES: Final = 6 << 20
"""Graph and scheduler records of one context, measured: 1 to 6 MiB."""
COMPUTE_SLACK_BYTES: Final = 1 << 18
"""Constant inputs of the graph, such as rotation matrices of a quantized cache: below 256 KiB."""
INPUT_BYTES_PER_TOKEN: Final = 64
"""Token id, position, cache indices and so on of one token in a batch, measured: 24 to 40."""
PIPELINE_COPIES: Final = 2
"""With several GPUs and all layers on them the engine keeps inputs in flight; measured 1.8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryTerm:
    """One addend: which pool, what for, how much."""

    pool: str
    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """What a loaded model takes, as a sum of named terms.

    Attributes:
        terms: the addends, none of them zero.
        measured: cache, weights and compute come from the engine itself.
    """

    terms: tuple[MemoryTerm, ...]
    measured: bool = False

    @property
    def pools(self) -> tuple[str, ...]:
        """Pools that something is taken from: ``host`` first, then GPUs in order."""
        found = dict.fromkeys(term.pool for term in self.terms)
        return tuple(sorted(found, key=lambda pool: (pool != HOST, len(pool), pool)))

    def total_bytes(self, pool: str | None = None) -> int:
        """Sum over one pool, or over all of them."""
        return sum(term.size_bytes for term in self.terms if pool in (None, term.pool))

    def term_bytes(self, name: str, pool: str | None = None) -> int:
        """Sum of the terms called ``name``, in one pool or in all."""
        return sum(
            term.size_bytes
            for term in self.terms
            if term.name == name and pool in (None, term.pool)
        )

    def to_json(self) -> dict[str, Any]:
        """``{"measured": …, "pools": {"host": {"weights": 123, …, "total": 456}}}``."""
        pools: dict[str, dict[str, int]] = {}
        for pool in self.pools:
            terms = {term.name: term.size_bytes for term in self.terms if term.pool == pool}
            pools[pool] = {**terms, "total": self.total_bytes(pool)}
        return {"measured": self.measured, "pools": pools}


def repacked_types(cpu: Cpu, variant: str = "") -> frozenset[str]:
    """Tensor types that the CPU backend repacks on this processor.

    Args:
        cpu: the processor.
        variant: the build of the backend (`hwprobe.variants`), which knows no more than it was
            compiled for; empty when it is not known, which counts all that the processor could.
    """
    if "asimddp" in cpu.features:
        return _REPACKED_ON_ARM
    if variant in _REPACKED_BY_VARIANT:
        return _REPACKED_BY_VARIANT[variant]
    if "avx512f" in cpu.features:
        return _REPACKED_ON_AVX512
    return _REPACKED_ON_AVX2 if "avx2" in cpu.features else frozenset()


def estimate(
    profile: ModelProfile,
    settings: EngineSettings,
    *,
    repacked: frozenset[str] = ALL_REPACKED_TYPES,
) -> MemoryEstimate:
    """Predict the memory of ``profile`` loaded with ``settings``.

    Args:
        profile: the model.
        settings: how it would be loaded.
        repacked: types the processor repacks, see `repacked_types`; a tied embedding of such a
            type is stored twice. Without it the estimate holds for every processor.

    Tested to stay within 2 % or 8 MiB of the engine's accounting on the host for the
    architectures in `CHECKED_ARCHITECTURES`, and never below it by more. Mapped weights count in
    full: decoding reads all of them for every token.
    """
    pools = layer_pools(profile, settings)
    amounts: dict[tuple[str, str], int] = {}

    def add(pool: str, name: str, size_bytes: int) -> None:
        pool = HOST if settings.unified else pool
        amounts[pool, name] = amounts.get((pool, name), 0) + size_bytes

    blocks, output_pool = pools[:-1], pools[-1]
    add(HOST, WEIGHTS, profile.input_bytes)
    add(output_pool, WEIGHTS, profile.output_bytes)
    add(output_pool, TIED_COPY, _tied_copy_bytes(profile, settings, output_pool, repacked))
    for index, pool in enumerate(blocks):
        apart = _expert_bytes(profile, settings, index)
        add(HOST, WEIGHTS, apart)
        add(pool, WEIGHTS, profile.block_bytes[index] - apart)
        add(pool, KV_CACHE, _block_cache_bytes(profile, settings, index))
        add(pool, STATE, _block_state_bytes(profile, settings, index))
    fused = settings.flash_attention
    checked = CHECKED_ARCHITECTURES if fused else UNFUSED_ARCHITECTURES
    copies = PIPELINE_COPIES if _is_pipelined(pools) and not settings.cpu_experts else 1
    for pool in dict.fromkeys((HOST, *pools)):
        factor = copies if pool != HOST else 1
        add(pool, COMPUTE, factor * compute_bytes(profile, settings))
        if profile.architecture not in checked:
            home = HOST if settings.unified else pool
            open_bytes = amounts[home, COMPUTE] + amounts.get((home, KV_CACHE), 0)
            add(pool, UNCHECKED, int(UNCHECKED_SHARE * open_bytes))
    terms = [MemoryTerm(pool=key[0], name=key[1], size_bytes=size) for key, size in amounts.items()]
    terms += host_terms(profile, settings)
    terms += _draft_terms(profile, settings, repacked)
    return MemoryEstimate(terms=tuple(term for term in terms if term.size_bytes))


def _draft_terms(
    profile: ModelProfile, settings: EngineSettings, repacked: frozenset[str]
) -> tuple[MemoryTerm, ...]:
    """All that a draft model takes beside its model, in one term per pool."""
    if profile.draft is None:
        return ()
    need = estimate(profile.draft, draft_settings(settings, profile.draft), repacked=repacked)
    sizes = {pool: need.total_bytes(pool) - need.term_bytes(PROGRAM, pool) for pool in need.pools}
    return tuple(MemoryTerm(pool=pool, name=DRAFT, size_bytes=size) for pool, size in sizes.items())


def draft_settings(settings: EngineSettings, draft: ModelProfile) -> EngineSettings:
    """How a draft model is loaded beside a model with these settings.

    It has the same sequences and as many cells, and all of it is on GPUs if any of the model is;
    never on workers, to which every one of its steps would be a journey.
    """
    block = GGML_TYPES_BY_NAME["Q8_0"].block_size
    whole_blocks = not (draft.key_length % block or draft.value_length % block)
    return replace(
        settings,
        num_gpu=draft.block_count + 1 if settings.num_gpu and not settings.workers else 0,
        tensor_split=() if settings.workers else settings.tensor_split,
        workers=(),
        kv_type=settings.kv_type if whole_blocks else "f16",
        saved_bytes=0,
    )


def host_terms(profile: ModelProfile, settings: EngineSettings) -> tuple[MemoryTerm, ...]:
    """What the engine's own accounting leaves out; all of it is host memory."""
    rows = settings.output_rows
    width = profile.vocabulary_size + (profile.embedding_length if settings.pooled else 0)
    widest = max(profile.feed_forward_length, profile.embedding_length, _query(profile))
    quantized_rows = GGML_TYPES_BY_NAME["Q8_0"].row_bytes(widest + 31)
    vocabulary = TOKEN_BYTES * profile.vocabulary_size + MERGE_BYTES * profile.merge_count
    amounts = {
        OUTPUT: 4 * width * rows,
        TOKENIZER: vocabulary,
        WORK: GRAPH_BYTES + quantized_rows * settings.num_ubatch,
        PROGRAM: PROGRAM_BYTES,
        SAVED: settings.saved_bytes,
    }
    return tuple(
        MemoryTerm(pool=HOST, name=name, size_bytes=size) for name, size in amounts.items() if size
    )


def with_measured(
    predicted: MemoryEstimate, buffers: Mapping[str, Mapping[str, Any]]
) -> MemoryEstimate:
    """``predicted`` with the engine's own figures in place of the formulas.

    Args:
        predicted: the formulas' result, whose other terms are kept.
        buffers: the engine's breakdown, ``{buffer type: {"host", "device", "weights", "context",
            "compute"}}``.
    """
    amounts: dict[tuple[str, str], int] = {}
    for buffer in buffers.values():
        device = str(buffer["device"])
        pool = HOST if buffer["host"] or not device else gpu_pool(_trailing_number(device))
        for key, name in (("weights", WEIGHTS), ("context", KV_CACHE), ("compute", COMPUTE)):
            amounts[pool, name] = amounts.get((pool, name), 0) + int(buffer[key])
    measured = [MemoryTerm(pool=k[0], name=k[1], size_bytes=size) for k, size in amounts.items()]
    kept = [term for term in predicted.terms if term.name not in (*ENGINE_TERMS, UNCHECKED)]
    terms = (*(term for term in measured if term.size_bytes), *kept)
    return MemoryEstimate(terms=terms, measured=True)


def gpu_pool(index: int) -> str:
    """Name of the pool of the GPU at ``index``."""
    return f"gpu{index}"


def layer_pools(profile: ModelProfile, settings: EngineSettings) -> tuple[str, ...]:
    """The pool of every block, and last that of the output layer.

    Source: the engine puts the last ``num_gpu`` layers on GPUs, the output layer counted as one,
    and deals them out by the running sum of ``tensor_split`` (llama-model.cpp).
    """
    layers = profile.block_count + 1
    offloaded = min(settings.num_gpu, layers)
    shares = settings.tensor_split or (1.0,)
    whole = sum(shares)
    pools = [HOST] * (layers - offloaded)
    for index in range(offloaded):
        running, chosen = 0.0, len(shares) - 1
        for gpu, share in enumerate(shares):
            running += share
            if running / whole > index / offloaded:
                chosen = gpu
                break
        pools.append(gpu_pool(chosen))
    return tuple(pools)


def cache_cells(profile: ModelProfile, settings: EngineSettings, block: int) -> int:
    """Cells of the KV cache of one block.

    Source: llama-kv-cache-iswa.cpp: a sliding block keeps a window per sequence and one batch.
    """
    if block not in profile.sliding_blocks:
        return settings.kv_cells
    window = profile.sliding_window * settings.sequences + _ubatch(settings)
    return min(settings.kv_cells, _padded(window))


def compute_bytes(profile: ModelProfile, settings: EngineSettings) -> int:
    """Size of the engine's compute buffer: the largest stage of the graph for one full batch.

    The stages are written as rows of activations per token; see ``docs/sources.md``.
    """
    if profile.architecture in NO_CACHE_ARCHITECTURES:
        return _encoder_bytes(profile, settings)
    tokens = _ubatch(settings)
    embedding, query = profile.embedding_length, _query(profile)
    key = profile.head_count_kv * max(profile.key_length, profile.value_length)
    used, inner = profile.expert_used_count, profile.feed_forward_length
    if profile.expert_count:
        inner = used * (profile.expert_feed_forward_length or inner)
    feed_forward = 3 * inner + 3 * embedding + max(embedding, query) + profile.side_elements
    if not profile.gated:
        squared = profile.architecture in _SQUARED_ARCHITECTURES
        feed_forward = inner + 4 * embedding if squared else 2 * inner + embedding
    experts = (2 * used + 6) * embedding if profile.expert_count else 0
    attention = 0 if settings.flash_attention else 3 * embedding + 3 * query + 2 * key
    mask_element_bytes = 2 if settings.flash_attention else 4
    masks = mask_element_bytes * sum(_mask_cells(profile, settings)) if profile.head_count else 0
    if not settings.flash_attention:
        attention += profile.head_count * settings.kv_cells
        if profile.sliding_blocks:
            attention += query
            feed_forward += query + 4 * key
    elif profile.sliding_blocks and settings.kv_type != "f16":
        feed_forward += query + 512
    widest = max(feed_forward, experts, attention, profile.state_row_elements)
    per_token = masks + INPUT_BYTES_PER_TOKEN + 4 * widest
    rows = tokens if settings.pooled else min(tokens, settings.output_rows)
    last = 4 * (rows * (profile.vocabulary_size + 2 * embedding) + 2 * tokens * embedding)
    states = (
        _block_state_bytes(profile, settings, profile.state_blocks[0])
        if (profile.state_blocks)
        else 0
    )
    return max(tokens * per_token + states, last) + COMPUTE_SLACK_BYTES


def _encoder_bytes(profile: ModelProfile, settings: EngineSettings) -> int:
    """The compute buffer of an encoder: every token attends to all of the micro-batch.

    Only ``bert`` is known to have no gate in its feed-forward layer.
    """
    tokens = _ubatch(settings)
    embedding, inner = profile.embedding_length, profile.feed_forward_length
    gated = profile.architecture != "bert"
    widest = (3 if gated else 1) * inner + 3 * embedding
    if not settings.flash_attention:
        attention = profile.head_count * tokens + (8 if gated else 6) * embedding
        widest = max(widest, attention)
    mask = (2 if settings.flash_attention else 4) * tokens
    per_token = mask + INPUT_BYTES_PER_TOKEN + 4 * (settings.sequences + widest)
    return tokens * per_token + COMPUTE_SLACK_BYTES


def _block_cache_bytes(profile: ModelProfile, settings: EngineSettings, block: int) -> int:
    if profile.architecture in NO_CACHE_ARCHITECTURES:
        return 0
    kind = GGML_TYPES_BY_NAME[settings.kv_type.upper()]
    heads = profile.kv_heads[block]
    key, value = profile.key_length, profile.value_length
    if block in profile.sliding_blocks:
        key, value = profile.window_key_length or key, profile.window_value_length or value
    row = kind.row_bytes(heads * key) + kind.row_bytes(heads * value)
    return row * cache_cells(profile, settings, block)


def _expert_bytes(profile: ModelProfile, settings: EngineSettings, block: int) -> int:
    """Experts of one block that stay in host memory wherever the block is."""
    kept_back = block < settings.cpu_experts and profile.expert_bytes
    return profile.expert_bytes[block] if kept_back else 0


def _block_state_bytes(profile: ModelProfile, settings: EngineSettings, block: int) -> int:
    """The running state of all sequences in one block."""
    stateful = profile.state_blocks or range(profile.block_count)
    if block not in stateful:
        return 0
    return profile.recurrent_bytes * settings.sequences // len(stateful)


def _tied_copy_bytes(
    profile: ModelProfile, settings: EngineSettings, pool: str, repacked: frozenset[str]
) -> int:
    """A tied embedding is stored again where the output layer needs it in another buffer."""
    if pool != HOST or profile.tied_twice:
        return profile.tied_output_bytes
    repacks = (
        settings.repack
        and profile.tied_output_type in repacked
        and profile.vocabulary_size % REPACK_ROWS == 0
    )
    return profile.tied_output_bytes if repacks else 0


def _mask_cells(profile: ModelProfile, settings: EngineSettings) -> tuple[int, ...]:
    """Columns of each attention mask: one mask for whole-context blocks, one for sliding ones."""
    if not profile.sliding_blocks:
        return (settings.kv_cells,)
    return (settings.kv_cells, cache_cells(profile, settings, profile.sliding_blocks[0]))


def _is_pipelined(pools: tuple[str, ...]) -> bool:
    return HOST not in pools and len(set(pools)) > 1


def _query(profile: ModelProfile) -> int:
    return profile.head_count * profile.key_length


def _ubatch(settings: EngineSettings) -> int:
    return min(settings.num_ubatch, settings.num_batch, settings.kv_cells)


def _padded(cells: int) -> int:
    return -(-cells // CONTEXT_PADDING_TOKENS) * CONTEXT_PADDING_TOKENS


def _trailing_number(device: str) -> int:
    """``CUDA1`` → 1."""
    digits = device[len(device.rstrip("0123456789")) :]
    return int(digits) if digits else 0
