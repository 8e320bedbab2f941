"""Requests bound to a grammar are prepared beside the I/O thread, each within a time.

A compilation cannot be stopped. One that takes too long is given up: its request is refused, its
thread goes on until the limits of the grammar end it, and another thread takes its place. While
`MOST_STUCK` threads are stuck, further requests wait, and are refused when their time is over.
A request that may be answered freely is then prepared without its grammar.
"""

from __future__ import annotations

import threading
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from server.errors import EngineRefusedError
from server.runner import protocol
from server.runner.inbox import Arrival

PREPARE_S = 5.0
"""Why: schemas take milliseconds, the first one of a large vocabulary two seconds more."""

MOST_STUCK = 2
"""Why: each takes processor time from the decode thread."""


@dataclass(slots=True, eq=False)
class _Job:
    command: protocol.Generate
    timer: threading.Timer | None = None
    started: bool = False
    given_up: bool = False


class Preparing:
    """Prepares one request after another. All methods may be called from any thread."""

    def __init__(
        self,
        prepare: Callable[[protocol.Generate], Arrival],
        *,
        accept: Callable[[Arrival], None],
        refuse: Callable[[int, str], None],
        limit_s: float = PREPARE_S,
    ) -> None:
        """``accept`` or ``refuse`` is called once for each request that is not cancelled."""
        self._prepare = prepare
        self._accept = accept
        self._refuse = refuse
        self._limit_s = limit_s
        self._changed = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._jobs: dict[int, _Job] = {}
        self._threads = 0
        self._stuck = 0

    def submit(self, command: protocol.Generate) -> None:
        """Prepare a request."""
        job = _Job(command)
        job.timer = threading.Timer(self._limit_s, self._expire, (job,))
        job.timer.daemon = True
        with self._changed:
            self._jobs[command.id] = job
            self._waiting.append(job)
            self._staff()
            self._changed.notify()
        job.timer.start()

    def cancel(self, request: int) -> bool:
        """Forget a request; False if it is not being prepared."""
        return self._take(request) is not None

    def _take(self, request: int, expected: _Job | None = None) -> _Job | None:
        """End a job: whoever gets it tells the outcome. An id may be in use again."""
        with self._changed:
            job = self._jobs.get(request)
            if job is None or (expected is not None and job is not expected):
                return None
            del self._jobs[request]
            if job.timer is not None:
                job.timer.cancel()
            if job in self._waiting:
                self._waiting.remove(job)
            return job

    def _expire(self, job: _Job) -> None:
        with self._changed:
            if self._take(job.command.id, job) is None:
                return
            if job.started:
                job.given_up = True
                self._stuck += 1
                self._staff()
            constraint = job.command.constraint
            if constraint is not None and constraint.optional:
                self.submit(replace(job.command, constraint=None))
                return
        self._refuse(job.command.id, "the grammar takes too long to compile")

    def _staff(self) -> None:
        """Have one thread that is not stuck, if there may be one more."""
        if self._threads - self._stuck < 1 and self._stuck < MOST_STUCK:
            self._threads += 1
            threading.Thread(target=self._work, name="prepare", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
                job = self._waiting.popleft()
                job.started = True
            if self._work_on(job):
                return

    def _work_on(self, job: _Job) -> bool:
        """Prepare one request; whether this thread was given up meanwhile."""
        arrival, reason = None, ""
        try:
            arrival = self._prepare(job.command)
        except EngineRefusedError as refusal:
            reason = str(refusal)
        except Exception:  # noqa: BLE001 - the outermost edge of this thread
            traceback.print_exc()
            reason = "the request could not be prepared"
        if self._take(job.command.id, job) is not None:
            if arrival is not None:
                self._accept(arrival)
            else:
                self._refuse(job.command.id, reason)
        elif arrival is not None and arrival.gate is not None:
            arrival.gate.close()
        with self._changed:
            if job.given_up:
                self._stuck -= 1
                self._threads -= 1
                self._staff()
            return job.given_up
