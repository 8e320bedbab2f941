"""What is tried next when the engine gets no memory although the plan said it would. Pure.

Each step gives up what hurts least: what only saves work later, then speed of prompts, then the
precision of the cache, requests at the same time, context, and layers on GPUs. What the user
wished for is never given up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from hwprobe.profile import ModelProfile
from hwprobe.search import UBATCH_STEPS, cache_types, with_ctx
from hwprobe.settings import CONTEXT_PADDING_TOKENS, EngineSettings
from hwprobe.verdict import Wish

MOST_STEPS: Final = 12
"""Why: each is a load; a model that does not come up after so many is not kept waiting for."""
_CTX_SHARE: Final = 0.75
_LAYER_SHARE: Final = 8
"""One layer in so many leaves the GPUs in one step."""
_NO_MEMORY: Final = (
    "failed to allocate",
    "insufficient memory",
    "out of memory",
    "unable to allocate",
    "cannot allocate memory",
    "killed by sigkill",
)
"""Words of ggml-backend.cpp, ggml.c, ggml-cuda.cu and the kernel; the last of what its
out-of-memory killer leaves behind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDown:
    """One step.

    Attributes:
        words: what is given up, for a person.
        settings: what is tried next.
    """

    words: str
    settings: EngineSettings


def lacked_memory(message: str) -> bool:
    """Whether a load failed for want of memory, by what it said."""
    lower = message.lower()
    return any(words in lower for words in _NO_MEMORY)


def step_down(profile: ModelProfile, wish: Wish, settings: EngineSettings) -> StepDown | None:
    """The next smaller settings, or ``None`` when nothing is left to give up."""
    return next(_steps(profile, wish, settings), None)


def _steps(profile: ModelProfile, wish: Wish, settings: EngineSettings) -> Iterator[StepDown]:
    """Every single step that is possible from here, the one that hurts least first."""
    if settings.saved_bytes:
        yield _step("prompts that leave the cache are not kept", settings, saved_bytes=0)
    if settings.spare_sequences and not settings.pooled:
        yield _step("no spare sequences", settings, spare_sequences=0)
    smallest = UBATCH_STEPS[-1]
    if settings.num_ubatch > smallest and not settings.pooled:
        ubatch = max(smallest, settings.num_ubatch // 4)
        yield _step(f"micro-batches of {ubatch} tokens", settings, num_ubatch=ubatch)
    if settings.repack:
        yield _step("weights in the layout of the file", settings, repack=False)
    if settings.kv_type == "f16" and wish.kv_type is None and "q8_0" in cache_types(profile):
        yield _step("KV cache as q8_0", settings, kv_type="q8_0", flash_attention=True)
    if settings.slots > 1 and wish.slots is None:
        yield _step(f"{settings.slots // 2} slot(s)", settings, slots=settings.slots // 2)
    shorter = _shorter(settings.num_ctx)
    if shorter < settings.num_ctx and wish.num_ctx is None:
        yield StepDown(words=f"context of {shorter} tokens", settings=with_ctx(settings, shorter))
    if settings.num_gpu and (wish.num_gpu is None or wish.num_gpu < 0):
        layers = max(0, settings.num_gpu - max(1, settings.num_gpu // _LAYER_SHARE))
        split = settings.tensor_split if layers else ()
        experts, shared = (settings.cpu_experts, settings.unified) if layers else (0, False)
        words = f"{layers} layers on GPU"
        changes = {"tensor_split": split, "cpu_experts": experts, "unified": shared}
        yield _step(words, settings, num_gpu=layers, **changes)


def _step(words: str, settings: EngineSettings, **changes: object) -> StepDown:
    return StepDown(words=words, settings=replace(settings, **changes))  # type: ignore[arg-type]


def _shorter(ctx: int) -> int:
    step = CONTEXT_PADDING_TOKENS
    return max(step, int(_CTX_SHARE * ctx) // step * step)
