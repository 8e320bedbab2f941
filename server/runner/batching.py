"""Which requests run, where their tokens live in the KV cache, and what a step computes. Pure.

A request waits, then runs in a sequence of the cache until it ends; its cells then stay, idle,
for a later prompt that begins the same way. Running requests differ only in how many of their
tokens the cache does not hold yet: one when they decode, many when they prefill.

Rules:
 * a request starts only if its whole reservation (prompt and longest answer, at most a context)
   fits beside all others, so decoding never finds the cache full;
 * who starts and who prefills next is decided by `server.runner.fairness`; idle cells give way,
   the longest unused first;
 * decoding requests are in every step;
 * a prompt whose beginning another request is computing follows that one, and shares the
   beginning once it is there: it is computed once, by the request that came first;
 * tokens may be proposed behind the one of a decoding request; they count once confirmed;
 * at least one token of a prompt is computed, for its logits;
 * only requests of one scope share;
 * where the cache cannot go back, a checkpoint is a sequence that shares another one's positions
   at a moment: at the end of a prompt, and where a prompt parts from an earlier one;
 * cells shared by sequences count once;
 * what is planned for a request is text, or rows of one picture; where these see each other, a
   picture is computed whole, and nothing is shared that ends inside one;
 * what leaves the cache is kept as a state outside it where there is room, and comes back where
   that spares computing more than a few tokens.

The engine's cache is changed by the effects that the methods return, in their order.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from server.runner.cells import Cells
from server.runner.fairness import AGING_TOKENS, DeficitRing, Line
from server.runner.pictures import before_picture, is_place, stretch
from server.runner.prefixes import PrefixTree, common_prefix
from server.runner.saved import Saved, SavedStates
from server.runner.window import slide_range
from server.runner.work import (
    Chunk,
    Discard,
    Drop,
    Effect,
    Limits,
    Restore,
    Save,
    Share,
    Slide,
    Work,
)

FOLLOW_TOKENS = 32
"""Fewer common tokens are computed again rather than waited for. Why: a step costs nearly as much
as that many rows, see `server.runner.pace.LEAST_TOKENS`."""

NOTHING: Mapping[int, tuple[int, ...]] = MappingProxyType({})

Resumable = Callable[[int, int], bool]
"""Whether a sequence can go on at a position; windowed caches forget."""


@dataclass(slots=True, eq=False)
class Held:
    """Tokens in a sequence of the cache.

    Attributes:
        tokens: what the sequence holds or is to hold.
        scope: who may share them.
        checkpoint: it is not to be changed, only shared.
        exact: how many at its start are as if computed in this order; all but after a slide.
        used: when it was last in use, counted in admissions.
    """

    sequence: int
    tokens: list[int]
    scope: str
    exact: int = sys.maxsize
    used: int = 0
    checkpoint: bool = False


@dataclass(slots=True, eq=False)
class Running:
    """A request that has a sequence.

    Attributes:
        evaluated: tokens the cache holds.
        cached: prompt tokens that did not have to be computed.
        waited: steps since it was last served.
        parked: it gave its cells up and waits for another request to end.
        robbed: it was parked; it may find a beginning to share when it goes on.
        marks: positions at which to leave a checkpoint.
        leader: who computes the beginning of this one's prompt.
        fork_at: how long that beginning is; 0 without a leader.
    """

    work: Work
    held: Held
    evaluated: int
    order: int
    cached: int = 0
    waited: int = 0
    parked: bool = False
    robbed: bool = False
    leader: Running | None = None
    fork_at: int = 0
    followers: list[Running] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)

    @property
    def pending(self) -> int:
        """Tokens the cache does not hold yet."""
        return len(self.held.tokens) - self.evaluated

    @property
    def active(self) -> bool:
        """Whether a step may compute it."""
        return not self.parked and self.leader is None

    @property
    def reach(self) -> int:
        """Tokens the next step may compute: it stops where others part from it, and at marks."""
        stops = [run.fork_at - self.evaluated for run in self.followers]
        stops += [mark - self.evaluated for mark in self.marks]
        return min([self.pending, *(stop for stop in stops if stop > 0)])

    @property
    def rest(self) -> int:
        """Tokens until the first answer, of this request or of one that follows it."""
        ends = [self.held.tokens, *(run.held.tokens for run in self.followers)]
        return min(map(len, ends)) - self.evaluated

    @property
    def answered(self) -> bool:
        """Whether a token has been sampled."""
        return len(self.held.tokens) > len(self.work.prompt)

    def follow(self, leader: Running, fork_at: int) -> None:
        """Wait for the beginning that another request computes."""
        self.leader, self.fork_at = leader, fork_at
        leader.followers.append(self)

    def unfollow(self) -> None:
        """Follow nobody any more."""
        if self.leader is not None:
            self.leader.followers.remove(self)
        self.leader, self.fork_at = None, 0


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a request starts: behind ``length`` tokens of a source, or following a leader.

    ``branch`` is how long the longest beginning is that any sequence has, usable or not.
    ``saved`` is a state outside the cache to begin with, instead of a source.
    """

    source: Held | None
    length: int
    leader: Running | None
    fork_at: int
    branch: int
    saved: Saved | None = None


class Batching:
    """The state of all requests; see the rules of this module.

    Attributes:
        running: requests that have a sequence, by id, in the order they started.
        idle: sequences no request uses, the longest unused first.
        cells: what the cache holds.
        saved: states outside it.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        follow_tokens: int = FOLLOW_TOKENS,
        saved: SavedStates | None = None,
        measure: Callable[[int], int] = lambda _sequence: 0,
    ) -> None:
        """Begin with nothing in the cache.

        Args:
            limits: what the engine holds.
            follow_tokens: the fewest common tokens that are waited for, or restored.
            saved: states outside the cache; without, nothing is kept there.
            measure: bytes that the state of a sequence takes.
        """
        self.limits = limits
        self.saved = SavedStates() if saved is None else saved
        self._measure = measure
        self._restored = False
        self._follow_tokens = follow_tokens
        self.running: dict[int, Running] = {}
        self.idle: list[Held] = []
        self.cells = Cells()
        self._line = Line()
        self._ring = DeficitRing()
        self._trees: dict[str, PrefixTree[int]] = {}
        self._owners: dict[int, Running | Held] = {}
        self._free = list(range(limits.sequences - 1, -1, -1))
        self._clock = 0

    @property
    def waiting(self) -> tuple[Work, ...]:
        """Requests that have not started, in the order they came."""
        return tuple(self._line)

    @property
    def decoding(self) -> int:
        """Requests of which the next step computes a token, whatever its budget."""
        return sum(run.pending == 1 and run.active for run in self.running.values())

    def submit(self, work: Work) -> None:
        """Queue a request.

        Raises:
            ValueError: its prompt is empty, or leaves no room in the context or the cache.
        """
        most = min(self.limits.context_tokens, self.limits.cells)
        if not 0 < len(work.prompt) < most:
            raise ValueError(f"prompt: expected 1 to {most - 1} tokens, found {len(work.prompt)}")
        self._line.put(work)

    def admit(self, resumable: Resumable) -> tuple[Effect, ...]:
        """Share what has been computed, then start as many waiting requests as fit.

        One state at most is restored, and last: only then is it known whether it was good.
        """
        effects: list[Effect] = []
        self._restored = False
        for run in self.running.values():
            if run.evaluated in run.marks:
                effects += self._leave_checkpoint(run)
            if run.leader is not None or (run.robbed and not run.parked):
                effects += self._fork(run, resumable)
            if self._restored:
                break
        self._line.pass_step()
        while len(self._line) and len(self.running) < self.limits.slots and not self._restored:
            shares = Counter(run.work.tenant for run in self.running.values())
            work = self._line.first(shares)
            if work is None:
                break
            place = self._find_place(work, resumable)
            if self._promised() + self._need(work, place) > self.limits.cells:
                break
            self._line.take(work)
            effects += self._start(work, place)
        return (*effects, *self._relieve())

    def plan(
        self, budget_tokens: int, proposals: Mapping[int, tuple[int, ...]] = NOTHING
    ) -> tuple[Chunk, ...]:
        """The next step: one token of each decoding request, then at most a budget of prefill.

        Behind the token of a decoding request come tokens proposed for it, where there is room.
        """
        active = [run for run in self.running.values() if run.active]
        decoding = [run for run in active if run.pending == 1]
        prefilling = [run for run in active if run.pending > 1]
        # Only more slots than the batch holds make it matter who comes first.
        decoding.sort(key=lambda run: (-run.waited, run.order))
        prefilling.sort(key=lambda run: (run.rest - AGING_TOKENS * run.waited, run.order))
        chunks: list[Chunk] = []
        room = min(self.limits.batch_tokens, self.limits.cells - self.cells.used)
        for run in decoding:
            room -= self._take(run, min(1, room), chunks)
        room -= self._propose(proposals, room, chunks)
        wants: Counter[str] = Counter()
        for run in prefilling:
            wants[run.work.tenant] += run.reach
        dealt = self._ring.deal(wants, min(room, budget_tokens))
        for run in prefilling:
            count = min(run.reach, dealt.get(run.work.tenant, 0))
            dealt[run.work.tenant] = dealt.get(run.work.tenant, 0) - count
            self._take(run, count, chunks)
        return tuple(chunks)

    def advance(self, chunk: Chunk) -> None:
        """Note that the cache now holds a chunk; what was proposed counts when confirmed."""
        end = chunk.start + len(chunk.tokens) - chunk.proposed
        self._set_evaluated(self.running[chunk.id], end)

    def confirm(self, request: int) -> None:
        """Note that the token just appended is the one that was proposed and computed."""
        run = self.running[request]
        self._set_evaluated(run, run.evaluated + 1)

    def retract(self, request: int) -> tuple[Effect, ...]:
        """Forget the computed tokens that were proposed and not confirmed."""
        run = self.running[request]
        return (Drop(run.held.sequence, run.evaluated),)

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
            self._line.remove(request)
            return ()
        run.unfollow()
        for other in self.running.values():
            other.parked = False
        held = run.held
        del held.tokens[run.evaluated :]
        if keep and held.tokens and held.exact >= len(held.tokens):
            self._clock += 1
            held.used = self._clock
            self.idle.append(held)
            self._index(held, held, held.tokens)
            # What was planned but not computed is not in the cache; the drop makes that sure.
            return (Drop(held.sequence, run.evaluated),) if self.limits.divisible else ()
        return self._forget(held)

    def rewind(self, request: int, position: int) -> tuple[Effect, ...]:
        """Note that the cache holds only the positions below ``position`` of a request.

        Its last token is always computed again: its logits were lost.
        """
        run = self.running[request]
        known = max(0, min(position, len(run.held.tokens) - 1))
        known = self._uncut(run.held.tokens, known)
        if not self.limits.divisible and position != run.evaluated:
            known, run.robbed = 0, True
        self._set_evaluated(run, known)
        return (Drop(run.held.sequence, known),)

    def evict(self, *, besides: Held | None = None) -> tuple[Effect, ...]:
        """Give up the idle sequence that was not used for longest; nothing without one."""
        oldest = next((held for held in self.idle if held is not besides), None)
        if oldest is None:
            return ()
        self.idle.remove(oldest)
        return (*self._save(oldest), *self._forget(oldest))

    def preempt(self) -> tuple[Effect, ...]:
        """Empty the request that came last, until another one ends; not the only one."""
        active = [run for run in self.running.values() if run.active]
        if len(active) <= 1:
            return ()
        last = max(active, key=lambda run: run.order)
        effects = tuple(self._save(last.held))
        self._set_evaluated(last, 0)
        last.parked = last.robbed = True
        return (*effects, Drop(last.held.sequence))

    def lose(self, state: int, request: int | None = None) -> tuple[Effect, ...]:
        """Note that a state could not be kept, or restored for a request: it computes again."""
        self.saved.remove(state)
        run = self.running.get(request) if request is not None else None
        if run is None:
            return ()
        self._set_evaluated(run, 0)
        run.cached = 0
        return (Drop(run.held.sequence),)

    def _find_place(self, work: Work, resumable: Resumable) -> _Place:
        """Where a request would start: behind what is there, or following who computes more."""
        source, length = self._longest(work.scope, work.prompt, resumable)
        leader, fork_at = self._leader(work.scope, work.prompt)
        branch, _owners = next(self._matches(work.scope, work.prompt[:-1]), (0, None))
        saved, known = self._outside(work.scope, work.prompt)
        if leader is not None and fork_at >= max(length, known) + self._follow_tokens:
            return _Place(None, 0, leader, fork_at, branch)
        if saved is not None and known >= length + self._follow_tokens:
            room = self.limits.cells - self._promised()
            if max(len(saved.tokens), self._final(work)) <= room:
                return _Place(None, known, None, 0, branch, saved)
        return _Place(source, length, None, 0, branch)

    def _outside(self, scope: str, prompt: tuple[int, ...]) -> tuple[Saved | None, int]:
        """The state outside the cache that has most of a prompt, and how much."""
        saved, known = self.saved.find(scope, prompt[:-1], whole=self._whole)
        uncut = self._uncut(prompt, known)
        return (None, 0) if self._whole and uncut < known else (saved, uncut)

    @property
    def _whole(self) -> bool:
        """Whether a state is of use with all its tokens only."""
        return self.limits.checkpoints or not self.limits.divisible

    def _save(self, held: Held) -> Iterator[Effect]:
        """Keep what a sequence holds outside the cache, if it is worth it and there is room."""
        tokens = tuple(held.tokens[: self.cells.length(held.sequence)])
        if not self._follow_tokens <= len(tokens) <= held.exact or not self.saved.budget_bytes:
            return
        saved, gone = self.saved.put(
            held.scope, tokens, lambda: self._measure(held.sequence), whole=self._whole
        )
        yield from map(Discard, gone)
        if saved is not None:
            yield Save(held.sequence, saved.id, saved.size_bytes)

    def _restore(self, run: Running, saved: Saved, length: int) -> Iterator[Effect]:
        """Fill a request's empty sequence from a state, of which ``length`` tokens are wanted."""
        sequence, size = run.held.sequence, len(saved.tokens)
        self.saved.touch(saved.id)
        self.saved.pinned = saved.id
        while self.idle and self.cells.used + size > self.limits.cells:
            yield from self.evict()
        self.saved.pinned = None
        yield Restore(saved.id, sequence, run.work.id)
        self.cells.set_length(sequence, size)
        if length < size:
            self.cells.set_length(sequence, length)
            yield Drop(sequence, length)
        run.evaluated = length
        self._restored = True

    def _start(self, work: Work, place: _Place) -> Iterator[Effect]:
        self._clock += 1
        source, length = place.source, place.length
        self.saved.pinned = None if place.saved is None else place.saved.id
        if source is not None and self._is_spent(source, length):
            self.idle.remove(source)
            sequence = source.sequence
            if length + self._follow_tokens <= len(source.tokens):
                yield from self._save(source)
            if length < len(source.tokens):
                self.cells.set_length(sequence, length)
                yield Drop(sequence, length)
        else:
            if not self._free:
                yield from self.evict(besides=source)
            sequence = self._free.pop()
            if source is not None:
                yield self._share(source, sequence, length)
        run = Running(work, Held(sequence, list(work.prompt), work.scope), length, self._clock)
        run.cached = length
        self.running[work.id] = run
        self._index(run.held, run, work.prompt)
        if place.saved is not None:
            yield from self._restore(run, place.saved, length)
        if self.limits.checkpoints:
            got = max(length, place.fork_at)
            run.marks = [place.branch] if place.branch >= got + self._follow_tokens else []
            run.marks.append(len(work.prompt))
        if place.leader is not None:
            run.follow(place.leader, place.fork_at)
        while self.idle and self.cells.used + self._growth() > self.limits.cells:
            yield from self.evict()

    def _fork(self, run: Running, resumable: Resumable) -> Iterator[Effect]:
        """Share with a request what others have computed by now, or find it another leader."""
        leader = run.leader
        if (
            leader is not None
            and self.running.get(leader.work.id) is leader
            and not leader.parked
            and leader.evaluated < run.fork_at
        ):
            return
        run.unfollow()
        run.robbed = False
        tokens = tuple(run.held.tokens)
        source, length = self._longest(run.held.scope, tokens, resumable, taker=run)
        saved, known = self._outside(run.held.scope, tokens)
        if saved is not None and known >= max(length, run.evaluated) + self._follow_tokens:
            others = self.cells.union(
                one.held.sequence for one in self.running.values() if one is not run
            )
            if others + len(saved.tokens) <= self.limits.cells:
                self._set_evaluated(run, 0)
                yield Drop(run.held.sequence)
                yield from self._restore(run, saved, known)
                if not run.answered:
                    run.cached = known
                return
        if source is not None and length > run.evaluated:
            if run.evaluated:
                self._set_evaluated(run, 0)
                yield Drop(run.held.sequence)
            yield self._share(source, run.held.sequence, length)
            run.evaluated = length
            if not run.answered:
                run.cached = length
        other, fork_at = self._leader(run.held.scope, tokens, before=run.order)
        if other is not None and fork_at >= run.evaluated + self._follow_tokens:
            run.follow(other, fork_at)

    def _leave_checkpoint(self, run: Running) -> Iterator[Effect]:
        """Let a sequence of its own hold what a request has computed so far."""
        run.marks.remove(run.evaluated)
        tokens = tuple(run.held.tokens[: run.evaluated])
        if run.held.exact < len(tokens) or self._is_kept(run.held.scope, tokens):
            return
        if not self._free:
            yield from self.evict()
        if self._free:
            self._clock += 1
            copy = Held(self._free.pop(), list(tokens), run.held.scope, checkpoint=True)
            copy.used = self._clock
            self.idle.append(copy)
            self._index(copy, copy, tokens)
            yield self._share(run.held, copy.sequence, len(tokens))

    def _is_kept(self, scope: str, tokens: tuple[int, ...]) -> bool:
        """Whether an idle sequence holds just these tokens."""
        length, owners = next(self._matches(scope, tokens), (0, frozenset[int]()))
        held = (self._owners[sequence] for sequence in owners)
        return length == len(tokens) and any(
            isinstance(one, Held) and len(one.tokens) == length for one in held
        )

    def _relieve(self) -> Iterator[Effect]:
        """Make sure that everybody who runs can go on by a token.

        Reservations see to that, but for a few cells of requests whose leader left early.
        """
        while self.cells.used + self._active() > self.limits.cells:
            effects = self.evict() or self.preempt()
            if not effects:
                return
            yield from effects

    def _active(self) -> int:
        return sum(run.active for run in self.running.values())

    def _is_spent(self, source: Held, length: int) -> bool:
        """Whether taking a sequence over is better than sharing its beginning."""
        if not isinstance(self._owners[source.sequence], Held):
            return False
        if source.checkpoint and (self._free or len(self.idle) > 1):
            return False
        if not self.limits.divisible or not self._free:
            return True
        return length * 2 >= len(source.tokens)

    def _longest(
        self,
        scope: str,
        prompt: tuple[int, ...],
        resumable: Resumable,
        *,
        taker: Running | None = None,
    ) -> tuple[Held | None, int]:
        """The sequence that holds most of a prompt's beginning, and how much of it."""
        best: tuple[Held | None, int] = (None, 0)
        wanted = prompt[:-1]
        for length, sequences in self._matches(scope, wanted):
            if length <= best[1]:
                break
            for sequence in sequences:
                owner = self._owners[sequence]
                if owner is taker:
                    continue
                held = owner if isinstance(owner, Held) else owner.held
                size = self.cells.length(sequence)
                known = min(self._common(held, length, wanted), held.exact)
                common = self._uncut(prompt, min(known, size))
                whole = self.limits.divisible or common == size
                if common > best[1] and whole and resumable(sequence, common):
                    best = (held, common)
        return best

    def _leader(
        self, scope: str, prompt: tuple[int, ...], *, before: int = sys.maxsize
    ) -> tuple[Running | None, int]:
        """Who will compute most of a prompt's beginning, and how much; only who came earlier."""
        best: tuple[Running | None, int] = (None, 0)
        for length, sequences in self._matches(scope, prompt[:-1]):
            if length <= best[1]:
                break
            for sequence in sequences:
                run = self._owners[sequence]
                if isinstance(run, Held) or run.parked or run.order >= before:
                    continue
                common = self._uncut(prompt, min(length, run.held.exact))
                if common > max(best[1], run.evaluated):
                    best = (run, common)
        return best

    def _matches(self, scope: str, wanted: tuple[int, ...]) -> Iterator[tuple[int, frozenset[int]]]:
        tree = self._trees.get(scope)
        return iter(()) if tree is None else tree.matches(wanted)

    def _common(self, held: Held, known: int, wanted: tuple[int, ...]) -> int:
        """How long the common beginning is, when the tree knows so much of it.

        The tree has a running request's prompt only; its answer is looked at here.
        """
        if known < self._trees[held.scope].length(held.sequence):
            return known
        return known + common_prefix(tuple(held.tokens[known:]), wanted[known:])

    def _make_room(self, run: Running) -> tuple[Effect, ...]:
        """Drop old tokens of a full context."""
        held = run.held
        start, end = slide_range(len(held.tokens), keep=run.work.keep)
        del held.tokens[start:end]
        run.marks.clear()
        shared = self.cells.shared(held.sequence)
        if self.limits.can_slide and shared <= end <= run.evaluated:
            run.evaluated -= end - start
            self.cells.cut_out(held.sequence, start, end)
            held.exact = min(held.exact, start)
            self._index(held, run, held.tokens[: held.exact])
            return (Slide(held.sequence, start, end),)
        # Moving shared cells would move them under the other sequences too: compute them again.
        self._set_evaluated(run, start if self.limits.divisible else 0)
        self._index(held, run, held.tokens)
        return (Drop(held.sequence, run.evaluated),)

    def _take(self, run: Running, count: int, chunks: list[Chunk]) -> int:
        if count < 1:
            run.waited += 1
            return 0
        run.waited = 0
        begin = run.evaluated
        count = self._of_one_kind(run.held.tokens, begin, count)
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

    def _propose(
        self, proposals: Mapping[int, tuple[int, ...]], room: int, chunks: list[Chunk]
    ) -> int:
        """Put proposed tokens behind the chunks so far; returns how many."""
        room = min(room, self.limits.proposed_tokens)
        used = 0
        for index, chunk in enumerate(chunks):
            if is_place(chunk.tokens[0]):
                continue
            run = self.running[chunk.id]
            # The context must not be full before the last of them is sampled.
            most = min(room - used, self._final(run.work) - len(run.held.tokens) - 1)
            if tokens := proposals.get(chunk.id, ())[: max(most, 0)]:
                together = (*chunk.tokens, *tokens)
                chunks[index] = replace(chunk, tokens=together, proposed=len(tokens))
                used += len(tokens)
        return used

    def _of_one_kind(self, tokens: list[int], begin: int, count: int) -> int:
        """How many of the next places are planned, if so many may be."""
        if self.limits.whole_pictures and is_place(tokens[begin]):
            return stretch(tokens, begin, len(tokens)) - begin
        return stretch(tokens, begin, begin + count) - begin

    def _uncut(self, tokens: Sequence[int], length: int) -> int:
        """A length that cuts through no picture, where that matters."""
        return before_picture(tokens, length) if self.limits.whole_pictures else length

    def _share(self, source: Held, target: int, end: int) -> Share:
        source.used = self._clock
        self.idle.sort(key=lambda held: held.used)
        self.cells.share(source.sequence, target, end)
        return Share(source.sequence, target, end)

    def _set_evaluated(self, run: Running, evaluated: int) -> None:
        run.evaluated = evaluated
        self.cells.set_length(run.held.sequence, evaluated)
        if evaluated <= run.held.exact:
            run.held.exact = sys.maxsize  # what was moved is gone; the rest is computed anew

    def _index(
        self, held: Held, owner: Running | Held, tokens: list[int] | tuple[int, ...]
    ) -> None:
        self._owners[held.sequence] = owner
        self._trees.setdefault(held.scope, PrefixTree()).put(held.sequence, tokens)

    def _forget(self, held: Held) -> tuple[Effect, ...]:
        self._free.append(held.sequence)
        self._owners.pop(held.sequence, None)
        self.cells.set_length(held.sequence, 0)
        tree = self._trees.get(held.scope)
        if tree is not None:
            tree.remove(held.sequence)
            if not len(tree):
                del self._trees[held.scope]
        return (Drop(held.sequence),)

    def _final(self, work: Work) -> int:
        """The most positions a request will hold."""
        most = min(self.limits.context_tokens, self.limits.cells)
        return min(most, len(work.prompt) + max(work.most_tokens, 1))

    def _growth(self) -> int:
        """Cells that running requests may still come to need."""
        return sum(
            self._final(run.work) - max(run.evaluated, run.fork_at) for run in self.running.values()
        )

    def _promised(self) -> int:
        """Cells that running requests hold or may come to need."""
        held = (run.held.sequence for run in self.running.values())
        return self.cells.union(held) + self._growth()

    def _need(self, work: Work, place: _Place) -> int:
        """Cells that a request would add to what is promised."""
        if place.saved is not None:
            return max(self._final(work), len(place.saved.tokens))
        need = self._final(work) - max(place.length, place.fork_at)
        if place.source is not None:
            held = (run.held.sequence for run in self.running.values())
            need += self.cells.beyond(place.source.sequence, place.length, held)
        return need
