"""Which requests and which loads are held back after crashes. Pure: no clock, I/O or threads.

Rules for requests, known by a mark that says nothing of their text:
 * who was alone in a crash that came from inside is held back; so is who was in two crashes;
 * whoever is answered to the end is innocent: its crashes are forgotten;
 * holding back ends by itself after ``hold_s``, a crash is forgotten after ``forget_s``.

Rules for loads, known by model and settings:
 * the third crash within ``window_s`` of the one before holds the next load back, each further one
   twice as long, up to ``most_s``;
 * after ``window_s`` without a crash the count begins anew.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable
from dataclasses import dataclass

MOST_MARKS = 4096
"""Requests remembered; the oldest are forgotten. Why: an entry is a few hundred bytes, and a crash
holds at most some dozens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantinePolicy:
    """Seconds and counts.

    Attributes:
        hold_s: how long a request is held back. Long enough that a client's retries run out.
        forget_s: how long a crash counts against those that were in it.
        crashes: in so many crashes, a request counts as their cause.
    """

    hold_s: float = 600.0
    forget_s: float = 3600.0
    crashes: int = 2


@dataclass(slots=True)
class _Suspect:
    crashes_s: list[float]
    held_until_s: float = 0.0


class Quarantine:
    """Requests that may be the cause of crashes. Not thread-safe; times are monotonic seconds."""

    def __init__(self, policy: QuarantinePolicy | None = None) -> None:
        self._policy = policy or QuarantinePolicy()
        self._suspects: dict[str, _Suspect] = {}  # the latest crash last

    def held_s(self, now: float, mark: str) -> float:
        """Seconds for which a request is still held back; 0 when it may run."""
        suspect = self._suspects.get(mark)
        return max(0.0, suspect.held_until_s - now) if suspect is not None else 0.0

    def is_suspect(self, now: float, mark: str) -> bool:
        """Whether a crash counts against it."""
        suspect = self._suspects.get(mark)
        return suspect is not None and any(self._counts(now, at) for at in suspect.crashes_s)

    def crashed(self, now: float, marks: Collection[str], *, inside: bool) -> tuple[str, ...]:
        """A runner died while these requests were in flight.

        Args:
            now: when.
            marks: of the requests; equal ones count once.
            inside: it was not ended by a signal from outside.

        Returns:
            Those that are held back from now on.
        """
        held = []
        different = sorted(set(marks))
        for mark in different:
            suspect = self._suspects.pop(mark, None) or _Suspect([])
            kept = [at for at in suspect.crashes_s if self._counts(now, at)]
            suspect.crashes_s = [*kept, now][-self._policy.crashes :]
            alone = inside and len(different) == 1
            if alone or len(suspect.crashes_s) >= self._policy.crashes:
                suspect.held_until_s = now + self._policy.hold_s
                held.append(mark)
            self._suspects[mark] = suspect
        while len(self._suspects) > MOST_MARKS:
            del self._suspects[next(iter(self._suspects))]
        return tuple(held)

    def answered(self, mark: str) -> None:
        """A request was answered to its end."""
        self._suspects.pop(mark, None)

    def _counts(self, now: float, at: float) -> bool:
        return now - at < self._policy.forget_s


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerPolicy:
    """Seconds and counts.

    Attributes:
        tolerated: crashes in a row after which the next load goes on at once.
        window_s: crashes further apart than this are no row.
        first_s: how long the first load is held back.
        most_s: how long one is held back at most.
    """

    tolerated: int = 2
    window_s: float = 600.0
    first_s: float = 10.0
    most_s: float = 600.0


class Breaker:
    """Loads that crash again and again. Not thread-safe; times are monotonic seconds."""

    def __init__(self, policy: BreakerPolicy | None = None) -> None:
        self._policy = policy or BreakerPolicy()
        self._rows: dict[Hashable, tuple[int, float]] = {}  # crashes in a row, time of the last

    def crashed(self, now: float, load: Hashable) -> float:
        """A runner of this load died; returns for how long the next one is held back."""
        row, last_s = self._rows.pop(load, (0, now))
        row = 1 if now - last_s >= self._policy.window_s + self._hold_s(row) else row + 1
        self._rows[load] = (row, now)
        while len(self._rows) > MOST_MARKS:
            del self._rows[next(iter(self._rows))]
        return self._hold_s(row)

    def held_s(self, now: float, load: Hashable) -> float:
        """Seconds for which a load is still held back; 0 when it may start."""
        row, last_s = self._rows.get(load, (0, now))
        return max(0.0, last_s + self._hold_s(row) - now)

    def _hold_s(self, row: int) -> float:
        beyond = row - self._policy.tolerated
        if beyond < 1:
            return 0.0
        return min(self._policy.first_s * 2.0 ** min(beyond - 1, 30), self._policy.most_s)
