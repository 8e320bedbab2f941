"""The words `server.residency` thinks in, and its arithmetic: who makes room at least cost. Pure.

A `Resident` is changed by `Residency` alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NewType

from hwprobe.placement import Wish
from hwprobe.settings import EngineSettings

Ticket = NewType("Ticket", int)
LoadId = NewType("LoadId", int)

MODELS = "models"
"""The pool that counts models instead of bytes; every model needs one of it."""

COMPARED = ("num_ctx", "num_batch", "num_gpu", "threads", "use_mmap")
"""Settings a request may ask for. The others are the operator's, the same for all requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One way to load a model, and what it takes from each pool."""

    settings: EngineSettings
    need_bytes: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Somebody wants to use a model.

    Attributes:
        ticket: chosen by the shell, never used twice.
        key: which weights and adapters.
        wish: what it asks of the load.
        choices: ways to load it, the best first; may be empty unless `Residency.needs_plan`.
        keep_alive_s: seconds it stays once idle; negative means for ever. The latest request's
            value replaces earlier ones.
        pinned: never leaves to make room, nor by ``keep_alive_s``; its settings suit everyone.
    """

    ticket: Ticket
    key: str
    wish: Wish
    choices: tuple[Choice, ...] = ()
    keep_alive_s: float = 300.0
    pinned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Start loading; answer with `Residency.loaded` or `Residency.load_failed`."""

    load_id: LoadId
    request: Request
    choice: Choice


@dataclass(frozen=True, slots=True, kw_only=True)
class Unload:
    """End this model; answer with `Residency.unloaded` once its memory is free."""

    load_id: LoadId


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """The request may use this model; answer with `Residency.finished`."""

    ticket: Ticket
    load_id: LoadId


class Reason(Enum):
    """Why a request is refused."""

    BUSY = "busy"
    STOPPING = "stopping"
    DOES_NOT_FIT = "does not fit"
    LOAD_FAILED = "load failed"
    HELD_BACK = "held back"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """The request will not be served; ``retry_after_s`` seconds later it may be, if positive."""

    ticket: Ticket
    reason: Reason
    message: str
    retry_after_s: float = 0.0


Effect = Load | Unload | Grant | Refuse


class Phase(Enum):
    """Where a model stands between its `Load` and the end of its `Unload`."""

    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"


@dataclass(slots=True, kw_only=True)
class Resident:
    """A model that takes memory. To be read only outside this module.

    Attributes:
        request: the one it was loaded for.
        need: what it takes from each pool, `MODELS` included.
        in_flight: tickets granted and not finished.
        ready_s: when it became ready.
        idle_since_s: when the last request ended; means something while none is in flight.
        stopping: an operator, or the end of the server, wants it gone.
        claimed: a request has waited long enough for its memory.
    """

    load_id: LoadId
    request: Request
    settings: EngineSettings
    need: Mapping[str, int]
    keep_alive_s: float
    phase: Phase = Phase.LOADING
    in_flight: set[Ticket] = field(default_factory=set)
    ready_s: float = 0.0
    idle_since_s: float = 0.0
    stopping: bool = False
    claimed: bool = False

    @property
    def idle(self) -> bool:
        """Loaded, and nobody uses it."""
        return self.phase is Phase.READY and not self.in_flight

    @property
    def open(self) -> bool:
        """Loaded, and takes new requests."""
        return self.phase is Phase.READY and not self.stopping and not self.claimed

    @property
    def may_be_evicted(self) -> bool:
        """Whether it may have to make room, now or once idle."""
        return self.phase is not Phase.UNLOADING and (self.stopping or not self.request.pinned)

    @property
    def expires_s(self) -> float | None:
        """When it leaves if nobody comes; ``None`` while in use, and for those that stay."""
        if not self.idle or self.request.pinned or self.keep_alive_s < 0:
            return None
        return self.idle_since_s + self.keep_alive_s


class Ledger:
    """The memory as one walk through the queue hands it out.

    Attributes:
        free: what is free now, less what this walk gave away.
        later: what will be free when all that leave have left, less what this walk promised.
        claimed: models this walk has chosen to make room.
        keys: models this walk has already found a place, or none, for.
    """

    def __init__(self, budgets: Mapping[str, int], residents: Iterable[Resident]) -> None:
        self.free = dict(budgets)
        self.later = dict(budgets)
        self.claimed: set[LoadId] = set()
        self.keys: set[str] = set()
        for resident in residents:
            add(self.free, resident.need, -1)
            if resident.phase is not Phase.UNLOADING:
                add(self.later, resident.need, -1)

    def claim(self, victims: Iterable[Resident]) -> None:
        """Count on the memory of ``victims``; nobody else may choose them."""
        for victim in victims:
            self.claimed.add(victim.load_id)
            add(self.later, victim.need, 1)

    def promise(self, need: Mapping[str, int], *, now: bool) -> None:
        """Give ``need`` away: once enough has left, or ``now``."""
        add(self.later, need, -1)
        if now:
            add(self.free, need, -1)


def add(total: dict[str, int], need: Mapping[str, int], sign: int) -> None:
    """Add ``sign`` times ``need`` to ``total``, in place."""
    for pool, amount in need.items():
        total[pool] = total.get(pool, 0) + sign * amount


def covers(room: Mapping[str, int], need: Mapping[str, int]) -> bool:
    """Whether ``need`` fits into ``room``; a pool that is not there has none."""
    return all(amount <= room.get(pool, 0) for pool, amount in need.items() if amount > 0)


def suits(resident: Resident, request: Request) -> bool:
    """Whether a model, as it was loaded, will do for a request.

    A value the request leaves open suits. A value it asks for suits when the model has it, or
    was loaded for a request that asked for the same (the engine or the machine did not allow
    it then either), or when planning for this request came to what the model has.
    """
    if resident.request.pinned:
        return True
    for name in COMPARED:
        asked = _asked(request.wish, name)
        planned = [getattr(choice.settings, name) for choice in request.choices[:1]]
        have = getattr(resident.settings, name)
        before = _asked(resident.request.wish, name)
        if asked is None or asked in {have, before} or have in planned:
            continue
        if name == "num_ctx" and ((before or 0) >= asked or have >= min([asked, *planned])):
            continue
        return False
    return True


def _asked(wish: Wish, name: str) -> int | None:
    """What a wish insists on; a negative ``num_gpu`` and no ``threads`` are left open, too."""
    value: int | None = getattr(wish, name)
    left_open = (name == "num_gpu" and (value or 0) < 0) or (name == "threads" and not value)
    return None if left_open else value


def cheapest(
    *,
    room: Mapping[str, int],
    need: Mapping[str, int],
    forced: Sequence[Resident],
    candidates: Iterable[Resident],
    now: float,
) -> tuple[Resident, ...] | None:
    """The models whose leaving costs least and makes ``need`` fit into ``room``.

    Args:
        room: what is free without anybody leaving; may be negative.
        need: what has to fit.
        forced: models that leave in any case.
        candidates: models that may leave.
        now: the time, for how long they have been idle.

    Returns:
        ``forced`` and whom else it takes, none of them superfluous; ``None`` if all are not
        enough.
    """
    room = dict(room)
    for resident in forced:
        add(room, resident.need, 1)
    if covers(room, need):
        return tuple(forced)
    ranked = sorted(candidates, key=lambda resident: _price(resident, now))
    chosen = _first_enough(room, need, ranked)
    if chosen is None:
        return None
    alone = next((r for r in ranked if covers(_with(room, [r]), need)), None)
    if alone is not None and _price(alone, now) <= _total(chosen, now):
        chosen = [alone]
    return (*forced, *chosen)


def _first_enough(
    room: Mapping[str, int], need: Mapping[str, int], ranked: Sequence[Resident]
) -> list[Resident] | None:
    """The cheapest that together are enough, without those that turn out not to be needed."""
    chosen: list[Resident] = []
    for resident in ranked:
        chosen.append(resident)
        if covers(_with(room, chosen), need):
            break
    else:
        return None
    for resident in reversed(ranked[: len(chosen)]):
        others = [other for other in chosen if other is not resident]
        if covers(_with(room, others), need):
            chosen = others
    return chosen


def _with(room: Mapping[str, int], leaving: Iterable[Resident]) -> dict[str, int]:
    total = dict(room)
    for resident in leaving:
        add(total, resident.need, 1)
    return total


def _price(resident: Resident, now: float) -> tuple[int, float]:
    """What it costs to let a model go: first whether it is in use, then bytes per idle second.

    A model that leaves anyway costs nothing. Bytes stand for the time to load it again, idle
    time for how unlikely that is.
    """
    size = float(sum(amount for pool, amount in resident.need.items() if pool != MODELS))
    if resident.stopping:
        return (0, 0.0)
    if resident.idle:
        return (0, size / (1 + now - resident.idle_since_s))
    return (1 if resident.phase is Phase.READY else 2, size)


def _total(residents: Iterable[Resident], now: float) -> tuple[int, float]:
    prices = [_price(resident, now) for resident in residents]
    return (sum(rank for rank, _ in prices), sum(price for _, price in prices))
