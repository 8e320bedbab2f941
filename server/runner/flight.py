"""What the server waits for from one child: streams, calls, and the next step of its counter.

One lock guards all of it, with how the child ended: once that is known nothing is added any more,
so nothing waits for an answer that cannot come.
"""

from __future__ import annotations

import itertools
import queue
import threading
from typing import TYPE_CHECKING

from server.errors import RunnerCrashedError
from server.runner import protocol
from server.runner.watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.runner.stream import Stream

STOPPED = "the model's runner has been stopped"

Inbox = queue.SimpleQueue[protocol.Tokens | protocol.Text | RunnerCrashedError]
"""Where the answer to one call arrives."""


class Flight:
    """The requests and calls in flight, from birth to burial. All methods are thread-safe."""

    def __init__(self, *, stall_s: float) -> None:
        """``stall_s`` is the shortest silence of the step counter that counts as a stall."""
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._streams: dict[int, Stream] = {}
        self._calls: dict[int, Inbox] = {}
        self._epitaph: str | None = None
        self._on_crash: Callable[[RunnerCrashedError], None] | None = None
        self._stopping = False
        self._crowded: set[int] = set()  # requests that have not been alone all the time
        self._on_alone: Callable[[protocol.Row], None] | None = None
        self._watchdog = Watchdog(stall_s=stall_s)

    @property
    def open(self) -> bool:
        """Whether the child takes requests: it has neither died nor been stopped."""
        return self._epitaph is None and not self._stopping

    @property
    def stopping(self) -> bool:
        """Whether the child was told to end."""
        return self._stopping

    @property
    def epitaph(self) -> str | None:
        """How the child ended; ``None`` while it lives."""
        return self._epitaph

    @property
    def steps(self) -> int:
        """The last value of the child's step counter."""
        return self._watchdog.steps

    @property
    def requests(self) -> tuple[int, ...]:
        """The requests in flight, in the order they were made."""
        with self._lock:
            return tuple(sorted(self._streams))

    def new_id(self) -> int:
        """A number no other request or call of this child has."""
        return next(self._ids)

    def crash(self) -> RunnerCrashedError:
        """What whoever comes too late is told."""
        return RunnerCrashedError(self._epitaph or STOPPED)

    def on_crash(self, tell: Callable[[RunnerCrashedError], None]) -> None:
        """Have ``tell`` called once when the child dies unasked; at once if it already has."""
        with self._lock:
            if self._epitaph is None:
                self._on_crash = tell
                return
        if not self._stopping:
            tell(self.crash())

    def on_alone(self, tell: Callable[[protocol.Row], None]) -> None:
        """Have ``tell`` called with the last row of requests that shared the child with none."""
        with self._lock:
            self._on_alone = tell

    def add_stream(self, request: int, stream: Stream, now_s: float) -> None:
        """Expect rows for a request.

        Raises:
            RunnerCrashedError: the child is dead, or told to end.
        """
        with self._lock:
            self._refuse_dead()
            if not self._streams:
                self._watchdog.busy(now_s)
            else:
                self._crowded |= {request, *self._streams}
            self._streams[request] = stream

    def has(self, request: int) -> bool:
        """Whether rows of a request are still expected."""
        with self._lock:
            return request in self._streams

    def add_call(self, call: int) -> Inbox:
        """Expect the answer to a call.

        Raises:
            RunnerCrashedError: the child is dead, or told to end.
        """
        inbox: Inbox = queue.SimpleQueue()
        with self._lock:
            self._refuse_dead()
            self._calls[call] = inbox
        return inbox

    def end_call(self, call: int) -> None:
        """The answer has come, or is not waited for any more."""
        with self._lock:
            self._calls.pop(call, None)

    def loaded(self, batch_s: float) -> None:
        """The child is ready; it expects a full batch to take ``batch_s`` seconds."""
        with self._lock:
            self._watchdog.loaded(batch_s)

    def late(self, now_s: float) -> float | None:
        """How long the step counter may stand still, if it has stood still for longer."""
        with self._lock:
            return self._watchdog.limit_s if self._watchdog.is_late(now_s) else None

    def step(self, step: protocol.Step, now_s: float) -> None:
        """Hand the rows of a step to their streams.

        Raises:
            RunnerCrashedError: a row is for nobody there could be.
        """
        with self._lock:
            self._watchdog.step(now_s, step.n)
        for row in step.rows:
            self._deliver(row, now_s)

    def answer(self, event: protocol.Tokens | protocol.Text) -> None:
        """Hand an answer to its call, unless the caller has given up.

        Raises:
            RunnerCrashedError: it is for nobody there could be.
        """
        with self._lock:
            inbox = self._calls.get(_checked_id(event.id))
        if inbox is not None:
            inbox.put(event)

    def stop(self) -> None:
        """The child is told to end: nothing is added from now on."""
        with self._lock:
            self._stopping = True

    def seal(self, obituary: str) -> str:
        """Note how the child ended, unless it was told to; returns what stands from now on."""
        with self._lock:
            self._epitaph = STOPPED if self._stopping else obituary
            if self._stopping:
                self._on_crash = None
            return self._epitaph

    def land(self) -> None:
        """Tell whoever asked, then every stream and call; after `seal`."""
        with self._lock:
            streams, self._streams = self._streams, {}
            calls, self._calls = self._calls, {}
            tell, self._on_crash = self._on_crash, None
        if tell is not None:  # first, so that whoever tries again gets another runner
            tell(self.crash())
        for stream in streams.values():
            stream.put(self.crash())
        for inbox in calls.values():
            inbox.put(self.crash())

    def _deliver(self, row: protocol.Row, now_s: float) -> None:
        request = _checked_id(row.id)
        with self._lock:
            stream = self._streams.get(request)
            alone = None
            if row.done is not None or row.fault is not None:
                self._streams.pop(request, None)
                alone = None if request in self._crowded else self._on_alone
                self._crowded.discard(request)
                if self._streams:
                    self._watchdog.alive(now_s)
                else:
                    self._watchdog.idle()
        if stream is not None:
            if alone is not None and row.done is not None:
                alone(row)
            stream.put(row)

    def _refuse_dead(self) -> None:
        if not self.open:
            raise self.crash()


def _checked_id(value: object) -> int:
    if type(value) is not int:
        raise RunnerCrashedError(f"id: expected an integer, found {value!r:.40}")
    return value
