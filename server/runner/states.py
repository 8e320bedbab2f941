"""The states that are kept outside the cache: their bytes. Which ones: `server.runner.saved`."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

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
    """States in memory, by the ids that batching gave them."""

    def __init__(self, engine: Sequences) -> None:
        """Begin without any."""
        self._engine = engine
        self._kept: dict[int, Bytes] = {}

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
        if source is not None and self._engine.load_state(sequence, source):
            return True
        self.discard(state)
        return False

    def discard(self, state: int) -> None:
        """Forget a state."""
        self._kept.pop(state, None)
