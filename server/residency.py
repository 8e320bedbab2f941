"""What is in memory, who uses it, and what must happen next. Pure: no clock, I/O or threads.

The shell reports events, each with the time; every event returns effects for it to carry out.

Rules:
 * what is loaded, loading or leaving never exceeds a pool's budget;
 * a model in use is never told to leave, a pinned one only when an operator stops it;
 * a request to a loaded model that will do is granted at once, whatever else waits;
 * a waiting request holds the memory it waits for: later ones may load only what it leaves over;
 * idle models make room, the cheapest first; busy ones only after the request has waited
   ``patience_s``: then they take no new requests until they have made room;
 * a model that has just been loaded first serves everyone who waited for it;
 * a value the request leaves open never reloads a model; a larger context will do.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from hwprobe.placement import Wish
from hwprobe.quantity import Bytes
from hwprobe.settings import EngineSettings
from server.residents import (
    MODELS,
    Choice,
    Effect,
    Grant,
    Ledger,
    Load,
    LoadId,
    Phase,
    Reason,
    Refuse,
    Request,
    Resident,
    Ticket,
    Unload,
    add,
    cheapest,
    covers,
    suits,
)

__all__ = [
    "Choice",
    "Effect",
    "Grant",
    "Load",
    "LoadId",
    "Phase",
    "Reason",
    "Refuse",
    "Request",
    "Residency",
    "Resident",
    "Ticket",
    "Unload",
]

BUSY_TEXT = "server busy, please try again.  maximum pending requests exceeded"
"""Ollama's text, with its two spaces."""
STOPPING_TEXT = "server is stopping"


@dataclass(slots=True, kw_only=True)
class _Waiting:
    request: Request
    arrived_s: float
    victims: tuple[LoadId, ...] = ()  # busy models chosen to make room, kept while they do
    claims_s: float | None = None  # when it will claim them


class Residency:
    """The state machine. Not thread-safe; times are seconds of one monotonic clock."""

    def __init__(
        self,
        *,
        budgets: Mapping[str, int],
        max_loaded_models: int = 0,
        max_queue: int = 512,
        patience_s: float = 5.0,
    ) -> None:
        """Start empty.

        Args:
            budgets: bytes per pool that models may take.
            max_loaded_models: 0 means as many as fit.
            max_queue: most requests that wait; at least 1.
            patience_s: how long a request waits before busy models must make room for it, and
                how long a model may serve before it must. Shorter is fairer, longer loads less.
        """
        self._budgets = {**budgets, MODELS: max_loaded_models or sys.maxsize}
        self._max_queue = max_queue
        self._patience_s = patience_s
        self._residents: dict[LoadId, Resident] = {}
        self._queue: dict[Ticket, _Waiting] = {}  # in order of arrival
        self._granted: dict[Ticket, LoadId] = {}
        self._draining = False
        self._last_load_id = 0

    @property
    def residents(self) -> tuple[Resident, ...]:
        """All models that take memory, oldest first."""
        return tuple(self._residents.values())

    @property
    def waiting(self) -> tuple[Ticket, ...]:
        """Requests that are neither granted nor refused, in order of arrival."""
        return tuple(self._queue)

    def taken(self, *, besides: str, pinned_only: bool = False) -> dict[str, int]:
        """Bytes per pool that models other than ``besides`` hold and will keep holding."""
        total: dict[str, int] = {}
        for resident in self._residents.values():
            if resident.request.key == besides or resident.phase is Phase.UNLOADING:
                continue
            if not (pinned_only and resident.may_be_evicted):
                add(total, resident.need, 1)
        total.pop(MODELS, None)
        return total

    def needs_plan(self, key: str, wish: Wish) -> bool:
        """Whether a request must bring choices: no model will do, and there is room to wait."""
        if self._draining or len(self._queue) >= self._max_queue:
            return False
        own = self._find(key)
        if own is None or not (own.open or own.phase is Phase.LOADING):
            return True
        return not suits(own, Request(ticket=Ticket(0), key=key, wish=wish))

    def next_deadline(self) -> float | None:
        """When `tick` will have something to do, if nothing happens before."""
        times = [resident.expires_s for resident in self._residents.values()]
        times += [waiting.claims_s for waiting in self._queue.values()]
        return min((time_s for time_s in times if time_s is not None), default=None)

    def request(self, now: float, request: Request) -> list[Effect]:
        """A request has come: it is granted, refused, or waits."""
        assert request.ticket not in self._queue
        assert request.ticket not in self._granted
        own = self._find(request.key)
        if self._draining:
            return [_refuse(request, Reason.STOPPING, STOPPING_TEXT)]
        if own is not None and own.open and suits(own, request):
            return [self._grant(own, request), *self._advance(now)]
        if len(self._queue) >= self._max_queue:
            return [_refuse(request, Reason.BUSY, BUSY_TEXT)]
        assert request.choices or not self.needs_plan(request.key, request.wish)
        self._queue[request.ticket] = _Waiting(request=request, arrived_s=now)
        return self._advance(now)

    def loaded(self, now: float, load_id: LoadId) -> list[Effect]:
        """A `Load` has succeeded: everyone who waited for it gets it."""
        resident = self._residents.get(load_id)
        if resident is None or resident.phase is not Phase.LOADING:
            return []
        resident.phase = Phase.READY
        resident.ready_s = resident.idle_since_s = now
        effects: list[Effect] = [
            self._grant(resident, request) for request in self._waiting_for(resident)
        ]
        return effects + self._advance(now)

    def resized(
        self, load_id: LoadId, settings: EngineSettings, need_bytes: Mapping[str, int]
    ) -> bool:
        """A model that is loading is to be loaded smaller; false when that does not fit either.

        A pool may need more than before, as the host does when layers leave a GPU.
        """
        resident = self._residents.get(load_id)
        if resident is None or resident.phase is not Phase.LOADING:
            return False
        ledger = Ledger(self._budgets, self._residents.values())
        add(ledger.free, resident.need, 1)
        need = {**need_bytes, MODELS: 1}
        grows = {pool: size for pool, size in need.items() if size > resident.need.get(pool, 0)}
        if not covers(ledger.free, grows):
            return False
        resident.need, resident.settings = need, settings
        return True

    def measured(self, now: float, budgets: Mapping[str, int]) -> list[Effect]:
        """What models may take has been measured anew.

        Less than is taken already sends nobody away; nothing more is loaded until enough left.
        """
        self._budgets = {**self._budgets, **budgets}
        return self._advance(now)

    def load_failed(
        self,
        now: float,
        load_id: LoadId,
        message: str,
        reason: Reason = Reason.LOAD_FAILED,
        retry_after_s: float = 0.0,
    ) -> list[Effect]:
        """A `Load` has failed: everyone who waited for it is refused; the next one tries anew."""
        resident = self._residents.pop(load_id, None)
        if resident is None:
            return []
        effects: list[Effect] = []
        for request in self._waiting_for(resident):
            del self._queue[request.ticket]
            effects.append(
                Refuse(
                    ticket=request.ticket,
                    reason=reason,
                    message=message,
                    retry_after_s=retry_after_s,
                )
            )
        return effects + self._advance(now)

    def died(self, now: float, load_id: LoadId) -> list[Effect]:
        """A loaded model has crashed: its requests are over; its memory until `unloaded` is not."""
        resident = self._residents.get(load_id)
        if resident is None or resident.phase is not Phase.READY:
            return []
        for ticket in resident.in_flight:
            del self._granted[ticket]
        resident.in_flight.clear()
        resident.phase = Phase.UNLOADING
        return self._advance(now)

    def unloaded(self, now: float, load_id: LoadId) -> list[Effect]:
        """The memory of a model that was told to leave, or that died, is free."""
        resident = self._residents.get(load_id)
        if resident is None or resident.phase is not Phase.UNLOADING:
            return []
        del self._residents[load_id]
        return self._advance(now)

    def finished(self, now: float, ticket: Ticket) -> list[Effect]:
        """A request has ended, or its client has left: queued or granted makes no difference."""
        waiting = self._queue.pop(ticket, None)
        load_id = self._granted.pop(ticket, None)
        if load_id is not None:
            resident = self._residents[load_id]
            resident.in_flight.remove(ticket)
            resident.idle_since_s = now
        elif waiting is None:
            return []
        return self._advance(now)

    cancelled = finished

    def tick(self, now: float) -> list[Effect]:
        """Time has passed."""
        return self._advance(now)

    def stop_model(self, now: float, key: str) -> list[Effect]:
        """An operator wants a model gone: it takes no new requests and leaves once idle."""
        own = self._find(key)
        if own is None or own.phase is Phase.UNLOADING:
            return []
        own.stopping = True
        return self._advance(now)

    def drain(self, now: float) -> list[Effect]:
        """The server ends: refuse what waits and what comes, let finish what runs."""
        self._draining = True
        effects: list[Effect] = [
            _refuse(waiting.request, Reason.STOPPING, STOPPING_TEXT)
            for waiting in self._queue.values()
        ]
        self._queue.clear()
        for resident in self._residents.values():
            resident.stopping = True
        return effects + self._advance(now)

    # --- decisions --------------------------------------------------------------------------

    def _advance(self, now: float) -> list[Effect]:
        """Do all there is to do at this time; doing it again would add nothing."""
        effects: list[Effect] = []
        while step := self._walk(now):
            effects += step
        return effects

    def _walk(self, now: float) -> list[Effect]:
        """Let go what has expired, then look at every waiting request in order of arrival."""
        effects: list[Effect] = []
        for resident in self._residents.values():
            resident.claimed = False
            expired = resident.expires_s is not None and now >= resident.expires_s
            if resident.idle and (resident.stopping or expired):
                effects.append(_unload(resident))
        ledger = Ledger(self._budgets, self._residents.values())
        for waiting in [*self._queue.values()]:
            waiting.claims_s = None
            effects += self._serve(waiting, ledger, now)
        return effects

    def _serve(self, waiting: _Waiting, ledger: Ledger, now: float) -> list[Effect]:
        """Grant, refuse, or find a place for what this request waits for."""
        request = waiting.request
        own = self._find(request.key)
        if own is not None and suits(own, request):
            if own.open:
                return [self._grant(own, request)]
            if own.phase is Phase.LOADING:
                return []
        if request.key in ledger.keys:
            return []
        ledger.keys.add(request.key)
        lacks = [self._lacks(choice, own) for choice in request.choices]
        if all(lacks):
            del self._queue[request.ticket]
            return [_refuse(request, Reason.DOES_NOT_FIT, lacks[-1])]
        return self._find_place(waiting, ledger, now)

    def _find_place(self, waiting: _Waiting, ledger: Ledger, now: float) -> list[Effect]:
        """Load, or make room, or hold what will be free; the first choice that can be had."""
        for idle_only in (True, False):
            for choice in waiting.request.choices:
                victims = self._victims(waiting, choice, ledger, now, idle_only=idle_only)
                if victims is None:
                    continue
                if idle_only:
                    return self._make_room(waiting.request, choice, victims, ledger)
                ledger.claim(victims)
                ledger.promise(_need(choice), now=False)
                return self._claim(waiting, victims, now)
        return []

    def _victims(
        self, waiting: _Waiting, choice: Choice, ledger: Ledger, now: float, *, idle_only: bool
    ) -> tuple[Resident, ...] | None:
        """Who has to leave for this choice, or ``None`` when it cannot be had this way."""
        own = self._find(waiting.request.key)
        forced = []
        if own is not None and own.phase is not Phase.UNLOADING:
            forced = [own] if own.load_id not in ledger.claimed else []
        if idle_only and not all(victim.idle for victim in forced):
            return None
        candidates = [
            resident
            for resident in self._residents.values()
            if resident.may_be_evicted
            and resident is not own
            and resident.load_id not in ledger.claimed
            and (resident.idle or not idle_only)
        ]
        if not idle_only:  # do not let one model after another run empty
            kept = [r for r in candidates if r.load_id in waiting.victims]
            again = cheapest(
                room=ledger.later, need=_need(choice), forced=forced, candidates=kept, now=now
            )
            if again is not None:
                return again
        return cheapest(
            room=ledger.later, need=_need(choice), forced=forced, candidates=candidates, now=now
        )

    def _make_room(
        self, request: Request, choice: Choice, victims: tuple[Resident, ...], ledger: Ledger
    ) -> list[Effect]:
        """Let idle models go and hold their memory; load when there is nothing to wait for."""
        ledger.claim(victims)
        effects: list[Effect] = [_unload(victim) for victim in victims]
        gone = self._find(request.key) is None
        load_now = gone and not victims and covers(ledger.free, _need(choice))
        ledger.promise(_need(choice), now=load_now)
        if load_now:
            effects.append(self._load(request, choice))
        return effects

    def _claim(self, waiting: _Waiting, victims: tuple[Resident, ...], now: float) -> list[Effect]:
        """Wait for busy models; once the patience is over, they take no new requests."""
        waiting.victims = tuple(victim.load_id for victim in victims)
        if any(victim.phase is Phase.LOADING for victim in victims):
            return []  # it first serves who waits for it
        since_s = max(waiting.arrived_s, *(victim.ready_s for victim in victims))
        if now < since_s + self._patience_s:
            waiting.claims_s = since_s + self._patience_s
            return []
        for victim in victims:
            victim.claimed = True
        return [_unload(victim) for victim in victims if victim.idle]

    def _grant(self, resident: Resident, request: Request) -> Grant:
        self._queue.pop(request.ticket, None)
        self._granted[request.ticket] = resident.load_id
        resident.in_flight.add(request.ticket)
        resident.keep_alive_s = request.keep_alive_s
        return Grant(ticket=request.ticket, load_id=resident.load_id)

    def _load(self, request: Request, choice: Choice) -> Load:
        self._last_load_id += 1
        load_id = LoadId(self._last_load_id)
        self._residents[load_id] = Resident(
            load_id=load_id,
            request=request,
            settings=choice.settings,
            need=_need(choice),
            keep_alive_s=request.keep_alive_s,
        )
        return Load(load_id=load_id, request=request, choice=choice)

    def _find(self, key: str) -> Resident | None:
        return next((r for r in self._residents.values() if r.request.key == key), None)

    def _waiting_for(self, resident: Resident) -> list[Request]:
        return [
            waiting.request
            for waiting in self._queue.values()
            if waiting.request.key == resident.request.key and suits(resident, waiting.request)
        ]

    def _lacks(self, choice: Choice, own: Resident | None) -> str:
        """What a choice would lack even if all that may leave had left; empty if nothing."""
        room = dict(self._budgets)
        for resident in self._residents.values():
            pinned = resident.phase is not Phase.UNLOADING and not resident.may_be_evicted
            if pinned and resident is not own:
                add(room, resident.need, -1)
        for pool, amount in _need(choice).items():
            if amount > max(0, room.get(pool, 0)):
                if pool == MODELS:
                    return "loaded models: all places are taken by pinned models"
                have = Bytes(max(0, room.get(pool, 0)))
                return f"memory: expected at most {have} on {pool}, found {Bytes(amount)}"
        return ""


def _need(choice: Choice) -> dict[str, int]:
    return {**choice.need_bytes, MODELS: 1}


def _unload(resident: Resident) -> Unload:
    assert resident.idle
    resident.phase = Phase.UNLOADING
    return Unload(load_id=resident.load_id)


def _refuse(request: Request, reason: Reason, message: str) -> Refuse:
    return Refuse(ticket=request.ticket, reason=reason, message=message)
