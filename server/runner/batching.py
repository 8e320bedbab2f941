"""Which requests run, where their tokens live in the KV cache, and what a step computes. Pure.

A request waits, then runs in a sequence of the cache until it ends; its cells then stay, idle,
for a later prompt that begins the same way. Running requests differ only in how many of their
tokens the cache does not hold yet: one when they decode, many when they prefill.

Rules:
 * a request starts only if its whole reservation (prompt and longest answer, at most a context)
   fits beside all others, so decoding never finds the cache full;
 * requests start in the order they came; idle cells give way, the longest unused first;
 * decoding requests are in every step; the prefill budget goes to the shortest rest first, and
   who gets nothing moves up;
 * at least one token of a prompt is computed, for its logits;
 * cells shared by sequences are counted for each, which errs on the safe side.

The engine's cache is changed by the effects that the methods return, in their order.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from server.runner.window import slide_range

AGING_TOKENS = 64
"""How much shorter a prefill counts for each step it waited. Why: next to a steady stream of
short prompts, a prompt of 4,096 tokens is served after at most 64 steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the engine holds.

    Attributes:
        slots: most requests at once.
        cells: KV cells all sequences share; at least ``slots * context_tokens`` uses every slot.
        context_tokens: most tokens of one request.
        sequences: sequence ids; more than ``slots`` keeps more idle prompts.
        batch_tokens: most tokens per step.
        divisible: the end of a sequence can be dropped and its beginning shared.
        can_slide: positions can be moved.
    """

    slots: int
    cells: int
    context_tokens: int
    sequences: int
    batch_tokens: int
    divisible: bool = True
    can_slide: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A request as batching sees it.

    Attributes:
        prompt: 1 to ``context_tokens - 1`` token ids.
        most_tokens: longest answer.
        keep: tokens at the start that stay when the context slides.
        slide: on a full context drop old tokens instead of ending.
    """

    id: int
    prompt: tuple[int, ...]
    most_tokens: int
    keep: int = 0
    slide: bool = False


@dataclass(frozen=True, slots=True)
class Drop:
    """Forget all positions of ``sequence`` from ``start`` on."""

    sequence: int
    start: int = 0


@dataclass(frozen=True, slots=True)
class Share:
    """Give ``target`` the first ``end`` positions of ``source``."""

    source: int
    target: int
    end: int


@dataclass(frozen=True, slots=True)
class Slide:
    """Forget positions ``start`` to ``end`` of ``sequence`` and move the rest down."""

    sequence: int
    start: int
    end: int


Effect = Drop | Share | Slide


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Consecutive tokens of one request for the next step; ``output`` asks for logits."""

    id: int
    sequence: int
    start: int
    tokens: tuple[int, ...]
    output: bool


@dataclass(slots=True)
class Held:
    """Tokens in a sequence of the cache.

    Attributes:
        tokens: what the sequence holds or is to hold.
        exact: how many at its start are as if computed in this order; all but after a slide.
        shared: how many positions at the start other sequences may hold too.
        used: when it was last in use, counted in admissions.
    """

    sequence: int
    tokens: list[int]
    exact: int = sys.maxsize
    shared: int = 0
    used: int = 0


@dataclass(slots=True)
class Running:
    """A request that has a sequence.

    Attributes:
        evaluated: tokens the cache holds.
        cached: prompt tokens that did not have to be computed.
        waited: steps since it was last served.
        parked: it gave its cells up and waits for another request to end.
    """

    work: Work
    held: Held
    evaluated: int
    cached: int
    order: int
    waited: int = 0
    parked: bool = False

    @property
    def pending(self) -> int:
        """Tokens the cache does not hold yet."""
        return len(self.held.tokens) - self.evaluated


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the common beginning; compares slices, so the cost is that of memory."""
    low, high = 0, min(len(left), len(right))
    if left[:high] == right[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle
    return low


class Batching:
    """The state of all requests; see the rules of this module.

    Attributes:
        waiting: requests that have not started, in order.
        running: requests that have a sequence, by id.
        idle: sequences no request uses, the longest unused first.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.waiting: deque[Work] = deque()
        self.running: dict[int, Running] = {}
        self.idle: list[Held] = []
        self._free = list(range(limits.sequences - 1, -1, -1))
        self._clock = 0

    @property
    def decoding(self) -> int:
        """Requests of which the next step computes a token, whatever its budget."""
        return sum(run.pending == 1 and not run.parked for run in self.running.values())

    def submit(self, work: Work) -> None:
        """Queue a request.

        Raises:
            ValueError: its prompt is empty, or leaves no room in the context or the cache.
        """
        most = min(self.limits.context_tokens, self.limits.cells)
        if not 0 < len(work.prompt) < most:
            raise ValueError(f"prompt: expected 1 to {most - 1} tokens, found {len(work.prompt)}")
        self.waiting.append(work)

    def admit(self, resumable: Callable[[int, int], bool]) -> tuple[Effect, ...]:
        """Start as many waiting requests as fit.

        Args:
            resumable: whether a sequence can go on at a position; windowed caches forget.
        """
        effects: list[Effect] = []
        while self.waiting and len(self.running) < self.limits.slots:
            need = self._reservation(self.waiting[0])
            if self._reserved() + need > self.limits.cells:
                break
            effects += self._start(self.waiting.popleft(), need, resumable)
        return tuple(effects)

    def plan(self, budget_tokens: int) -> tuple[Chunk, ...]:
        """The next step: one token of each decoding request, then at most a budget of prefill."""
        active = [run for run in self.running.values() if not run.parked]
        decoding = [run for run in active if run.pending == 1]
        prefilling = [run for run in active if run.pending > 1]
        # Only more slots than the batch holds make it matter who comes first.
        decoding.sort(key=lambda run: (-run.waited, run.order))
        prefilling.sort(key=lambda run: (run.pending - AGING_TOKENS * run.waited, run.order))
        chunks: list[Chunk] = []
        room = self.limits.batch_tokens
        for run in decoding:
            room -= self._take(run, min(1, room), chunks)
        room = min(room, budget_tokens)
        for run in prefilling:
            room -= self._take(run, min(run.pending, room), chunks)
        return tuple(chunks)

    def advance(self, chunk: Chunk) -> None:
        """Note that the cache now holds a chunk."""
        self.running[chunk.id].evaluated = chunk.start + len(chunk.tokens)

    def append(self, request: int, token: int) -> tuple[Effect, ...] | None:
        """Add a sampled token; ``None`` if the context is full and may not slide.

        A request that got ``None`` has its token, but can only be finished.
        """
        run = self.running[request]
        run.held.tokens.append(token)
        if len(run.held.tokens) < min(self.limits.context_tokens, self.limits.cells):
            return ()
        return self._make_room(run) if run.work.slide else None

    def finish(self, request: int, *, keep: bool = True) -> tuple[Effect, ...]:
        """End a request, wherever it stands; its cells stay for later unless ``keep`` is False."""
        run = self.running.pop(request, None)
        if run is None:
            self.waiting = deque(work for work in self.waiting if work.id != request)
            return ()
        for other in self.running.values():
            other.parked = False
        held = run.held
        del held.tokens[run.evaluated :]
        if keep and held.tokens and held.exact >= len(held.tokens):
            self._clock += 1
            held.used = self._clock
            self.idle.append(held)
            # What was planned but not computed is not in the cache; the drop makes that sure.
            return (Drop(held.sequence, run.evaluated),) if self.limits.divisible else ()
        return self._forget(held)

    def rewind(self, request: int, position: int) -> tuple[Effect, ...]:
        """Note that the cache holds only the positions below ``position`` of a request.

        Its last token is always computed again: its logits were lost.
        """
        run = self.running[request]
        known = max(0, min(position, len(run.held.tokens) - 1))
        if not self.limits.divisible:
            known = 0
        run.evaluated = known
        return (Drop(run.held.sequence, known),)

    def evict(self) -> tuple[Effect, ...]:
        """Give up the idle sequence that was not used for longest; nothing without one."""
        return self._forget(self.idle.pop(0)) if self.idle else ()

    def preempt(self) -> tuple[Effect, ...]:
        """Empty the request that came last, until another one ends; not the only one."""
        active = [run for run in self.running.values() if not run.parked]
        if len(active) <= 1:
            return ()
        last = max(active, key=lambda run: run.order)
        last.evaluated = 0
        last.parked = True
        return (Drop(last.held.sequence),)

    def _start(
        self, work: Work, need: int, resumable: Callable[[int, int], bool]
    ) -> Iterator[Effect]:
        source, length = self._longest(work.prompt, resumable)
        shared = 0
        self._clock += 1
        if source is not None and self._is_spent(source, length):
            self.idle.remove(source)
            sequence, shared = source.sequence, min(source.shared, length)
            if length < len(source.tokens):
                yield Drop(sequence, length)
        elif source is not None:
            sequence, shared = self._free.pop(), length
            source.shared = max(source.shared, length)
            source.used = self._clock
            self.idle.sort(key=lambda held: held.used)
            yield Share(source.sequence, sequence, length)
        else:
            if not self._free:
                yield from self.evict()
            sequence = self._free.pop()
        while self._reserved() + self._cached() + need > self.limits.cells:
            yield from self.evict()
        held = Held(sequence, list(work.prompt), shared=shared)
        self.running[work.id] = Running(
            work, held, evaluated=length, cached=length, order=self._clock
        )

    def _is_spent(self, source: Held, length: int) -> bool:
        """Whether taking a sequence over is better than sharing its beginning."""
        if any(run.held is source for run in self.running.values()):
            return False
        if not self.limits.divisible or not self._free:
            return True
        return length * 2 >= len(source.tokens)

    def _longest(
        self, prompt: tuple[int, ...], resumable: Callable[[int, int], bool]
    ) -> tuple[Held | None, int]:
        """The sequence that holds most of a prompt's beginning, and how much of it."""
        best: tuple[Held | None, int] = (None, 0)
        tokens = list(prompt[:-1])
        candidates = [(held, len(held.tokens)) for held in self.idle]
        if self.limits.divisible and self._free:
            candidates += [(run.held, run.evaluated) for run in self.running.values()]
        for held, size in candidates:
            length = min(common_prefix(held.tokens, tokens), size, held.exact)
            whole = self.limits.divisible or length == len(held.tokens)
            if length > best[1] and whole and resumable(held.sequence, length):
                best = (held, length)
        return best

    def _make_room(self, run: Running) -> tuple[Effect, ...]:
        """Drop old tokens of a full context."""
        held = run.held
        start, end = slide_range(len(held.tokens), keep=run.work.keep)
        del held.tokens[start:end]
        if self.limits.can_slide and held.shared <= end <= run.evaluated:
            run.evaluated -= end - start
            held.exact = min(held.exact, start)
            held.shared = min(held.shared, start)
            return (Slide(held.sequence, start, end),)
        # Moving shared cells would move them under the other sequences too: compute them again.
        run.evaluated = start if self.limits.divisible else 0
        held.shared = min(held.shared, start)
        return (Drop(held.sequence, run.evaluated),)

    def _take(self, run: Running, count: int, chunks: list[Chunk]) -> int:
        if count < 1:
            run.waited += 1
            return 0
        run.waited = 0
        begin = run.evaluated
        chunks.append(
            Chunk(
                id=run.work.id,
                sequence=run.held.sequence,
                start=begin,
                tokens=tuple(run.held.tokens[begin : begin + count]),
                output=count == run.pending,
            )
        )
        return count

    def _forget(self, held: Held) -> tuple[Effect, ...]:
        self._free.append(held.sequence)
        return (Drop(held.sequence),)

    def _reservation(self, work: Work) -> int:
        most = min(self.limits.context_tokens, self.limits.cells)
        return min(most, len(work.prompt) + max(work.most_tokens, 1))

    def _cached(self) -> int:
        return sum(len(held.tokens) for held in self.idle)

    def _reserved(self) -> int:
        return sum(self._reservation(run.work) for run in self.running.values())
