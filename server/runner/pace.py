"""How much prefill a step may carry, from how fast this machine has been. Pure."""

from __future__ import annotations

SHARED_STEP_S = 0.08
"""Aim for a step while several requests run. Why: others' tokens stay fluent, and a cancelled
request is gone within 100 ms even where a running step cannot be aborted."""

ALONE_STEP_S = 1.0
"""Aim for a step while one request runs: it is how long a new one may wait for its turn."""

LEAST_TOKENS = 32
"""Prefill goes on at least this fast. Why: below it a step costs nearly as much as at it."""

PREFILL_TOKENS = 16
"""Steps from this size on tell the prefill rate; smaller ones are decoding."""

_WEIGHT = 0.3
"""Of the newest measurement, in the moving averages."""


class Pace:
    """Moving averages of how long steps take."""

    def __init__(self, batch_tokens: int, prefill_rate: float) -> None:
        """Begin with the batch size and a first measurement, in tokens per second."""
        self._batch = batch_tokens
        self._rate = prefill_rate
        self._decode_s = 0.0

    def budget(self, active: int) -> int:
        """Prefill tokens for the next step, with ``active`` requests running."""
        aim_s = ALONE_STEP_S if active <= 1 else SHARED_STEP_S
        return min(max(int(aim_s * self._rate), LEAST_TOKENS), self._batch)

    def expect(self, tokens: int) -> float:
        """Seconds the next step will take, as far as is known."""
        if tokens < PREFILL_TOKENS:
            return self._decode_s
        return tokens / self._rate

    def measure(self, tokens: int, seconds: float) -> None:
        """Note how long a step took."""
        if tokens < PREFILL_TOKENS:
            self._decode_s = _blend(self._decode_s, seconds)
        elif seconds > 0:
            self._rate = _blend(self._rate, tokens / seconds)


def _blend(average: float, value: float) -> float:
    return average + _WEIGHT * (value - average)
