"""When a request has to be over. A value with a clock in it, so that everybody asks the same."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadline:
    """The end of a request's time.

    Attributes:
        limit_s: how long it was given; infinite without a deadline.
        end_s: when that is over, on the clock of ``now_s``.
        now_s: monotonic seconds.
    """

    limit_s: float = math.inf
    end_s: float = math.inf
    now_s: Callable[[], float] = time.monotonic

    @classmethod
    def after(
        cls, begun_s: float, limits_s: tuple[float | None, ...], now_s: Callable[[], float]
    ) -> Deadline:
        """The earliest of some limits, counted from ``begun_s``; ``None`` and 0 are no limit."""
        limit_s = min((limit for limit in limits_s if limit), default=math.inf)
        return cls(limit_s=limit_s, end_s=begun_s + limit_s, now_s=now_s)

    @property
    def passed(self) -> bool:
        """Whether the time is over."""
        return self.now_s() >= self.end_s

    def within(self, seconds: float) -> float:
        """``seconds``, or what is left of the time if that is less."""
        return max(0.0, min(seconds, self.end_s - self.now_s()))


NEVER = Deadline()
