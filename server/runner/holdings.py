"""Which sequence of the cache holds which tokens, and whose beginnings are alike. Pure.

Every sequence is free, idle, or a running request's. Cells that sequences share count once.
Only the holdings of one scope are compared. What changes the engine's cache is returned as effects.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence

from server.runner.cells import Cells
from server.runner.pictures import before_picture
from server.runner.prefixes import PrefixTree, common_prefix
from server.runner.running import Held, Running
from server.runner.work import Drop, Limits, Share

Resumable = Callable[[int, int], bool]
"""Whether a sequence can go on at a position; windowed caches forget."""


class Holdings:
    """The sequences of one cache.

    Attributes:
        idle: sequences no request uses, the longest unused first.
        cells: what the cache holds.
        free: sequences that hold nothing.
    """

    def __init__(self, limits: Limits) -> None:
        """Begin with nothing in the cache."""
        self.limits = limits
        self.idle: list[Held] = []
        self.cells = Cells()
        self.free = list(range(limits.sequences - 1, -1, -1))
        self._trees: dict[str, PrefixTree[int]] = {}
        self._owners: dict[int, Running | Held] = {}
        self._clock = 0

    def tick(self) -> int:
        """The next moment, counted in admissions and ends."""
        self._clock += 1
        return self._clock

    def put(self, held: Held, owner: Running | Held, tokens: Sequence[int]) -> None:
        """Note whose a sequence is, and by which tokens it is found."""
        self._owners[held.sequence] = owner
        self._trees.setdefault(held.scope, PrefixTree()).put(held.sequence, tokens)

    def retire(self, held: Held) -> None:
        """Let a request's sequence stay for others."""
        held.used = self.tick()
        self.idle.append(held)
        self.put(held, held, held.tokens)

    def forget(self, held: Held) -> tuple[Drop, ...]:
        """Free a sequence."""
        self.free.append(held.sequence)
        self._owners.pop(held.sequence, None)
        self.cells.set_length(held.sequence, 0)
        tree = self._trees.get(held.scope)
        if tree is not None:
            tree.remove(held.sequence)
            if not len(tree):
                del self._trees[held.scope]
        return (Drop(held.sequence),)

    def share(self, source: Held, target: int, end: int) -> Share:
        """Give an empty sequence the first ``end`` tokens of another."""
        source.used = self._clock
        self.idle.sort(key=lambda held: held.used)
        self.cells.share(source.sequence, target, end)
        return Share(source.sequence, target, end)

    def copy(self, source: Held, tokens: Sequence[int]) -> Share:
        """Let a free sequence hold what another one holds now, as a checkpoint."""
        copy = Held(self.free.pop(), list(tokens), source.scope, checkpoint=True)
        copy.used = self.tick()
        self.idle.append(copy)
        self.put(copy, copy, tokens)
        return self.share(source, copy.sequence, len(tokens))

    def set_evaluated(self, run: Running, evaluated: int) -> None:
        """Note how many of its tokens a request's sequence holds."""
        run.evaluated = evaluated
        self.cells.set_length(run.held.sequence, evaluated)
        if evaluated <= run.held.exact:
            run.held.exact = sys.maxsize  # what was moved is gone; the rest is computed anew

    def is_kept(self, scope: str, tokens: Sequence[int]) -> bool:
        """Whether an idle sequence holds just these tokens."""
        length, owners = next(self._matches(scope, tokens), (0, frozenset[int]()))
        held = (self._owners[sequence] for sequence in owners)
        return length == len(tokens) and any(
            isinstance(one, Held) and len(one.tokens) == length for one in held
        )

    def is_spent(self, source: Held, length: int) -> bool:
        """Whether taking a sequence over is better than sharing its beginning."""
        if not isinstance(self._owners[source.sequence], Held):
            return False
        if source.checkpoint and (self.free or len(self.idle) > 1):
            return False
        if not self.limits.divisible or not self.free:
            return True
        return length * 2 >= len(source.tokens)

    def longest(
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
                common = self.uncut(prompt, min(known, size))
                whole = self.limits.divisible or common == size
                if common > best[1] and whole and resumable(sequence, common):
                    best = (held, common)
        return best

    def leader(
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
                common = self.uncut(prompt, min(length, run.held.exact))
                if common > max(best[1], run.evaluated):
                    best = (run, common)
        return best

    def branch(self, scope: str, prompt: tuple[int, ...]) -> int:
        """How long the longest beginning of a prompt is that any sequence has."""
        length, _owners = next(self._matches(scope, prompt[:-1]), (0, None))
        return length

    def uncut(self, tokens: Sequence[int], length: int) -> int:
        """A length that cuts through no picture, where that matters."""
        return before_picture(tokens, length) if self.limits.whole_pictures else length

    def _matches(self, scope: str, wanted: Sequence[int]) -> Iterator[tuple[int, frozenset[int]]]:
        tree = self._trees.get(scope)
        return iter(()) if tree is None else tree.matches(wanted)

    def _common(self, held: Held, known: int, wanted: tuple[int, ...]) -> int:
        """How long the common beginning is, when the tree knows so much of it.

        The tree has a running request's prompt only; its answer is looked at here.
        """
        if known < self._trees[held.scope].length(held.sequence):
            return known
        return known + common_prefix(tuple(held.tokens[known:]), wanted[known:])
