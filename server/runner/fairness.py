"""Shares for tenants, and order among the requests of one. Pure.

A tenant is whoever brings an API key; without keys there is one. Rules:
 * prefill is dealt out by deficit round robin: each tenant with prompts to compute gets a quantum
   in turn, and a turn that a step's end cuts short goes on in the next step;
 * a free slot goes to the tenant with the fewest running requests, among equals to the one that
   got a slot longest ago;
 * within a tenant the shortest prompt goes first; who waits counts as shorter with every step.

Source of deficit round robin: Shreedhar and Varghese, SIGCOMM 1995.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from server.runner.work import Work

AGING_TOKENS = 64
"""How much shorter a prefill counts for each step it waited. Why: next to a steady stream of
short prompts, a prompt of 4,096 tokens is served after at most 64 steps."""

QUANTUM_TOKENS = 64
"""What a tenant gets in a turn. Why: a tile, see `server.runner.pace.TILE_ROWS`."""

MOST_REMEMBERED = 1024
"""Tenants whose last turn is remembered; more of them are as if they had never had one."""


class DeficitRing:
    """Who is next for how many tokens."""

    def __init__(self, quantum_tokens: int = QUANTUM_TOKENS) -> None:
        self._quantum = quantum_tokens
        self._ring: deque[str] = deque()
        self._credit: dict[str, int] = {}
        self._in_turn = False

    def deal(self, wants: Mapping[str, int], room: int) -> dict[str, int]:
        """Deal ``room`` tokens out among tenants who could use so many; none gets more than that.

        A tenant that wants nothing loses its place and its credit.
        """
        self._seat(wants)
        left = {tenant: want for tenant, want in wants.items() if want > 0}
        dealt = dict.fromkeys(left, 0)
        while room > 0 and left:
            tenant = self._ring[0]
            if tenant not in left:
                self._next()
                continue
            if not self._in_turn:
                self._credit[tenant] += self._quantum
                self._in_turn = True
            count = min(self._credit[tenant], left[tenant], room)
            self._credit[tenant] -= count
            left[tenant] -= count
            dealt[tenant] += count
            room -= count
            if not left[tenant]:
                del left[tenant]
                self._credit[tenant] = 0
            if not self._credit[tenant]:
                self._next()
        return dealt

    def _seat(self, wants: Mapping[str, int]) -> None:
        present = {tenant for tenant, want in wants.items() if want > 0}
        if self._ring and self._ring[0] not in present:
            self._in_turn = False
        self._ring = deque(tenant for tenant in self._ring if tenant in present)
        self._credit = {tenant: self._credit.get(tenant, 0) for tenant in present}
        known = set(self._ring)
        self._ring.extend(tenant for tenant in wants if tenant in present and tenant not in known)

    def _next(self) -> None:
        self._ring.rotate(-1)
        self._in_turn = False


@dataclass(frozen=True, slots=True)
class _Waiting:
    work: Work
    number: int
    since: int


class Line:
    """Requests that have not started."""

    def __init__(self) -> None:
        self._queues: dict[str, list[_Waiting]] = {}
        self._served: dict[str, int] = {}
        self._number = 0
        self._round = 0
        self._turn = 0

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def __iter__(self) -> Iterator[Work]:
        """All that wait, in the order they came."""
        waiting = [one for queue in self._queues.values() for one in queue]
        return iter([one.work for one in sorted(waiting, key=lambda one: one.number)])

    def put(self, work: Work) -> None:
        """Queue a request."""
        self._number += 1
        queue = self._queues.setdefault(work.tenant, [])
        queue.append(_Waiting(work, self._number, self._round))

    def remove(self, request: int) -> None:
        """Forget a request, if it waits."""
        for tenant, queue in self._queues.items():
            queue[:] = [one for one in queue if one.work.id != request]
            if not queue:
                del self._queues[tenant]
                return

    def pass_step(self) -> None:
        """Note that everybody has waited for another step."""
        self._round += 1

    def first(self, running: Mapping[str, int]) -> Work | None:
        """Who gets the next slot, when tenants have so many requests running; ``None`` if nobody.

        The same until something changes: who does not fit yet is not overtaken by who would.
        """
        if not self._queues:
            return None
        tenant = min(
            self._queues,
            key=lambda one: (running.get(one, 0), self._served.get(one, 0)),
        )
        best = min(
            self._queues[tenant],
            key=lambda one: (
                len(one.work.prompt) - AGING_TOKENS * (self._round - one.since),
                one.number,
            ),
        )
        return best.work

    def take(self, work: Work) -> None:
        """Let a request go on to its slot."""
        self._turn += 1
        self.remove(work.id)
        self._served[work.tenant] = self._turn
        if len(self._served) > MOST_REMEMBERED:
            del self._served[min(self._served, key=self._served.__getitem__)]
