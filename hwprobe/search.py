"""Search the settings that one machine allows for one model. Pure.

The search walks down from the best in the order of `hwprobe.placement`; every question is one
call of the estimate, so a search takes milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from hwprobe.estimate import HOST, estimate, gpu_pool, repacked_types
from hwprobe.ggml_types import GGML_TYPES_BY_NAME
from hwprobe.machine import Machine
from hwprobe.margins import UNTRIED, Margin, margin_bytes
from hwprobe.profile import ModelProfile
from hwprobe.quantity import Bytes
from hwprobe.settings import CONTEXT_PADDING_TOKENS, EngineSettings, KvType
from hwprobe.verdict import Candidate, Rejection, Wish, pool_words

FLOOR_CTX_TOKENS: Final = 8192
"""Context below which a chat soon forgets; half of it on small boards. A shorter wish or a
shorter trained context lowers it.
"""
DEFAULT_CTX_TOKENS: Final = 8192
"""Target when nothing is wished. Why: holds a long chat or a few documents, and leaves memory."""
DEFAULT_POOLED_TOKENS: Final = 2048
"""Target for models that only pool. Why: a passage for retrieval is shorter, and the memory of
a batch that holds a text whole grows with the vocabulary; the same as Ollama's batch for them.
"""
POOLED_TEXTS: Final = 64
"""Texts in one batch at most. Why: with eight tokens each they fill the batch that packing aims
at; each costs a column of the pooling matrix.
"""
DEFAULT_SLOTS: Final = 4
"""Most slots without a wish. Why: batching gains little beyond four on CPUs."""
SPARE_SEQUENCES: Final = 8
"""Why: eight conversations is what one server keeps warm on a small machine."""
DEFAULT_BATCH_TOKENS: Final = 512
UBATCH_STEPS: Final = (2048, 1024, 512, 256, 128, 64)
"""Why: halving the batch halves the compute buffer; below 64 prefill becomes slow."""
CPU_UBATCH_TOKENS: Final = 512
"""Most without layers on a GPU. Why: there arithmetic is the bound from far fewer rows on, and a
larger step only lets other streams wait longer (docs/batching.md)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Floors:
    """What is insisted on at one level of the search."""

    full_ctx: bool
    all_on_gpus: bool
    is_last: bool


class Search:
    """One machine and one wish; asks the estimate, never the machine."""

    def __init__(
        self,
        machine: Machine,
        wish: Wish,
        budgets: Mapping[str, int],
        margins: Mapping[ModelProfile, Margin],
    ) -> None:
        self.margins = margins
        self.machine = machine
        self.wish = wish
        self.budgets = budgets
        self.gpus = machine.planned_gpus
        self.unified = bool(machine.unified_gpus)
        self.lent = any(gpu.worker for gpu in self.gpus)
        self.repacked = repacked_types(machine.cpu, machine.engine_variant)

    def floor_levels(self) -> Iterator[Floors]:
        """Everything insisted on first; the last level insists on nothing."""
        auto_gpu = self.wish.num_gpu is None or self.wish.num_gpu < 0
        places = (True, False) if self.gpus and auto_gpu and not self.lent else (False,)
        for full_ctx in (True, False):
            for all_on_gpus in places:
                last = not full_ctx and not all_on_gpus
                yield Floors(full_ctx=full_ctx, all_on_gpus=all_on_gpus, is_last=last)

    def best(self, candidate: Candidate, floors: Floors) -> EngineSettings | None:
        """The best settings for one candidate at one level, or ``None``."""
        profile = candidate.profile
        for kv_type in self.kv_types(profile):
            low, high = self.contexts(profile, floors)
            least = self.least(profile, kv_type, low)
            if self.fit(profile, least, floors) is None:
                continue
            ctx = self.largest_ctx(profile, least, floors, high)
            return self.settled(profile, with_ctx(least, ctx), floors).grow(
                profile, with_ctx(least, ctx), floors
            )
        return None

    def settled(self, profile: ModelProfile, least: EngineSettings, floors: Floors) -> Search:
        """The same search; with workers, one that gives them no more layers than ``least`` needs.

        Nothing that is only convenient is worth a journey for every token.
        """
        fitted = self.fit(profile, least, floors)
        if not self.lent or fitted is None:
            return self
        wish = replace(self.wish, num_gpu=fitted.num_gpu)
        return Search(self.machine, wish, self.budgets, self.margins)

    def kv_types(self, profile: ModelProfile) -> tuple[KvType, ...]:
        """Cache types to try, the best first: the wish, or those that cost no quality."""
        if self.wish.kv_type is not None:
            return (self.wish.kv_type,)
        return tuple(kind for kind in cache_types(profile) if kind != "q4_0")

    def contexts(self, profile: ModelProfile, floors: Floors) -> tuple[int, int]:
        """The least acceptable context and the target, in tokens."""
        target = target_ctx(profile, self.wish)
        if self.wish.num_ctx is not None:
            return target, target
        floor = FLOOR_CTX_TOKENS // (2 if self.machine.board.single_board else 1)
        return (min(floor, target) if floors.full_ctx else CONTEXT_PADDING_TOKENS), target

    def least(self, profile: ModelProfile, kv_type: KvType, ctx: int) -> EngineSettings:
        """The settings with the smallest need at this context."""
        wish = self.wish
        batch = wish.num_batch or DEFAULT_BATCH_TOKENS
        if profile.pools:
            return self.least_pooled(kv_type, ctx)
        return EngineSettings(
            num_ctx=ctx,
            slots=wish.slots or 1,
            kv_type=kv_type,
            num_gpu=0,
            num_batch=batch,
            num_ubatch=min(batch, UBATCH_STEPS[-1]),
            threads=wish.threads or self.machine.cpu.decode_threads,
            use_mmap=True if wish.use_mmap is None else wish.use_mmap,
            repack=False,
        )

    def least_pooled(self, kv_type: KvType, ctx: int) -> EngineSettings:
        """The same for a model that pools: its batch holds the longest text whole."""
        return EngineSettings(
            num_ctx=ctx,
            spare_sequences=POOLED_TEXTS - 1,
            kv_type=kv_type,
            num_batch=ctx,
            num_ubatch=ctx,
            threads=self.wish.threads or self.machine.cpu.decode_threads,
            use_mmap=True if self.wish.use_mmap is None else self.wish.use_mmap,
            repack=False,
            pooled=True,
        )

    def largest_ctx(
        self, profile: ModelProfile, settings: EngineSettings, floors: Floors, high: int
    ) -> int:
        """Binary search over multiples of the engine's padding; ``settings`` itself fits."""
        low, step = settings.num_ctx, CONTEXT_PADDING_TOKENS
        while low < high:
            middle = min(high, low + max(step, (high - low) // 2 // step * step))
            if self.fit(profile, with_ctx(settings, middle), floors) is None:
                high = middle - step
            else:
                low = middle
        return low

    def grow(
        self, profile: ModelProfile, settings: EngineSettings, floors: Floors
    ) -> EngineSettings:
        """Spend what is left: slots, batches, repacked weights, then prompts that are kept."""
        base = self.fit(profile, settings, floors)
        assert base is not None

        def fits(more: EngineSettings) -> EngineSettings | None:
            """``more`` as it would be loaded, unless that pushes weights off a GPU."""
            found = self.fit(profile, more, floors)
            if found is None or _on_gpus(found) < _on_gpus(base):
                return None
            return found

        fixed = settings.pooled or self.wish.slots is not None
        slots = () if fixed else range(DEFAULT_SLOTS, 1, -1)
        chosen = next((one for n in slots if fits(one := replace(settings, slots=n))), settings)
        largest = UBATCH_STEPS[0] if base.num_gpu else CPU_UBATCH_TOKENS
        steps = () if settings.pooled else (step for step in UBATCH_STEPS if step <= largest)
        batches = (self.wider(chosen, step) for step in steps)
        chosen = next((one for one in batches if fits(one)), chosen)
        extras: list[dict[str, Any]] = [{"repack": True}]
        if _sequences_are_cheap(profile):
            extras.append({"spare_sequences": SPARE_SEQUENCES})
        if not settings.pooled:
            extras.append({"saved_bytes": self.wish.saved_bytes})
        for extra in extras:
            more = replace(chosen, **extra)
            chosen = more if fits(more) else chosen
        return fits(chosen) or base

    def wider(self, settings: EngineSettings, ubatch: int) -> EngineSettings:
        """``settings`` with another micro-batch; the batch grows with it unless it is wished."""
        if self.wish.num_batch is not None:
            return replace(settings, num_ubatch=min(ubatch, settings.num_batch))
        batch = max(DEFAULT_BATCH_TOKENS, ubatch)
        return replace(settings, num_batch=batch, num_ubatch=ubatch)

    def fit(
        self, profile: ModelProfile, settings: EngineSettings, floors: Floors
    ) -> EngineSettings | None:
        """``settings`` with the GPU layers that fit, or ``None`` when no number of them does."""
        for with_layers in self.offloads(profile, settings, floors):
            if self.first_overrun(profile, with_layers) is None:
                return with_layers
        return None

    def offloads(
        self, profile: ModelProfile, settings: EngineSettings, floors: Floors
    ) -> Iterator[EngineSettings]:
        """Numbers of GPU layers worth trying, the best first, each dealt out over the GPUs."""
        layers = profile.block_count + 1
        wished = self.wish.num_gpu
        if self.unified:
            yield from self.shared(settings, layers)
        elif not self.gpus:
            yield settings
        elif wished is not None and wished >= 0:
            yield self.dealt(settings, min(wished, layers), len(self.gpus))
        elif self.lent:  # as few as possible: every token travels to them
            for number in range(layers + 1):
                yield self.dealt(settings, number, len(self.gpus))
        else:
            for count in range(1, len(self.gpus) + 1):
                yield self.dealt(settings, layers, count)
            if not floors.all_on_gpus:
                yield from self.spilled(profile, settings, layers)

    def spilled(
        self, profile: ModelProfile, settings: EngineSettings, layers: int
    ) -> Iterator[EngineSettings]:
        """Less and less on the GPUs: of a mixture its experts leave first, block by block.

        One token needs few of them, so they are the weights that host memory slows down least.
        """
        if profile.expert_bytes:
            mapped = bool(self.wish.use_mmap)  # the engine reads mapped experts slowly
            settings = replace(settings, use_mmap=mapped)
            whole = self.dealt(settings, layers, len(self.gpus))
            for count in range(1, profile.block_count + 1):
                yield replace(whole, cpu_experts=count)
            settings = replace(settings, cpu_experts=profile.block_count)
        for number in range(layers - 1, 0, -1):
            yield self.dealt(settings, number, len(self.gpus))
        mapped = True if self.wish.use_mmap is None else self.wish.use_mmap
        yield replace(settings, num_gpu=0, cpu_experts=0, use_mmap=mapped)

    def shared(self, settings: EngineSettings, layers: int) -> Iterator[EngineSettings]:
        """All on a GPU that shares the host's memory, where it takes a little more, or nothing.

        The weights are copied, so the file is not mapped: it would be there twice.
        """
        wished = self.wish.num_gpu
        number = layers if wished is None or wished < 0 else min(wished, layers)
        if number:
            mapped = bool(self.wish.use_mmap)
            yield replace(settings, num_gpu=number, unified=True, use_mmap=mapped)
        if not number or wished is None or wished < 0:
            yield settings

    def dealt(self, settings: EngineSettings, number: int, count: int) -> EngineSettings:
        """``number`` layers on the ``count`` roomiest GPUs, in shares of their budgets."""
        workers = tuple(gpu.worker for gpu in self.gpus if gpu.worker) if number else ()
        settings = replace(settings, workers=workers)
        if number == 0 or len(self.gpus) == 1:
            return replace(settings, num_gpu=number)
        room = {gpu.index: max(1, self.budgets[gpu_pool(gpu.index)]) for gpu in self.gpus}
        chosen = sorted(room, key=lambda index: (-room[index], index))[:count]
        whole = sum(room[index] for index in chosen)
        bounds, running = [], 0
        for gpu in self.gpus:
            running += room[gpu.index] if gpu.index in chosen else 0
            bounds.append(round(number * running / whole))
        counts = [high - low for low, high in zip([0, *bounds], bounds, strict=False)]
        return replace(settings, num_gpu=number, tensor_split=_split(counts))

    def first_overrun(
        self, profile: ModelProfile, settings: EngineSettings
    ) -> tuple[str, int, int] | None:
        """Pool, need with margin, and budget of the first pool that is too small."""
        need = estimate(profile, settings, repacked=self.repacked)
        for pool in need.pools:
            size = need.total_bytes(pool)
            wanted = size + margin_bytes(pool, size, self.margins.get(profile, UNTRIED))
            if wanted > self.budgets.get(pool, 0):
                return pool, wanted, self.budgets.get(pool, 0)
        return None

    def rejection(self, candidate: Candidate, floors: Floors) -> Rejection:
        """The overrun at the least settings, and what would help."""
        profile = candidate.profile
        kv_type = self.kv_types(profile)[-1]
        low, _ = self.contexts(profile, floors)
        least = self.least(profile, kv_type, low)
        tried = list(self.offloads(profile, least, floors))
        overruns = [(self.first_overrun(profile, one), one) for one in tried]
        known = [(over, one) for over, one in overruns if over is not None]
        (pool, need, budget), settings = min(known, key=lambda pair: pair[0][1] - pair[0][2])
        return Rejection(
            variant=candidate.variant,
            settings=settings,
            pool=pool,
            need_bytes=need,
            budget_bytes=budget,
            remedy=self.remedy(profile, least, need - budget, pool),
            constraint=self.constraint(pool),
        )

    def constraint(self, pool: str) -> str:
        """The first bound on a pool, by name."""
        if pool == HOST:
            return self.machine.memory.limits[0][0]
        return f"free {pool_words(pool)}"

    def remedy(
        self, profile: ModelProfile, least: EngineSettings, short_bytes: int, pool: str
    ) -> str:
        """What would make ``least`` fit."""
        anything = Floors(full_ctx=False, all_on_gpus=False, is_last=True)
        smallest = with_ctx(least, CONTEXT_PADDING_TOKENS)
        if least.num_ctx > smallest.num_ctx and self.fit(profile, smallest, anything) is not None:
            ctx = self.largest_ctx(profile, smallest, anything, least.num_ctx)
            return f"a context of {ctx} tokens fits"
        if least.slots > 1 and self.fit(profile, replace(least, slots=1), anything) is not None:
            return "one slot fits"
        quantized = replace(least, kv_type="q8_0", flash_attention=True)
        if least.kv_type == "f16" and self.fit(profile, quantized, anything) is not None:
            return "a q8_0 cache fits"
        return f"free {Bytes(short_bytes)} more of {pool_words(pool)}, or use a smaller variant"


def cache_types(profile: ModelProfile) -> tuple[KvType, ...]:
    """Cache types the engine accepts for this model, the most precise first.

    Source: llama_init_from_model refuses head rows that are no whole blocks.
    """
    block = GGML_TYPES_BY_NAME["Q8_0"].block_size
    if profile.key_length % block or profile.value_length % block:
        return ("f16",)
    return ("f16", "q8_0", "q4_0")


def target_ctx(profile: ModelProfile, wish: Wish) -> int:
    """The context placement aims at: the wish or the default, cut to the trained context.

    Rounded up to what the engine allocates.
    """
    default = DEFAULT_POOLED_TOKENS if profile.pools else DEFAULT_CTX_TOKENS
    wanted = default if wish.num_ctx is None else max(1, wish.num_ctx)
    step = CONTEXT_PADDING_TOKENS
    return -(-min(wanted, profile.context_length) // step) * step


def with_ctx(settings: EngineSettings, ctx: int) -> EngineSettings:
    """``settings`` with another context; where texts are pooled, the batch grows with it."""
    if settings.pooled:
        return replace(settings, num_ctx=ctx, num_batch=ctx, num_ubatch=ctx)
    return replace(settings, num_ctx=ctx)


def _split(counts: Sequence[int]) -> tuple[float, ...]:
    """Shares that make the engine deal out exactly ``counts`` layers.

    The engine compares running sums of the shares with layer numbers; bounds half a layer early
    keep rounding from moving a layer to the next GPU.
    """
    used = [index for index, count in enumerate(counts) if count]
    shares = [float(count) for count in counts]
    shares[used[0]] -= 0.5
    shares[used[-1]] += 0.5
    return tuple(shares)


def _on_gpus(settings: EngineSettings) -> tuple[int, int]:
    """How much of the model is on GPUs, for comparing: layers, then experts."""
    return settings.num_gpu, -settings.cpu_experts


def _sequences_are_cheap(profile: ModelProfile) -> bool:
    """Whether one more sequence costs no more than a row of logits."""
    return not (profile.pools or profile.recurrent_bytes or profile.sliding_window)
