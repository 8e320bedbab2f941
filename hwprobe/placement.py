"""Choose variant, context, slots, cache type and GPU layers for one model on one machine. Pure.

The objective is lexicographic, so every choice can be explained:
 1. feasible: in every pool the predicted need and its margin stay within the budget;
 2. floors: a context of `FLOOR_CTX_TOKENS`; where GPUs are planned with, the whole model on them;
 3. quality: the candidate that is preferred, then the one with more bits per weight, then the
    more precise cache;
 4. context up to the target, then slots, then larger batches, then repacked weights, then
    prompts that stay cached: what is left is spent, in this order.
Of a mixture the experts leave the GPUs before whole layers do. A GPU without memory of its own
takes the host's, so nothing is counted twice.
A floor that no candidate reaches is given up, GPUs before context, and the reasons say so.
What the user wished for is never changed: it is met, or refused with what would help.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from hwprobe.budgets import pool_budgets
from hwprobe.errors import DoesNotFitError
from hwprobe.estimate import HOST, KV_CACHE, STATE, MemoryEstimate, estimate
from hwprobe.machine import Machine
from hwprobe.profile import ModelProfile
from hwprobe.quantity import Bytes
from hwprobe.search import (
    DEFAULT_SLOTS,
    Floors,
    Search,
    cache_types,
    target_ctx,
)
from hwprobe.settings import CONTEXT_PADDING_TOKENS, MAX_SEQUENCES, EngineSettings
from hwprobe.verdict import Candidate, Placement, Rejection, Wish

__all__ = ["Candidate", "Placement", "Rejection", "Wish", "place"]


def place(
    machine: Machine,
    candidates: Sequence[Candidate],
    wish: Wish,
    *,
    reserved_bytes: Mapping[str, int] | None = None,
) -> Placement:
    """Choose how to load one of ``candidates`` on ``machine``.

    Args:
        machine: a snapshot from before the runners behind ``reserved_bytes`` took their memory.
        candidates: variants of one model; at least one.
        wish: what the user asked for.
        reserved_bytes: per pool, what other models take or will take.

    Raises:
        DoesNotFitError: none fits; the message names the nearest miss, ``rejected`` all of them.
    """
    if not candidates:
        raise DoesNotFitError("there is no variant to choose from")
    _check_wish(wish, candidates)
    margins = {one.profile: one.margin for one in candidates}
    search = Search(machine, wish, pool_budgets(machine, reserved_bytes or {}), margins)
    ranked = sorted(candidates, key=_quality)
    rejected: dict[str, Rejection] = {}
    for floors in search.floor_levels():
        for candidate in ranked:
            found = search.best(candidate, floors)
            if found is not None:
                why = _variant_reason(candidate, ranked, rejected)
                return _placement(search, candidate, found, floors, rejected=rejected, why=why)
            if floors.is_last or candidate.variant not in rejected:
                rejected[candidate.variant] = search.rejection(candidate, floors)
    nearest = min(rejected.values(), key=lambda one: (one.shortfall_bytes, one.variant))
    raise DoesNotFitError(
        f"no variant fits this machine: {nearest.shortage}",
        hint=nearest.remedy,
        rejected=tuple(rejected.values()),
    )


def _check_wish(wish: Wish, candidates: Sequence[Candidate]) -> None:
    """Refuse what no memory would help with."""
    if wish.slots is not None and not 1 <= wish.slots <= MAX_SEQUENCES:
        raise DoesNotFitError(f"slots: expected 1 to {MAX_SEQUENCES}, found {wish.slots}")
    if wish.num_batch is not None and wish.num_batch < 1:
        raise DoesNotFitError(f"num_batch: expected at least 1, found {wish.num_batch}")
    for candidate in candidates:
        if wish.kv_type is not None and wish.kv_type not in cache_types(candidate.profile):
            raise DoesNotFitError(
                f"kv_type: {candidate.variant} cannot keep its cache as {wish.kv_type}: its heads "
                f"of {candidate.profile.key_length} elements are no whole blocks of 32",
                hint="use f16",
            )


def _placement(
    search: Search,
    candidate: Candidate,
    settings: EngineSettings,
    floors: Floors,
    *,
    rejected: Mapping[str, Rejection],
    why: str,
) -> Placement:
    need = estimate(candidate.profile, settings, repacked=search.repacked)
    others = tuple(one for one in rejected.values() if one.variant != candidate.variant)
    reasons = _reasons(search, candidate.profile, settings, need, floors)
    return Placement(
        variant=candidate.variant,
        settings=settings,
        estimate=need,
        budgets=dict(search.budgets),
        reasons=(*((why,) if why else ()), *reasons),
        rejected=others,
    )


def _variant_reason(
    candidate: Candidate, ranked: Sequence[Candidate], rejected: Mapping[str, Rejection]
) -> str:
    """Why this variant and not another; empty when there is no other."""
    if len(ranked) == 1:
        return ""
    worse = ", ".join(one.variant for one in ranked if one.variant not in rejected)
    worse = worse.removeprefix(candidate.variant).removeprefix(", ")
    best = "the best quality" if not rejected else "the best quality that fits"
    return f"{candidate.variant}: {best}" + (f", before {worse}" if worse else "")


def _reasons(
    search: Search,
    profile: ModelProfile,
    settings: EngineSettings,
    need: MemoryEstimate,
    floors: Floors,
) -> Iterator[str]:
    yield _context_reason(search.wish, profile, settings, floors)
    if settings.slots < DEFAULT_SLOTS and search.wish.slots is None and not profile.pools:
        yield f"slots: {settings.slots}; memory for more is missing"
    if settings.kv_type != "f16" and search.wish.kv_type is None:
        cache = need.term_bytes(KV_CACHE) + need.term_bytes(STATE)
        yield f"KV cache as {settings.kv_type} ({Bytes(cache)}): f16 does not fit"
    yield _gpu_reason(search, profile, settings)
    yield from _node_reason(search, need)
    yield from _spare_reason(search, profile, settings)


def _node_reason(search: Search, need: MemoryEstimate) -> Iterator[str]:
    """On a machine of several memory nodes, whether one of them holds the model."""
    nodes = search.machine.numa.nodes
    largest = max((node.free_bytes for node in nodes), default=0)
    if len(nodes) > 1 and need.total_bytes(HOST) > largest:
        yield (
            f"spread over several memory nodes: the roomiest has {Bytes(largest)} free; reading "
            "across them is slower"
        )


def _spare_reason(search: Search, profile: ModelProfile, settings: EngineSettings) -> Iterator[str]:
    """What the memory that is left would be good for, if anybody asked."""
    trained = profile.context_length // CONTEXT_PADDING_TOKENS * CONTEXT_PADDING_TOKENS
    if search.wish.num_ctx is not None or settings.pooled or settings.num_ctx >= trained:
        return
    free = Floors(full_ctx=False, all_on_gpus=settings.num_gpu > profile.block_count, is_last=True)
    if settings.cpu_experts:
        free = replace(free, all_on_gpus=False)
    largest = search.largest_ctx(profile, settings, free, trained)
    if largest > settings.num_ctx:
        yield f"memory is left for a context of {largest} tokens; num_ctx asks for more"


def _context_reason(
    wish: Wish, profile: ModelProfile, settings: EngineSettings, floors: Floors
) -> str:
    target, trained = target_ctx(profile, wish), profile.context_length
    if wish.num_ctx is not None and wish.num_ctx > trained:
        return f"context cut from {wish.num_ctx} to the trained {trained} tokens"
    if wish.num_ctx is not None:
        return f"context of {settings.num_ctx} tokens as asked"
    if settings.num_ctx >= target:
        whose = "the model's limit" if target >= trained else "the default target"
        return f"context of {settings.num_ctx} tokens: {whose}"
    floor = "" if floors.full_ctx else ", below the floor for chats"
    return f"context of {settings.num_ctx} of {target} tokens: memory ends there{floor}"


def _gpu_reason(search: Search, profile: ModelProfile, settings: EngineSettings) -> str:
    layers = profile.block_count + 1
    if settings.unified:
        return f"{min(settings.num_gpu, layers)} of {layers} layers on a GPU that shares the memory"
    if settings.cpu_experts and settings.num_gpu >= layers:
        return (
            f"all {layers} layers on GPU, but the experts of {settings.cpu_experts} blocks stay in "
            "host memory"
        )
    if settings.num_gpu >= layers:
        return f"all {layers} layers on GPU"
    if settings.num_gpu:
        return f"{layers - settings.num_gpu} of {layers} layers stay in host memory"
    return f"all layers on the CPU: {_cpu_reason(search)}"


def _cpu_reason(search: Search) -> str:
    machine = search.machine
    if search.gpus:
        return "as asked" if search.wish.num_gpu == 0 else "GPU memory is too small"
    if machine.nvidia.state == "usable" and not machine.engine_offload:
        return "the engine was built without GPU support"
    if machine.nvidia.state == "usable":
        return "no GPU with memory of its own"
    return machine.nvidia.detail or "no NVIDIA card found"


def _quality(candidate: Candidate) -> tuple[int, float, int, str]:
    """Sort key: preferred first, then bits per weight, then the smaller file, then the name."""
    profile = candidate.profile
    bits = 8 * profile.weights_bytes / max(1, profile.parameter_count)
    return (-candidate.prefer, -bits, profile.file_size_bytes, candidate.variant)
