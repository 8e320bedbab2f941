"""What leaves the cache, and what comes back into it from outside. Pure.

Idle sequences give way, the longest unused first. What leaves is kept as a state outside the cache
where there is room, and comes back where that spares computing more than a few tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from server.runner.holdings import Holdings
from server.runner.running import Held, Running
from server.runner.saved import Saved, SavedStates
from server.runner.work import Discard, Drop, Effect, Restore, Save


class Leaving:
    """The way out of one cache, and back.

    Attributes:
        saved: states outside the cache.
        least_tokens: fewer are neither kept nor restored.
    """

    def __init__(
        self,
        holdings: Holdings,
        saved: SavedStates,
        *,
        least_tokens: int,
        measure: Callable[[int], int],
    ) -> None:
        """``measure`` tells how many bytes the state of a sequence takes."""
        self.saved = saved
        self.least_tokens = least_tokens
        self._holdings = holdings
        self._measure = measure
        limits = holdings.limits
        # Whether a state is of use with all its tokens only.
        self._whole = limits.checkpoints or not limits.divisible

    def evict(self, *, besides: Held | None = None) -> tuple[Effect, ...]:
        """Give up the idle sequence that was not used for longest; nothing without one."""
        holdings = self._holdings
        oldest = next((held for held in holdings.idle if held is not besides), None)
        if oldest is None:
            return ()
        holdings.idle.remove(oldest)
        return (*self.save(oldest), *holdings.forget(oldest))

    def make_room(self, cells: int) -> Iterator[Effect]:
        """Evict until so many cells are free, or nothing is idle."""
        holdings = self._holdings
        while holdings.idle and holdings.cells.used + cells > holdings.limits.cells:
            yield from self.evict()

    def find(self, scope: str, prompt: tuple[int, ...]) -> tuple[Saved | None, int]:
        """The state outside the cache that has most of a prompt, and how much."""
        saved, known = self.saved.find(scope, prompt[:-1], whole=self._whole)
        uncut = self._holdings.uncut(prompt, known)
        return (None, 0) if self._whole and uncut < known else (saved, uncut)

    def save(self, held: Held) -> Iterator[Effect]:
        """Keep what a sequence holds outside the cache, if it is worth it and there is room."""
        tokens = tuple(held.tokens[: self._holdings.cells.length(held.sequence)])
        if not self.least_tokens <= len(tokens) <= held.exact or not self.saved.budget_bytes:
            return
        saved, gone = self.saved.put(
            held.scope, tokens, lambda: self._measure(held.sequence), whole=self._whole
        )
        yield from map(Discard, gone)
        if saved is not None:
            yield Save(held.sequence, saved.id, saved.size_bytes)

    def restore(self, run: Running, saved: Saved, length: int) -> Iterator[Effect]:
        """Fill a request's empty sequence from a state, of which ``length`` tokens are wanted."""
        cells, sequence, size = self._holdings.cells, run.held.sequence, len(saved.tokens)
        self.saved.touch(saved.id)
        self.saved.pinned = saved.id
        yield from self.make_room(size)
        self.saved.pinned = None
        yield Restore(saved.id, sequence, run.work.id)
        cells.set_length(sequence, size)
        if length < size:
            cells.set_length(sequence, length)
            yield Drop(sequence, length)
        run.evaluated = length
