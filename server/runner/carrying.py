"""Batching's effects, carried out on the engine's cache, in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from server.runner.batching import Batching
from server.runner.keeping import keep
from server.runner.shelf import Shelf
from server.runner.states import Sequences, States
from server.runner.work import Discard, Drop, Effect, Restore, Save, Share, Slide


class Cache(Sequences, Protocol):
    """What of the engine is needed here; see `server.runner.library.Engine`."""

    def remove(self, sequence: int, start: int, /) -> bool:
        """Forget positions from ``start`` on; False if the model cannot."""

    def share(self, source: int, target: int, end: int, /) -> None:
        """Let ``target`` have the first ``end`` positions of ``source``."""

    def slide(self, sequence: int, start: int, end: int, /) -> None:
        """Forget positions ``start`` to ``end`` and close the gap."""


class Carrier:
    """Brings the cache, and the states outside it, to where batching believes them to be."""

    def __init__(
        self,
        cache: Cache,
        batching: Batching,
        mirror: Callable[[Effect], None] = lambda _effect: None,
        *,
        shelf: Shelf | None = None,
    ) -> None:
        """Begin with an empty cache.

        Args:
            cache: the engine's.
            batching: is told what could not be kept or restored, and what the shelf has.
            mirror: gets every effect, for another cache with the same sequences.
            shelf: where states outlive the cache; nothing does without it.
        """
        self._mirror = mirror
        self._cache = cache
        self._batching = batching
        self._shelf = shelf
        self._states = States(cache, shelf)
        for entry in () if shelf is None else shelf.entries():
            saved = batching.saved.recall(entry.scope, entry.tokens)
            self._states.recall(saved.id, entry)

    def keep(self, until_s: float) -> None:
        """Put on the shelf what would be lost with the cache; begin no file after ``until_s``."""
        if self._shelf is not None:
            keep(self._shelf, self._batching, self._states, until_s=until_s)

    def apply(self, effects: Iterable[Effect]) -> None:
        """Carry effects out.

        Raises:
            RuntimeError: the cache cannot be cut where batching believed that it can.
        """
        for effect in effects:
            self._mirror(effect)
            match effect:
                case Drop(sequence, start):
                    if not self._cache.remove(sequence, start):
                        raise RuntimeError(f"sequence {sequence} cannot be cut at {start}")
                case Share(source, target, end):
                    self._cache.share(source, target, end)
                case Slide(sequence, start, end):
                    self._cache.slide(sequence, start, end)
                case _:
                    self._keep(effect)

    def _keep(self, effect: Save | Restore | Discard) -> None:
        """Move a state between the cache and what is outside it."""
        match effect:
            case Save(sequence, state, size_bytes):
                if not self._states.save(sequence, state, size_bytes):
                    self._batching.lose(state)
            case Restore(state, sequence, request):
                if not self._states.restore(state, sequence):
                    self.apply(self._batching.lose(state, request))
            case Discard(state):
                self._states.discard(state)
