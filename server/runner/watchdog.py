"""How long a runner may take, and whether it has taken longer. Pure: no clock of its own."""

from __future__ import annotations

from dataclasses import dataclass

STEPS_LATE = 20
"""A step may take so many times the usual one. Why: prefill steps take several times as long as
decode steps, and a machine that is short of memory or shared takes several times longer still."""

_WEIGHT = 0.2
"""Of the newest step, in the moving average."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerLimits:
    """How long a runner may take, in seconds.

    Attributes:
        load_s: without progress or output while loading. Default 5 min: a cold disk and a
            large model; the same as Ollama's.
        stall_s: without a step while requests are in flight, at least; `STEPS_LATE` usual steps
            if that is longer. Default 30 s.
        send_s: for one write to the child. Default 1 min: a child reads between two batches.
        call_s: for the answer to ``tokenize`` or ``detokenize``.
        term_s: from SIGTERM to SIGKILL when stopping.
    """

    load_s: float = 300.0
    stall_s: float = 30.0
    send_s: float = 60.0
    call_s: float = 60.0
    term_s: float = 1.0


class Watchdog:
    """Watches a runner's step counter. Not thread-safe.

    Time counts only while requests are in flight: a runner that has nothing to do makes no steps.
    A slow machine has slow steps, so what is late follows from what is usual there.

    Attributes:
        steps: the last value of the counter.
    """

    def __init__(self, *, stall_s: float) -> None:
        """``stall_s`` is the shortest silence that counts as a stall."""
        self.steps = 0
        self._stall_s = stall_s
        self._batch_s = 0.0
        self._step_s = 0.0
        self._since_s: float | None = None

    @property
    def limit_s(self) -> float:
        """How long the counter may stand still now."""
        return max(self._stall_s, STEPS_LATE * max(self._step_s, self._batch_s))

    def loaded(self, batch_s: float) -> None:
        """The runner is ready; it expects a full batch to take ``batch_s`` seconds."""
        self._batch_s = batch_s

    def busy(self, now_s: float) -> None:
        """A request was sent to a runner that had none."""
        self._since_s = now_s

    def idle(self) -> None:
        """The last request has ended."""
        self._since_s = None

    def step(self, now_s: float, steps: int) -> None:
        """A line came that says how far the counter is; progress is a higher value."""
        if steps <= self.steps:
            return
        if self._since_s is not None:
            took_s = (now_s - self._since_s) / (steps - self.steps)
            self._step_s = self._step_s + _WEIGHT * (took_s - self._step_s)
            self._since_s = now_s
        self.steps = steps

    def alive(self, now_s: float) -> None:
        """A request ended without a step: it was refused, or cancelled while it waited."""
        if self._since_s is not None:
            self._since_s = now_s

    def is_late(self, now_s: float) -> bool:
        """Whether the counter has stood still for too long."""
        return self._since_s is not None and now_s - self._since_s > self.limit_s
