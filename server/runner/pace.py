"""How much prefill a step may carry, from how fast this machine has been. Pure.

A step is taken to last a base, which does not depend on how many rows (tokens) it has, and a time
per row. Rows of prefill and of decoding cost about the same; what streams wait for is the step.
"""

from __future__ import annotations

SHARED_STEP_S = 0.08
"""Aim for a step while others decode. Why: their tokens stay fluent, and a cancelled request is
gone within 100 ms even where a running step cannot be aborted."""

ALONE_STEP_S = 1.0
"""Aim for a step while nobody decodes: it is how long a new request may wait for its turn."""

TILE_ROWS = 64
"""Steps with prefill have a multiple of this many rows. Why: from 64 rows on the engine's CPU
attention works in tiles. 64 rows behind 1,024 cells take half as long as 63, and rows beyond a
whole tile cost as much as without one. Source: GGML_FA_TILE_Q in ggml-cpu."""

LONGEST_TILE_S = 2.0
"""A tile that takes longer is not waited for. Why: twice `ALONE_STEP_S`, so that a machine busy
with other work does not fall back to steps that cost more."""

LEAST_TOKENS = 32
"""Prefill goes on at least this fast where tiles take too long. Why: below it a step costs nearly
as much as at it."""

PREFILL_TOKENS = 16
"""Steps with at least so much prefill tell the time per row; those with none tell the base."""

_WEIGHT = 0.3
"""Of the newest measurement, in the moving averages."""


class Pace:
    """Moving averages of how long steps take."""

    def __init__(self, batch_tokens: int, prefill_rate: float, *, apart: bool = False) -> None:
        """Begin with the batch size and a first measurement, in tokens per second.

        ``apart``: prefill and decoding requests take turns, see `server.runner.composing`; the
        aim is then for two steps, and the tile is one of prefill.
        """
        self._batch = batch_tokens
        self._apart = apart
        self._rate = prefill_rate
        self._base_s = 0.0

    def budget(self, decoding: int) -> int:
        """Prefill tokens for the next step, beside ``decoding`` rows of one token each."""
        aim_s = SHARED_STEP_S if decoding else ALONE_STEP_S
        rows = int(max(aim_s - self._base_s, 0.0) * self._rate)
        if self._apart and self._rate * LONGEST_TILE_S >= TILE_ROWS:
            rows = min(max(rows - decoding, 0), self._batch)
            return max(rows - rows % TILE_ROWS, min(TILE_ROWS, self._batch))
        if self._rate * LONGEST_TILE_S >= TILE_ROWS:
            least = (decoding // TILE_ROWS + 1) * TILE_ROWS
            rows = max(rows - rows % TILE_ROWS, least)
        else:
            rows = max(rows, decoding + LEAST_TOKENS)
        return max(min(rows, self._batch) - decoding, 1)

    def ratio(self, decoding: int, made_s: float = 0.0) -> float:
        """What one more row costs of what it saves, if it spares a decoding row in a later step.

        The base of a step is shared by all who decode; 1 as long as it is not known.
        ``made_s`` is what it takes to know which row.
        """
        row_s = 1 / self._rate
        return (row_s + made_s) / (self._base_s / max(decoding, 1) + row_s)

    def expect(self, decoding: int, prefill: int) -> float:
        """Seconds the next step will take, as far as is known."""
        return self._base_s + (decoding + prefill) / self._rate

    def measure(self, decoding: int, prefill: int, seconds: float) -> None:
        """Note how long a step took."""
        if seconds <= 0:
            return
        rows = decoding + prefill
        if prefill >= PREFILL_TOKENS:
            # At least half counts as the rows' share, however wrong the base is by now.
            self._rate = _blend(self._rate, rows / max(seconds - self._base_s, seconds / 2))
        elif not prefill:
            self._base_s = _blend(self._base_s, max(seconds - rows / self._rate, 0.0))


def _blend(average: float, value: float) -> float:
    return average + _WEIGHT * (value - average)
