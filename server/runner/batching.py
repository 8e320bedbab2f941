"""Which requests run and where they begin. Pure.

A request waits, then runs in a sequence of the cache until it ends; its cells then stay, idle,
for a later prompt that begins the same way. Running requests differ only in how many of their
tokens the cache does not hold yet: one when they decode, many when they prefill.

Rules:
 * a request starts only if its whole reservation (prompt and longest answer, at most a context)
   fits beside all others, so decoding never finds the cache full;
 * who starts is decided by `server.runner.fairness`; idle cells give way to who starts;
 * a prompt whose beginning another request is computing follows that one, and shares the
   beginning once it is there: it is computed once, by the request that came first;
 * at least one token of a prompt is computed, for its logits;
 * only requests of one scope share;
 * where the cache cannot go back, a checkpoint is a sequence that shares another one's positions
   at a moment: at the end of a prompt, and where a prompt parts from an earlier one;
 * cells shared by sequences count once;
 * where the rows of a picture see each other, nothing is shared that ends inside one.

What a step computes: `server.runner.composing`. What holds which tokens: `server.runner.holdings`.
What leaves the cache and comes back: `server.runner.leaving`.
The engine's cache is changed by the effects that the methods return, in their order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping

from server.runner.cells import Cells
from server.runner.composing import NOTHING, Composer
from server.runner.fairness import Line
from server.runner.holdings import Holdings, Resumable
from server.runner.leaving import Leaving
from server.runner.running import Held, Place, Running
from server.runner.saved import SavedStates
from server.runner.window import slide_range
from server.runner.work import Chunk, Drop, Effect, Limits, Slide, Work

FOLLOW_TOKENS = 32
"""Fewer common tokens are computed again rather than waited for. Why: a step costs nearly as much
as that many rows, see `server.runner.pace.LEAST_TOKENS`."""


class Batching:
    """The state of all requests; see the rules of this module.

    Attributes:
        running: requests that have a sequence, by id, in the order they started.
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
        self.running: dict[int, Running] = {}
        self._follow_tokens = follow_tokens
        self._restored = False
        self._line = Line()
        self._composer = Composer(limits)
        self._holdings = Holdings(limits)
        self._leaving = Leaving(
            self._holdings,
            SavedStates() if saved is None else saved,
            least_tokens=follow_tokens,
            measure=measure,
        )

    @property
    def idle(self) -> list[Held]:
        """Sequences no request uses, the longest unused first."""
        return self._holdings.idle

    @property
    def cells(self) -> Cells:
        """What the cache holds."""
        return self._holdings.cells

    @property
    def saved(self) -> SavedStates:
        """States outside the cache."""
        return self._leaving.saved

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

    def prefills_alone(self, budget_tokens: int) -> bool:
        """Whether the next step leaves the decoding requests out, so nothing need be proposed."""
        room = self.limits.cells - self.cells.used
        return self._composer.prefills_alone(self.running.values(), room, budget_tokens)

    def plan(
        self,
        budget_tokens: int,
        proposals: Mapping[int, tuple[int, ...]] = NOTHING,
        *,
        together: bool = False,
    ) -> tuple[Chunk, ...]:
        """The next step; see `server.runner.composing.Composer.compose`."""
        room = self.limits.cells - self.cells.used
        return self._composer.compose(
            self.running.values(), room, budget_tokens, proposals, together=together
        )

    def advance(self, chunk: Chunk) -> None:
        """Note that the cache now holds a chunk; what was proposed counts when confirmed."""
        end = chunk.start + len(chunk.tokens) - chunk.proposed
        self._holdings.set_evaluated(self.running[chunk.id], end)

    def confirm(self, request: int) -> None:
        """Note that the token just appended is the one that was proposed and computed."""
        run = self.running[request]
        self._holdings.set_evaluated(run, run.evaluated + 1)

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
            self._holdings.retire(held)
            # What was planned but not computed is not in the cache; the drop makes that sure.
            return (Drop(held.sequence, run.evaluated),) if self.limits.divisible else ()
        return self._holdings.forget(held)

    def rewind(self, request: int, position: int) -> tuple[Effect, ...]:
        """Note that the cache holds only the positions below ``position`` of a request.

        Its last token is always computed again: its logits were lost.
        """
        run = self.running[request]
        known = max(0, min(position, len(run.held.tokens) - 1))
        known = self._holdings.uncut(run.held.tokens, known)
        if not self.limits.divisible and position != run.evaluated:
            known, run.robbed = 0, True
        self._holdings.set_evaluated(run, known)
        return (Drop(run.held.sequence, known),)

    def evict(self) -> tuple[Effect, ...]:
        """Give up the idle sequence that was not used for longest; nothing without one."""
        return self._leaving.evict()

    def preempt(self) -> tuple[Effect, ...]:
        """Empty the request that came last, until another one ends; not the only one."""
        active = [run for run in self.running.values() if run.active]
        if len(active) <= 1:
            return ()
        last = max(active, key=lambda run: run.order)
        effects = tuple(self._leaving.save(last.held))
        self._holdings.set_evaluated(last, 0)
        last.parked = last.robbed = True
        return (*effects, Drop(last.held.sequence))

    def lose(self, state: int, request: int | None = None) -> tuple[Effect, ...]:
        """Note that a state could not be kept, or restored for a request: it computes again."""
        self.saved.remove(state)
        run = self.running.get(request) if request is not None else None
        if run is None:
            return ()
        self._holdings.set_evaluated(run, 0)
        run.cached = 0
        return (Drop(run.held.sequence),)

    def _find_place(self, work: Work, resumable: Resumable) -> Place:
        """Where a request would start: behind what is there, or following who computes more."""
        holdings = self._holdings
        source, length = holdings.longest(work.scope, work.prompt, resumable)
        leader, fork_at = holdings.leader(work.scope, work.prompt)
        branch = holdings.branch(work.scope, work.prompt)
        saved, known = self._leaving.find(work.scope, work.prompt)
        if leader is not None and fork_at >= max(length, known) + self._follow_tokens:
            return Place(None, 0, leader, fork_at, branch)
        if saved is not None and known >= length + self._follow_tokens:
            room = self.limits.cells - self._promised()
            if max(len(saved.tokens), self.limits.final(work)) <= room:
                return Place(None, known, None, 0, branch, saved)
        return Place(source, length, None, 0, branch)

    def _start(self, work: Work, place: Place) -> Iterator[Effect]:
        order, length = self._holdings.tick(), place.length
        self.saved.pinned = None if place.saved is None else place.saved.id
        sequence = yield from self._settle(place)
        run = Running(work, Held(sequence, list(work.prompt), work.scope), length, order)
        run.cached = length
        self.running[work.id] = run
        self._holdings.put(run.held, run, work.prompt)
        if place.saved is not None:
            yield from self._leaving.restore(run, place.saved, length)
            self._restored = True
        if self.limits.checkpoints:
            got = max(length, place.fork_at)
            run.marks = [place.branch] if place.branch >= got + self._follow_tokens else []
            run.marks.append(len(work.prompt))
        if place.leader is not None:
            run.follow(place.leader, place.fork_at)
        yield from self._leaving.make_room(self._growth())

    def _settle(self, place: Place) -> Generator[Effect, None, int]:
        """Find a sequence that holds the beginning of a place, and nothing behind it."""
        holdings, source, length = self._holdings, place.source, place.length
        if source is not None and holdings.is_spent(source, length):
            self.idle.remove(source)
            if length + self._follow_tokens <= len(source.tokens):
                yield from self._leaving.save(source)
            if length < len(source.tokens):
                self.cells.set_length(source.sequence, length)
                yield Drop(source.sequence, length)
            return source.sequence
        if not holdings.free:
            yield from self._leaving.evict(besides=source)
        sequence = holdings.free.pop()
        if source is not None:
            yield holdings.share(source, sequence, length)
        return sequence

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
        holdings, scope, tokens = self._holdings, run.held.scope, tuple(run.held.tokens)
        source, length = holdings.longest(scope, tokens, resumable, taker=run)
        saved, known = self._leaving.find(scope, tokens)
        if saved is not None and known >= max(length, run.evaluated) + self._follow_tokens:
            others = self.cells.union(
                one.held.sequence for one in self.running.values() if one is not run
            )
            if others + len(saved.tokens) <= self.limits.cells:
                holdings.set_evaluated(run, 0)
                yield Drop(run.held.sequence)
                yield from self._leaving.restore(run, saved, known)
                self._restored = True
                if not run.answered:
                    run.cached = known
                return
        if source is not None and length > run.evaluated:
            if run.evaluated:
                holdings.set_evaluated(run, 0)
                yield Drop(run.held.sequence)
            yield holdings.share(source, run.held.sequence, length)
            run.evaluated = length
            if not run.answered:
                run.cached = length
        other, fork_at = holdings.leader(scope, tokens, before=run.order)
        if other is not None and fork_at >= run.evaluated + self._follow_tokens:
            run.follow(other, fork_at)

    def _leave_checkpoint(self, run: Running) -> Iterator[Effect]:
        """Let a sequence of its own hold what a request has computed so far."""
        holdings = self._holdings
        run.marks.remove(run.evaluated)
        tokens = tuple(run.held.tokens[: run.evaluated])
        if run.held.exact < len(tokens) or holdings.is_kept(run.held.scope, tokens):
            return
        if not holdings.free:
            yield from self._leaving.evict()
        if holdings.free:
            yield holdings.copy(run.held, tokens)

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
            self._holdings.put(held, run, held.tokens[: held.exact])
            return (Slide(held.sequence, start, end),)
        # Moving shared cells would move them under the other sequences too: compute them again.
        self._holdings.set_evaluated(run, start if self.limits.divisible else 0)
        self._holdings.put(held, run, held.tokens)
        return (Drop(held.sequence, run.evaluated),)

    def _growth(self) -> int:
        """Cells that running requests may still come to need."""
        return sum(
            self.limits.final(run.work) - max(run.evaluated, run.fork_at)
            for run in self.running.values()
        )

    def _promised(self) -> int:
        """Cells that running requests hold or may come to need."""
        held = (run.held.sequence for run in self.running.values())
        return self.cells.union(held) + self._growth()

    def _need(self, work: Work, place: Place) -> int:
        """Cells that a request would add to what is promised."""
        if place.saved is not None:
            return max(self.limits.final(work), len(place.saved.tokens))
        need = self.limits.final(work) - max(place.length, place.fork_at)
        if place.source is not None:
            held = (run.held.sequence for run in self.running.values())
            need += self.cells.beyond(place.source.sequence, place.length, held)
        return need
