"""Which computed prompts are kept outside the engine's cache, and for how many bytes. Pure.

A state is what the engine writes out of one sequence. States in memory count against a budget and
give way, the longest unused first; states in files do not, they are known until they turn out bad.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server.runner.prefixes import PrefixTree


@dataclass(frozen=True, slots=True)
class Saved:
    """One state.

    Attributes:
        id: of this state, never used again.
        scope: who may share it.
        tokens: what it holds.
        size_bytes: what it takes of the budget; 0 for one in a file.
    """

    id: int
    scope: str
    tokens: tuple[int, ...]
    size_bytes: int


class SavedStates:
    """The states of one model.

    Attributes:
        budget_bytes: most that states in memory may take together.
        used_bytes: what they take.
        pinned: this one gives way to none; it is about to be restored.
    """

    def __init__(self, budget_bytes: int = 0) -> None:
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self.pinned: int | None = None
        self._states: dict[int, Saved] = {}  # the longest unused first
        self._trees: dict[str, PrefixTree[int]] = {}
        self._last = 0

    def __len__(self) -> int:
        """How many states there are."""
        return len(self._states)

    @property
    def all(self) -> tuple[Saved, ...]:
        """Every state, the longest unused first."""
        return tuple(self._states.values())

    def find(self, scope: str, wanted: Sequence[int], *, whole: bool) -> tuple[Saved | None, int]:
        """The state that begins most like a prompt, and how much of it.

        ``whole``: only states of which all tokens are wanted.
        """
        tree = self._trees.get(scope, PrefixTree[int]())
        for length, owners in tree.matches(wanted):
            for owner in sorted(owners):
                if not whole or length == tree.length(owner):
                    return self._states[owner], length
        return None, 0

    def put(
        self, scope: str, tokens: tuple[int, ...], measure: Callable[[], int], *, whole: bool
    ) -> tuple[Saved | None, tuple[int, ...]]:
        """Make room for a state; returns it and the ids of those that gave way.

        ``None``, and nothing changes, if it is there already or does not fit. With ``whole``
        a longer state does not stand for a shorter one.
        """
        known, length = self.find(scope, tokens, whole=whole)
        if known is not None and length == len(tokens):
            self.touch(known.id)
            return None, ()
        size = measure() if self.budget_bytes else 0
        gone = [] if whole else [one.id for one in self._prefixes(scope, tokens)]
        free = self.budget_bytes - self.used_bytes
        free += sum(self._states[one].size_bytes for one in gone)
        for one in self._states.values():
            if free >= size:
                break
            if one.size_bytes and one.id not in gone and one.id != self.pinned:
                gone.append(one.id)
                free += one.size_bytes
        if not 0 < size <= free:
            return None, ()
        for each in gone:
            self.remove(each)
        return self._add(scope, tokens, size), tuple(gone)

    def recall(self, scope: str, tokens: tuple[int, ...]) -> Saved:
        """Note a state that is in a file."""
        return self._add(scope, tokens, 0)

    def touch(self, state: int) -> None:
        """Note that a state was used."""
        if (saved := self._states.pop(state, None)) is not None:
            self._states[state] = saved

    def remove(self, state: int) -> None:
        """Forget a state, if it is known."""
        saved = self._states.pop(state, None)
        if saved is None:
            return
        self.used_bytes -= saved.size_bytes
        tree = self._trees[saved.scope]
        tree.remove(state)
        if not len(tree):
            del self._trees[saved.scope]

    def _add(self, scope: str, tokens: tuple[int, ...], size_bytes: int) -> Saved:
        self._last += 1
        saved = Saved(self._last, scope, tokens, size_bytes)
        self._states[saved.id] = saved
        self._trees.setdefault(scope, PrefixTree()).put(saved.id, tokens)
        self.used_bytes += size_bytes
        return saved

    def _prefixes(self, scope: str, tokens: tuple[int, ...]) -> list[Saved]:
        """States in memory that a longer one of these tokens stands for."""
        tree = self._trees.get(scope, PrefixTree[int]())
        return [
            self._states[owner]
            for length, owners in tree.matches(tokens)
            for owner in owners
            if length == tree.length(owner)
            and self._states[owner].size_bytes
            and owner != self.pinned
        ]
