"""The residency core under random events, watched by a bookkeeper that sees only its effects."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hypothesis import assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from hwprobe.placement import Wish
from hwprobe.settings import EngineSettings
from server.residency import (
    Choice,
    Effect,
    Grant,
    Load,
    LoadId,
    Phase,
    Reason,
    Refuse,
    Request,
    Residency,
    Ticket,
    Unload,
)

BUDGETS = {"host": 10, "gpu0": 6}
NEEDS = {
    "tiny": {"host": 1},
    "small": {"host": 3, "gpu0": 2},
    "wide": {"host": 6},
    "gpu": {"host": 1, "gpu0": 5},
    "huge": {"host": 10, "gpu0": 6},
    "pinned": {"host": 2},
    "too big": {"host": 11},
}


@dataclass(slots=True, kw_only=True)
class Seen:
    """A model as the bookkeeper knows it from the effects alone."""

    request: Request
    need: dict[str, int]
    phase: Phase = Phase.LOADING
    in_flight: set[Ticket] = field(default_factory=set)
    keep_alive_s: float = 0.0
    idle_since_s: float = 0.0
    stopping: bool = False


class ResidencyMachine(RuleBasedStateMachine):
    residency_type: type[Residency] = Residency

    @initialize(models=st.integers(0, 3), queue=st.integers(1, 6))
    def start(self, models: int, queue: int) -> None:
        self.core = self.residency_type(
            budgets=BUDGETS, max_loaded_models=models, max_queue=queue, patience_s=5.0
        )
        self.max_models = models or 99
        self.max_queue = queue
        self.now = 0.0
        self.tickets = 0
        self.waiting: dict[Ticket, Request] = {}
        self.seen: dict[LoadId, Seen] = {}
        self.draining = False
        self.budgets = dict(BUDGETS)

    # --- the bookkeeper -------------------------------------------------------------------------

    def carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            self.check(effect)
        again = self.core.tick(self.now)
        assert again == [], f"not quiescent: {again}"

    def check(self, effect: Effect) -> None:
        match effect:
            case Load():
                assert effect.request.ticket in self.waiting
                key = effect.request.key
                assert all(seen.request.key != key for seen in self.seen.values())
                self.seen[effect.load_id] = Seen(
                    request=effect.request, need=dict(effect.choice.need_bytes)
                )
                for pool, amount in effect.choice.need_bytes.items():
                    held = sum(seen.need.get(pool, 0) for seen in self.seen.values())
                    assert not amount or held <= self.budgets[pool], "loaded beyond what there is"
            case Unload():
                seen = self.seen[effect.load_id]
                assert seen.phase is Phase.READY
                assert not seen.in_flight, "a model in use was told to leave"
                seen.phase = Phase.UNLOADING
            case Grant():
                request = self.waiting.pop(effect.ticket)
                seen = self.seen[effect.load_id]
                assert seen.phase is Phase.READY
                assert seen.request.key == request.key
                seen.in_flight.add(effect.ticket)
                seen.keep_alive_s = request.keep_alive_s
            case Refuse():
                request = self.waiting.pop(effect.ticket)
                assert effect.message
                self.check_refusal(request, effect.reason)
        self.memory_is_never_exceeded()

    def check_refusal(self, request: Request, reason: Reason) -> None:
        match reason:
            case Reason.BUSY:
                assert len(self.waiting) >= self.max_queue
            case Reason.STOPPING:
                assert self.draining
            case Reason.DOES_NOT_FIT:
                pinned = any(
                    s.request.pinned and s.phase is not Phase.UNLOADING for s in self.seen.values()
                )
                assert pinned or request.key == "too big" or self.budgets != BUDGETS
            case Reason.LOAD_FAILED:
                assert request.key in self.failing

    failing: frozenset[str] = frozenset()

    def in_phase(self, phase: Phase) -> list[LoadId]:
        return [load_id for load_id, seen in self.seen.items() if seen.phase is phase]

    def in_flight(self) -> list[Ticket]:
        return [ticket for seen in self.seen.values() for ticket in seen.in_flight]

    def new_ticket(self) -> Ticket:
        self.tickets += 1
        return Ticket(self.tickets)

    # --- events ---------------------------------------------------------------------------------

    @rule(
        key=st.sampled_from(sorted(NEEDS)),
        num_ctx=st.sampled_from([None, None, 256, 512]),
        batch=st.sampled_from([None, None, None, 64]),
        keep_alive_s=st.sampled_from([-1.0, 0.0, 3.0, 20.0]),
        smaller=st.booleans(),
    )
    def request(
        self,
        key: str,
        num_ctx: int | None,
        batch: int | None,
        keep_alive_s: float,
        *,
        smaller: bool,
    ) -> None:
        self.submit(key, Wish(num_ctx=num_ctx, num_batch=batch), keep_alive_s, smaller=smaller)

    @precondition(lambda self: self.in_phase(Phase.READY))
    @rule(data=st.data(), keep_alive_s=st.sampled_from([-1.0, 0.0, 3.0]))
    def request_for_a_loaded_model(self, data: st.DataObject, keep_alive_s: float) -> None:
        load_id = data.draw(st.sampled_from(self.in_phase(Phase.READY)))
        self.submit(self.seen[load_id].request.key, Wish(), keep_alive_s, smaller=False)

    def submit(self, key: str, wish: Wish, keep_alive_s: float, *, smaller: bool) -> None:
        engine = EngineSettings(
            num_ctx=wish.num_ctx or 256, num_batch=wish.num_batch or 512, num_ubatch=64
        )
        choices = [Choice(settings=engine, need_bytes=NEEDS[key])]
        if smaller:
            choices.append(Choice(settings=engine, need_bytes={"host": NEEDS[key]["host"]}))
        request = Request(
            ticket=self.new_ticket(),
            key=key,
            wish=wish,
            choices=tuple(choices) if self.core.needs_plan(key, wish) else (),
            keep_alive_s=keep_alive_s,
            pinned=key == "pinned",
        )
        self.waiting[request.ticket] = request
        ready = [s for s in self.seen.values() if s.request.key == key and s.phase is Phase.READY]
        effects = self.core.request(self.now, request)
        if ready and key == "pinned" and not ready[0].stopping:
            assert isinstance(effects[0], Grant)
        self.carry_out(effects)

    @precondition(lambda self: self.in_phase(Phase.LOADING))
    @rule(data=st.data())
    def loaded(self, data: st.DataObject) -> None:
        load_id = data.draw(st.sampled_from(self.in_phase(Phase.LOADING)))
        seen = self.seen[load_id]
        seen.phase = Phase.READY
        seen.idle_since_s = self.now
        seen.keep_alive_s = seen.request.keep_alive_s
        effects = self.core.loaded(self.now, load_id)
        if seen.request.ticket in self.waiting:
            granted = {effect.ticket for effect in effects if isinstance(effect, Grant)}
            assert seen.request.ticket in granted, "loaded for somebody who did not get it"
        self.carry_out(effects)

    @precondition(lambda self: self.in_phase(Phase.LOADING))
    @rule(data=st.data())
    def load_fails(self, data: st.DataObject) -> None:
        load_id = data.draw(st.sampled_from(self.in_phase(Phase.LOADING)))
        seen = self.seen.pop(load_id)
        self.failing = frozenset({seen.request.key})
        waited = seen.request.ticket in self.waiting
        effects = self.core.load_failed(self.now, load_id, "it failed")
        if waited:
            refused = {effect.ticket for effect in effects if isinstance(effect, Refuse)}
            assert seen.request.ticket in refused, "nobody was told that the load failed"
        self.carry_out(effects)

    @precondition(lambda self: self.in_phase(Phase.UNLOADING))
    @rule(data=st.data())
    def unloaded(self, data: st.DataObject) -> None:
        load_id = data.draw(st.sampled_from(self.in_phase(Phase.UNLOADING)))
        del self.seen[load_id]
        self.carry_out(self.core.unloaded(self.now, load_id))

    @precondition(lambda self: self.in_phase(Phase.READY))
    @rule(data=st.data())
    def crashes(self, data: st.DataObject) -> None:
        load_id = data.draw(st.sampled_from(self.in_phase(Phase.READY)))
        seen = self.seen[load_id]
        orphans, seen.in_flight, seen.phase = seen.in_flight, set(), Phase.UNLOADING
        self.carry_out(self.core.died(self.now, load_id))
        for ticket in orphans:
            assert self.core.finished(self.now, ticket) == []

    @precondition(lambda self: self.in_flight())
    @rule(data=st.data())
    def finishes(self, data: st.DataObject) -> None:
        self.finish(data.draw(st.sampled_from(self.in_flight())))

    def finish(self, ticket: Ticket) -> None:
        for seen in self.seen.values():
            if ticket in seen.in_flight:
                seen.in_flight.remove(ticket)
                seen.idle_since_s = self.now
        self.carry_out(self.core.finished(self.now, ticket))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def client_leaves_the_queue(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(sorted(self.waiting)))
        del self.waiting[ticket]
        self.carry_out(self.core.cancelled(self.now, ticket))

    @precondition(lambda self: self.in_phase(Phase.LOADING))
    @rule(data=st.data(), need=st.integers(0, 10), pool=st.sampled_from(["host", "gpu0"]))
    def loads_smaller(self, data: st.DataObject, need: int, pool: str) -> None:
        """The engine got no memory; what is tried next may need more of another pool."""
        load_id = data.draw(st.sampled_from(self.in_phase(Phase.LOADING)))
        if self.core.resized(load_id, EngineSettings(num_ctx=256), {pool: need}):
            self.seen[load_id].need = {pool: need}
        self.carry_out(self.core.tick(self.now))

    @rule(host=st.integers(0, 10), gpu0=st.integers(0, 6))
    def memory_is_measured(self, host: int, gpu0: int) -> None:
        """Other programs took memory, or gave it back."""
        self.budgets = {"host": host, "gpu0": gpu0}
        self.carry_out(self.core.measured(self.now, self.budgets))

    @rule(seconds=st.sampled_from([0.5, 3.0, 6.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.carry_out(self.core.tick(self.now))

    @precondition(lambda self: self.core.next_deadline() is not None)
    @rule()
    def deadline_comes(self) -> None:
        deadline = self.core.next_deadline()
        assert deadline is not None
        assert deadline > self.now, "a deadline that has passed keeps the shell spinning"
        self.now = deadline
        self.carry_out(self.core.tick(self.now))

    @rule(key=st.sampled_from(sorted(NEEDS)))
    def operator_stops(self, key: str) -> None:
        for seen in self.seen.values():
            if seen.request.key == key and seen.phase is not Phase.UNLOADING:
                seen.stopping = True
        self.carry_out(self.core.stop_model(self.now, key))

    @precondition(lambda self: self.tickets > 8 and not self.draining)
    @rule(chance=st.integers(0, 5))
    def server_ends(self, chance: int) -> None:
        assume(chance == 0)
        self.draining = True
        for seen in self.seen.values():
            seen.stopping = True
        self.carry_out(self.core.drain(self.now))
        assert not self.waiting

    @rule(number=st.integers(1, 50))
    def unknown_ids_change_nothing(self, number: int) -> None:
        ticket, load_id = Ticket(10_000 + number), LoadId(10_000 + number)
        assert self.core.finished(self.now, ticket) == []
        assert self.core.loaded(self.now, load_id) == []
        assert self.core.load_failed(self.now, load_id, "x") == []
        assert self.core.died(self.now, load_id) == []
        assert self.core.unloaded(self.now, load_id) == []

    # --- what always holds ----------------------------------------------------------------------

    @invariant()
    def memory_is_never_exceeded(self) -> None:
        """Invariant 1: what is loaded, loading or leaving stays within every budget."""
        total: Counter[str] = Counter()
        for seen in self.seen.values():
            total.update(seen.need)
        assert all(total[pool] <= budget for pool, budget in BUDGETS.items()), total
        assert len(self.seen) <= self.max_models

    @invariant()
    def somebody_works_for_those_who_wait(self) -> None:
        """Invariant 3: a queue that is not empty waits for something that will end."""
        assert list(self.core.waiting) == list(self.waiting)
        assert len(self.waiting) <= self.max_queue
        changing = any(seen.phase is not Phase.READY for seen in self.seen.values())
        assert not self.waiting or changing or self.in_flight()

    @invariant()
    def nobody_stays_past_its_time(self) -> None:
        for seen in self.seen.values():
            if seen.phase is not Phase.READY or seen.in_flight:
                continue
            assert not seen.stopping
            assert (
                seen.request.pinned
                or seen.keep_alive_s < 0
                or self.now < seen.idle_since_s + seen.keep_alive_s
            )

    @invariant()
    def first_in_the_queue_does_not_wait_for_free_memory(self) -> None:
        if not self.waiting:
            return
        first = next(iter(self.waiting.values()))
        if any(seen.request.key == first.key for seen in self.seen.values()):
            return
        free = Counter(self.budgets)
        for seen in self.seen.values():
            free.subtract(seen.need)
        fits = any(
            all(free[pool] >= amount for pool, amount in choice.need_bytes.items())
            for choice in first.choices[:1]
        )
        assert not fits or len(self.seen) == self.max_models

    # --- the end --------------------------------------------------------------------------------

    def teardown(self) -> None:
        """When all in flight finish and loads complete, everybody is granted or refused."""
        if not hasattr(self, "core"):
            return
        for _ in range(20 * (len(self.waiting) + 2)):
            if not self.waiting:
                return
            for ticket in self.in_flight():
                self.finish(ticket)
            for load_id in self.in_phase(Phase.UNLOADING):
                del self.seen[load_id]
                self.carry_out(self.core.unloaded(self.now, load_id))
            for load_id in self.in_phase(Phase.LOADING):
                self.seen[load_id].phase = Phase.READY
                self.seen[load_id].idle_since_s = self.now
                self.seen[load_id].keep_alive_s = self.seen[load_id].request.keep_alive_s
                self.carry_out(self.core.loaded(self.now, load_id))
            self.now += 1
            self.carry_out(self.core.tick(self.now))
        raise AssertionError(f"starved: {self.waiting}")


def machine_of(kind: type[Residency]) -> type[ResidencyMachine]:
    """The same machine around another core."""
    attributes: dict[str, Any] = {"residency_type": kind}
    return type(f"MachineOf{kind.__name__}", (ResidencyMachine,), attributes)


TestResidency = ResidencyMachine.TestCase
TestResidency.settings = settings(deadline=None, max_examples=150, stateful_step_count=40)
