"""What the I/O thread hands to the decode thread, and how it interrupts a running decode."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from server.runner.embedding import Job
from server.runner.gate import Gate
from server.runner.turns import Scales
from server.runner.work import Work
from server.wishes import SamplingOptions

if TYPE_CHECKING:  # they load the engine
    from server.runner.chain import Dry
    from server.runner.sight import Picture

PATIENCE_S = 0.06
"""A decode that ends sooner is not interrupted for one of several requests: the others would
lose what it has computed. Why: with it, a cancel takes effect within 100 ms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A request that is ready to run: checked, tokenized, its grammar parsed.

    Attributes:
        relaxed: what of its schema the grammar does not enforce.
        adapters: the scale of each adapter.
        pictures: those its prompt has places for, by their keys.
        dry: the sampler against repeated sequences, where it is wanted.
    """

    work: Work
    sampling: SamplingOptions
    top_logprobs: int | None
    gate: Gate | None
    relaxed: tuple[str, ...] = ()
    adapters: Scales = ()
    pictures: Mapping[int, Picture] = field(default_factory=dict)
    dry: Dry | None = None


@dataclass(frozen=True, slots=True)
class Cancelled:
    """A request that is to end now."""

    id: int


Item = Arrival | Job | Cancelled


class Inbox:
    """A queue with one reader, the decode thread, that also knows what that thread computes."""

    def __init__(
        self,
        abort: Callable[[], None],
        rearm: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        *,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """``abort`` stops a running decode; ``rearm`` takes that back.

        ``patience_s`` is infinite where an abort costs the others more than a step.
        """
        self._abort = abort
        self._rearm = rearm
        self._clock = clock
        self._patience_s = patience_s
        self._changed = threading.Condition()
        self._items: list[Item] = []
        self._cancelled: set[int] = set()
        self._running: AbstractSet[int] = frozenset()
        self._until_s = 0.0
        self._closed = False

    def put(self, arrival: Arrival | Job) -> None:
        """Queue a request."""
        with self._changed:
            self._items.append(arrival)
            self._changed.notify()

    def cancel(self, request: int) -> None:
        """Queue the end of a request; stop the running decode if that is worth it."""
        with self._changed:
            self._items.append(Cancelled(request))
            self._cancelled.add(request)
            if request in self._running:
                rest_s = self._until_s - self._clock()
                if self._running <= self._cancelled or rest_s > self._patience_s:
                    self._abort()
            self._changed.notify()

    def close(self) -> None:
        """Nothing comes any more; the decode thread is to end."""
        with self._changed:
            self._closed = True
            self._abort()
            self._changed.notify()

    def take(self, *, wait: bool) -> list[Item] | None:
        """All that is queued, in order; ``None`` once closed. ``wait`` for something to come."""
        with self._changed:
            while wait and not self._items and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            items, self._items = self._items, []
            self._cancelled.clear()
            return items

    def begin(self, requests: AbstractSet[int], expected_s: float) -> bool:
        """Announce a decode; False if a cancel or the end came in the meantime."""
        with self._changed:
            if self._closed or requests & self._cancelled:
                return False
            self._rearm()
            self._running = requests
            self._until_s = self._clock() + expected_s
            return True

    def end(self) -> None:
        """The decode is over."""
        with self._changed:
            self._running = frozenset()
