"""The states that are kept outside the cache: their bytes. Which ones: `server.runner.saved`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from server.runner.shelf import Entry, Shelf

Bytes = npt.NDArray[np.uint8]


class Sequences(Protocol):
    """What of the engine is needed here; see `server.runner.library.Engine`."""

    def state_bytes(self, sequence: int, /) -> int:
        """Bytes of a sequence's state."""

    def save_state(self, sequence: int, target: Bytes, /) -> bool:
        """Write it."""

    def load_state(self, sequence: int, source: Bytes, /) -> bool:
        """Fill an empty sequence."""


class States:
    """States in memory and in files, by the ids that batching gave them."""

    def __init__(self, engine: Sequences, shelf: Shelf | None = None) -> None:
        """Begin without any; files are read from ``shelf``."""
        self._engine = engine
        self._shelf = shelf
        self._kept: dict[int, Bytes] = {}
        self._files: dict[int, Entry] = {}

    def recall(self, state: int, entry: Entry) -> None:
        """Note which file a state is in."""
        self._files[state] = entry

    def size(self, sequence: int) -> int:
        """Bytes of a sequence's state."""
        return self._engine.state_bytes(sequence)

    def writer(self, sequence: int) -> Callable[[Bytes], bool]:
        """What writes a sequence's state."""
        return lambda target: self._engine.save_state(sequence, target)

    def copier(self, state: int) -> Callable[[Bytes], bool]:
        """What writes a state that is in memory."""

        def copy(target: Bytes) -> bool:
            source = self._kept.get(state)
            if source is None or source.size != target.size:
                return False
            target[:] = source
            return True

        return copy

    def save(self, sequence: int, state: int, size_bytes: int) -> bool:
        """Keep what a sequence holds; False if it takes another size, or memory is short."""
        if self._engine.state_bytes(sequence) != size_bytes:
            return False
        try:
            target = np.empty(size_bytes, np.uint8)
        except MemoryError:
            return False
        if not self._engine.save_state(sequence, target):
            return False
        self._kept[state] = target
        return True

    def restore(self, state: int, sequence: int) -> bool:
        """Fill an empty sequence; False leaves it empty, and the state is gone."""
        source = self._kept.get(state)
        entry = self._files.get(state)
        if source is None and entry is not None and self._shelf is not None:
            source = self._shelf.read(entry)
        if source is not None and self._engine.load_state(sequence, source):
            return True
        if source is not None and entry is not None and self._shelf is not None:
            self._shelf.remove(entry)  # the engine does not take it: it never will
        self.discard(state)
        return False

    def discard(self, state: int) -> None:
        """Forget a state; a file stays."""
        self._kept.pop(state, None)
        self._files.pop(state, None)
