"""What each block of a model keeps between tokens: a cache, a window of it, or a state. Pure.

Read from the keys of the header and the names of the tensors. The sources are the engine's
``llama-hparams.cpp``, ``llama-model.cpp`` (create_memory) and ``src/models``, one file per
architecture.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from hwprobe.gguf_reader import GgufHeader
from hwprobe.gguf_tensors import TensorInfo

MAX_NUMBER: Final = 2**31 - 1
"""Why: the engine keeps these numbers in int32_t."""
_BLOCK = re.compile(r"blk\.([0-9]{1,4})\.(.+)")
_STATE_PARTS: Final = ("ssm_", "shortconv.", "time_mix_")
_INTERVAL_ARCHITECTURES: Final = frozenset({"qwen3next", "qwen35", "qwen35moe"})
"""Their blocks alternate by an interval, and the names of the tensors do not tell."""
_DEFAULT_INTERVAL: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class _Window:
    """A sliding window: tokens when the file names none, and which blocks have it.

    Attributes:
        tokens: default; 0 means none unless the file names one.
        period: every so many blocks one attends to everything; 0 means none does.
        dense_first: that one is the first of its period, not the last.
        fixed: the file's own number is not looked at.
        blocks: only models with so many blocks have it; 0 means all.
    """

    tokens: int = 0
    period: int = 0
    dense_first: bool = False
    fixed: bool = False
    blocks: int = 0


_WINDOWS: Final = {
    "afmoe": _Window(period=4),
    "cohere2": _Window(period=4),
    "cohere2moe": _Window(period=4, dense_first=True),
    "exaone-moe": _Window(tokens=128, period=4),
    "exaone4": _Window(tokens=4096, period=4, blocks=64),
    "gemma2": _Window(tokens=4096, period=2),
    "gemma3": _Window(period=6),
    "gemma3n": _Window(period=5),
    "gemma4": _Window(),
    "gpt-oss": _Window(period=2),
    "llama4": _Window(tokens=8192, period=4, fixed=True),
    "mellum": _Window(period=4),
    "olmo2": _Window(period=4),
    "plamo3": _Window(period=8),
    "smallthinker": _Window(tokens=4096, period=4, dense_first=True, fixed=True),
}
"""Source: load_arch_hparams in src/models. Architectures that are not listed are taken to attend
to everything, which over-predicts their cache. ``phi3`` is among them on purpose: the engine
ignores its window."""


class Keys:
    """Typed access to the keys of one architecture."""

    def __init__(self, header: GgufHeader, architecture: str) -> None:
        self.header = header
        self.architecture = architecture

    def key(self, suffix: str) -> str:
        """The whole key."""
        return f"{self.architecture}.{suffix}"

    def has(self, suffix: str) -> bool:
        """Whether the header has it."""
        return self.key(suffix) in self.header.metadata

    def integer(
        self, suffix: str, *, default: int | None = None, low: int = 0, high: int = MAX_NUMBER
    ) -> int:
        """One number.

        Raises:
            GgufError: it is missing without a default, no integer, or out of range.
        """
        value = self.header.integer(self.key(suffix), default)
        if not low <= value <= high:
            raise self.header.unexpected(self.key(suffix), f"an integer from {low} to {high}")
        return value

    def per_block(self, suffix: str, blocks: int, *, default: int) -> tuple[int, ...]:
        """One number for all blocks, or one per block.

        Raises:
            GgufError: as `integer`, or there are fewer numbers than blocks.
        """
        value = self.header.metadata.get(self.key(suffix))
        if not isinstance(value, tuple):
            return (self.integer(suffix, default=default),) * blocks
        numbers = tuple(item for item in value if isinstance(item, int) and 0 <= item <= MAX_NUMBER)
        if len(numbers) != len(value) or len(numbers) < blocks:
            raise self.header.unexpected(self.key(suffix), f"{blocks} integers")
        return numbers[:blocks]


def sliding_window(keys: Keys, blocks: int) -> tuple[int, tuple[int, ...]]:
    """Tokens of the sliding window and the blocks that have it; ``(0, ())`` without one."""
    known = _WINDOWS.get(keys.architecture)
    if known is None or known.blocks not in {0, blocks}:
        return 0, ()
    window = keys.integer("attention.sliding_window", default=known.tokens)
    if window == 0:
        return 0, ()
    pattern = keys.header.metadata.get(keys.key("attention.sliding_window_pattern"))
    if isinstance(pattern, tuple):
        flagged = tuple(index for index, flag in enumerate(pattern[:blocks]) if flag)
        return known.tokens if known.fixed else window, flagged
    period = keys.integer("attention.sliding_window_pattern", default=known.period)
    if known.dense_first:
        chosen = tuple(index for index in range(blocks) if period == 0 or index % period)
    else:
        chosen = tuple(
            index for index in range(blocks) if period == 0 or index % period < period - 1
        )
    return known.tokens if known.fixed else window, chosen


def blocks_with_state(keys: Keys, tensors: Iterable[TensorInfo], blocks: int) -> tuple[int, ...]:
    """Blocks that keep a running state for each sequence."""
    if keys.architecture in _INTERVAL_ARCHITECTURES:
        interval = keys.integer("full_attention_interval", default=_DEFAULT_INTERVAL, low=1)
        return tuple(index for index in range(blocks) if (index + 1) % interval)
    found = {
        int(match[1])
        for tensor in tensors
        if (match := _BLOCK.match(tensor.name)) and match[2].startswith(_STATE_PARTS)
    }
    return tuple(sorted(index for index in found if index < blocks))


def cached_heads(
    keys: Keys, kv_heads: tuple[int, ...], with_state: tuple[int, ...]
) -> tuple[int, ...]:
    """Key and value heads each block keeps in a cache of its own: 0 where it keeps none."""
    blocks = len(kv_heads)
    if keys.architecture in _INTERVAL_ARCHITECTURES:
        state = set(with_state)
        return tuple(0 if index in state else heads for index, heads in enumerate(kv_heads))
    own = blocks
    if keys.architecture == "gemma3n":
        own = 20  # n_layer_kv_from_start in gemma3n.cpp, whatever the file says
    elif keys.architecture == "gemma4":
        own = max(0, blocks - keys.integer("attention.shared_kv_layers", default=0))
    return tuple(heads if index < own else 0 for index, heads in enumerate(kv_heads))


def state_bytes(keys: Keys, embedding: int, heads: int) -> int:
    """State of one block and one sequence, in F32. Source: n_embd_r and n_embd_s."""
    wkv = keys.integer("wkv.head_size", default=0)
    if wkv:
        return 4 * embedding * (keys.integer("token_shift_count", default=2) + wkv)
    convolution = keys.integer("shortconv.l_cache", default=0)
    if convolution:
        return 4 * embedding * (convolution - 1)
    kernel = keys.integer("ssm.conv_kernel", default=0)
    delta = keys.integer("kda.head_dim", default=0)
    if delta:
        return 4 * heads * delta * (3 * (kernel - 1 if kernel else 3) + delta)
    inner = keys.integer("ssm.inner_size", default=0)
    state = keys.integer("ssm.state_size", default=0)
    groups = keys.integer("ssm.group_count", default=0)
    return 4 * (max(0, kernel - 1) * (inner + 2 * groups * state) + state * inner)


def state_row_elements(keys: Keys, embedding: int) -> int:
    """Activations of one token at the widest stage of a block with a state.

    Measured with Mamba, Mamba 2, RWKV 6 and 7 at several sizes of a batch; see ``docs/sources.md``.
    """
    if keys.integer("wkv.head_size", default=0):
        seventh = keys.has("attention.decay_lora_rank")
        return (19 if seventh else 14) * embedding + 128
    inner = keys.integer("ssm.inner_size", default=0)
    if not inner:
        return 0
    state = keys.integer("ssm.state_size", default=0)
    groups = keys.integer("ssm.group_count", default=0)
    convolved = inner + 2 * groups * state
    projected = inner + convolved + (keys.integer("ssm.time_step_rank", default=0) if groups else 0)
    return projected + 3 * convolved + inner + embedding
