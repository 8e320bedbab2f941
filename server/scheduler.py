"""The shell around the residency core: one lock, worker threads, a timer.

Rules:
 * every decision is the core's; this module tells it what happened and does what it says;
 * the lock is held for decisions only, never while a process starts, answers or ends;
 * each load and each unload has a thread of its own, so none waits for another;
 * a load is finished even when everybody who wanted it has left;
 * memory counts as free only when its runner has ended and, on GPUs, the counters say so.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import assert_never

from hwprobe.estimate import HOST
from hwprobe.ladder import MOST_STEPS, lacked_memory
from hwprobe.settings import EngineSettings
from server.coroner import Coroner
from server.errors import (
    BusyError,
    ClientGoneError,
    DoesNotFitError,
    HeldBackError,
    LoadFailedError,
    RunnerCrashedError,
    ServerError,
)
from server.experience import Experience
from server.lease import (
    Demand,
    Lease,
    LoadedModel,
    SchedulerLimits,
    choices_for,
    tested_draft,
)
from server.residency import (
    STOPPING_TEXT,
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
    Resident,
    Ticket,
    Unload,
)
from server.runner import protocol
from server.runner.process import Runner
from server.settling import wait_for_memory
from server.shelving import Shelving

__all__ = ["Demand", "Lease", "LoadedModel", "Scheduler", "SchedulerLimits"]

GONE_POLL_S = 0.05
"""How often a waiting request asks whether its client is still there."""

END_S = 10.0
"""How long `Scheduler.close` waits for runners it has told to end at once."""

_LOG = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class _Slot:
    """What the core calls a load: the process behind it."""

    demand: Demand
    need_bytes: Mapping[str, int]
    planned: EngineSettings
    settings: EngineSettings
    runner: Runner | None = None
    buffers: Mapping[str, int] = field(default_factory=dict)
    steps: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True)
class _Waiter:
    demand: Demand
    answered: threading.Event = field(default_factory=threading.Event)
    slot: _Slot | None = None
    error: ServerError | None = None


class Scheduler:
    """Hands out runners. All methods may be called from any thread.

    The collaborators are called without the lock held, from threads of this module.
    """

    def __init__(
        self,
        *,
        budgets: Mapping[str, int],
        start_runner: Callable[[protocol.Load], Runner] = Runner.spawn,
        check: Callable[[Path, EngineSettings], EngineSettings] = lambda _, settings: settings,
        free_bytes: Callable[[], Mapping[str, int]] = dict,
        limits: SchedulerLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
        coroner: Coroner | None = None,
        experience: Experience | None = None,
        measure: Callable[[Mapping[str, int]], Mapping[str, int]] = lambda _: {},
        shelving: Shelving | None = None,
    ) -> None:
        """Start with nothing loaded.

        Args:
            budgets: bytes per pool that models may take, ``host`` and ``gpu0`` and so on.
            start_runner: starts a child; it may return before the model is loaded.
            check: the self-test: settings that work for this file, or an error.
            free_bytes: free memory per pool now; pools it leaves out are not waited for. It
                must not raise.
            limits: see `SchedulerLimits`.
            clock: monotonic seconds.
            coroner: learns from runners that die.
            shelving: what of computed prompts outlives runners; nothing without it.
            experience: learns from models that were loaded and from answers.
            measure: bytes per pool that models may take, measured now, when those in memory
                are planned to take so many; pools it leaves out keep their budget. Called before
                a load is planned; it must not raise.
        """
        self._limits = limits or SchedulerLimits()
        self._coroner = coroner or Coroner()
        self._experience = experience or Experience()
        self._measure = measure
        self._shelving = shelving
        self._start_runner = start_runner
        self._check = check
        self._free_bytes = free_bytes
        self._clock = clock
        self._changed = threading.Condition()  # its lock guards everything below
        self._core = Residency(
            budgets=budgets,
            max_loaded_models=self._limits.max_loaded_models,
            max_queue=self._limits.max_queue,
            patience_s=self._limits.patience_s,
        )
        self._tickets = itertools.count(1)
        self._waiters: dict[Ticket, _Waiter] = {}
        self._slots: dict[LoadId, _Slot] = {}
        self._ending = False  # runners are being stopped, ready or not
        self._closed = False
        self._timer = threading.Thread(target=self._keep_time, daemon=True, name="scheduler")
        self._timer.start()

    def acquire(self, demand: Demand, *, gone: Callable[[], bool] = lambda: False) -> Lease:
        """Wait until a runner for ``demand`` is there.

        Args:
            demand: what to use.
            gone: whether the client has left; asked about every `GONE_POLL_S`, must not raise.

        Raises:
            BusyError: the queue is full, or the server is stopping.
            ClientGoneError: the client left first.
            DoesNotFitError: there is not enough memory, whoever leaves.
            LoadFailedError: the model could not be loaded.
        """
        arrived_s = self._clock()
        waiter = _Waiter(demand=demand)
        ticket = self._submit(waiter)
        if not _answered(waiter, gone):
            self._finish(ticket)
            raise ClientGoneError("request canceled")
        if waiter.error is not None:
            raise waiter.error
        slot = waiter.slot
        assert slot is not None
        assert slot.runner is not None
        return Lease(
            runner=slot.runner,
            settings=slot.settings,
            load_s=self._clock() - arrived_s,
            give_back=lambda: self._finish(ticket),
            coroner=self._coroner,
            key=demand.key,
        )

    def unload(self, key: str) -> bool:
        """Let a model go once nobody uses it; false if it is not in memory. Does not wait."""
        with self._changed:
            here = [r for r in self._core.residents if r.phase is not Phase.UNLOADING]
            known = any(resident.request.key == key for resident in here)
            self._perform(self._core.stop_model(self._clock(), key))
        return known

    def loaded(self) -> tuple[LoadedModel, ...]:
        """The models that answer requests, in the order they were loaded."""
        with self._changed:
            return tuple(
                self._describe(resident)
                for resident in self._core.residents
                if resident.phase is Phase.READY
            )

    @property
    def pids(self) -> tuple[int, ...]:
        """Processes of all runners that are loading or loaded."""
        with self._changed:
            runners = [slot.runner for slot in self._slots.values()]
        return tuple(runner.pid for runner in runners if runner is not None)

    @property
    def waiting(self) -> int:
        """How many requests wait for a load."""
        with self._changed:
            return len(self._core.waiting)

    def close(self, drain_s: float) -> None:
        """Refuse what waits and what comes, let finish what runs, then end every runner.

        Args:
            drain_s: seconds that requests in flight may still take; then they get
                `RunnerCrashedError`.
        """
        with self._changed:
            self._perform(self._core.drain(self._clock()))
            self._changed.wait_for(lambda: not self._core.residents, drain_s)
            self._ending = True
            left = {i: slot.runner for i, slot in self._slots.items() if slot.runner is not None}
        self._end_all(tuple(left.values()))
        for load_id in left:
            with self._changed:
                self._perform(self._core.died(self._clock(), load_id))
                self._perform(self._core.unloaded(self._clock(), load_id))
        with self._changed:
            self._changed.wait_for(lambda: not self._core.residents, END_S)
            self._closed = True
            self._changed.notify_all()
        self._timer.join()

    def _end_all(self, runners: Sequence[Runner]) -> None:
        """Stop runners, all at once: each may take its time to put computed prompts away."""
        grace_s = self._limits.stop_grace_s if self._shelving is not None else 0.0
        threads = [threading.Thread(target=one.stop, args=(grace_s,)) for one in runners]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _submit(self, waiter: _Waiter) -> Ticket:
        """Tell the core about a request; plan it first if no model in memory will do."""
        demand = waiter.demand
        choices: tuple[Choice, ...] = ()
        budgets: Mapping[str, int] = {}
        while True:
            with self._changed:
                if choices or not self._core.needs_plan(demand.key, demand.wish):
                    self._perform(self._core.measured(self._clock(), budgets))
                    return self._request(waiter, choices)
                taken = self._core.taken(besides=demand.key)
                pinned = self._core.taken(besides=demand.key, pinned_only=True)
                everything = self._core.taken(besides="")
            budgets = self._measure(everything)
            choices = choices_for(demand, taken, pinned)

    def _request(self, waiter: _Waiter, choices: tuple[Choice, ...]) -> Ticket:
        demand = waiter.demand
        ticket = Ticket(next(self._tickets))
        keep_alive_s = demand.keep_alive_s
        request = Request(
            ticket=ticket,
            key=demand.key,
            wish=demand.wish,
            choices=choices,
            keep_alive_s=self._limits.keep_alive_s if keep_alive_s is None else keep_alive_s,
            pinned=demand.pinned,
        )
        self._waiters[ticket] = waiter
        self._perform(self._core.request(self._clock(), request))
        return ticket

    def _finish(self, ticket: Ticket) -> None:
        with self._changed:
            self._waiters.pop(ticket, None)
            self._perform(self._core.finished(self._clock(), ticket))

    def _perform(self, effects: list[Effect]) -> None:
        """Carry out what the core decided. The lock is held."""
        for effect in effects:
            match effect:
                case Load():
                    waiter = self._waiters[effect.request.ticket]
                    self._slots[effect.load_id] = _Slot(
                        demand=waiter.demand,
                        need_bytes=effect.choice.need_bytes,
                        planned=effect.choice.settings,
                        settings=effect.choice.settings,
                    )
                    self._start(self._load, effect.load_id, self._slots[effect.load_id])
                case Unload():
                    self._start(self._unload, effect.load_id, self._slots[effect.load_id])
                case Grant():
                    waiter = self._waiters.pop(effect.ticket)
                    waiter.slot = self._slots[effect.load_id]
                    waiter.answered.set()
                case Refuse():
                    waiter = self._waiters.pop(effect.ticket)
                    waiter.error = _error(effect)
                    waiter.answered.set()
                case _:
                    assert_never(effect)
        self._changed.notify_all()

    def _start(self, work: Callable[[LoadId, _Slot], None], load_id: LoadId, slot: _Slot) -> None:
        name = f"{work.__name__.strip('_')}-{load_id}"
        threading.Thread(target=work, args=(load_id, slot), daemon=True, name=name).start()

    def _load(self, load_id: LoadId, slot: _Slot) -> None:
        """A worker thread: test, start, wait until ready, tell the core."""
        try:
            runner = self._bring_up(load_id, slot)
        except Exception as error:  # noqa: BLE001 - a thread's outermost edge: others wait for this
            _LOG.warning("%s: not loaded: %s", slot.demand.name, error)
            if slot.runner is not None:
                slot.runner.stop(0)
                self._examine(slot, slot.runner)
            held_s = error.retry_after_s if isinstance(error, HeldBackError) else 0.0
            reason = Reason.HELD_BACK if held_s else Reason.LOAD_FAILED
            with self._changed:
                del self._slots[load_id]
                self._perform(
                    self._core.load_failed(self._clock(), load_id, str(error), reason, held_s)
                )
            return
        _LOG.info("%s: loaded, process %d", slot.demand.name, runner.pid)
        self._learn(slot, runner)
        with self._changed:
            self._perform(self._core.loaded(self._clock(), load_id))
        runner.on_exit(lambda error: self._mourn(load_id, slot, error))

    def _bring_up(self, load_id: LoadId, slot: _Slot) -> Runner:
        """Load; when the engine gets no memory, load smaller, as long as the demand knows how."""
        demand = slot.demand
        self._coroner.check_load(demand.key, slot.planned)
        for _ in range(MOST_STEPS):
            try:
                return self._try(slot)
            except LoadFailedError as error:
                lesser = demand.lesser(slot.settings) if lacked_memory(str(error)) else None
                if lesser is None or not self._resize(load_id, slot, lesser[1]):
                    raise
                _LOG.warning("%s: %s; trying with less: %s", demand.name, error, lesser[0])
                slot.steps += (lesser[0],)
        return self._try(slot)

    def _try(self, slot: _Slot) -> Runner:
        demand = slot.demand
        settings = self._check(demand.model_path, slot.settings)
        draft = tested_draft(demand, settings, self._check)
        self._refuse_at_the_end()
        runner = self._start_runner(
            protocol.Load(
                model_path=str(demand.model_path),
                settings=settings,
                adapters=demand.adapters,
                projector=str(demand.projector or ""),
                draft=str(draft or ""),
                keepsakes=self._keepsakes(demand, settings),
            )
        )
        with self._changed:
            slot.runner = runner  # from here on `close` finds it
        self._refuse_at_the_end()
        ready = runner.wait_ready()
        slot.settings = replace(settings, num_ctx=ready.num_ctx)
        slot.buffers = ready.memory
        return runner

    def _resize(self, load_id: LoadId, slot: _Slot, choice: Choice) -> bool:
        with self._changed:
            slot.runner = None
            if not self._core.resized(load_id, choice.settings, choice.need_bytes):
                return False
            slot.need_bytes, slot.settings = choice.need_bytes, choice.settings
            self._perform(self._core.tick(self._clock()))  # what it gave up others may have
        return True

    def _learn(self, slot: _Slot, runner: Runner) -> None:
        """Compare what was loaded with what was planned; listen for speeds."""
        profile = slot.demand.profile
        if profile is None:
            return
        settings = slot.settings
        self._experience.loaded(
            name=slot.demand.name,
            profile=profile,
            planned=slot.planned,
            settings=settings,
            steps=slot.steps,
            buffers=slot.buffers,
            pid=runner.pid,
        )
        runner.on_alone(lambda row: self._experience.answered(profile, settings, row))

    def _learn_at_the_end(self, slot: _Slot, runner: Runner) -> None:
        profile = slot.demand.profile
        if profile is not None and runner.alive:
            self._experience.leaves(
                name=slot.demand.name,
                profile=profile,
                settings=slot.settings,
                buffers=slot.buffers,
                pid=runner.pid,
            )

    def _keepsakes(self, demand: Demand, settings: EngineSettings) -> protocol.Keepsakes | None:
        if self._shelving is None:
            return None
        return self._shelving.keepsakes(demand.key, settings, demand.adapters)

    def _refuse_at_the_end(self) -> None:
        with self._changed:
            if self._ending:
                raise LoadFailedError(STOPPING_TEXT)

    def _unload(self, load_id: LoadId, slot: _Slot) -> None:
        """A worker thread: stop the runner, wait for its memory, tell the core."""
        assert slot.runner is not None
        self._learn_at_the_end(slot, slot.runner)
        before = self._free_bytes()
        slot.runner.stop(self._limits.stop_grace_s)
        self._bury(load_id, slot, before)
        _LOG.info("%s: unloaded", slot.demand.name)

    def _mourn(self, load_id: LoadId, slot: _Slot, error: RunnerCrashedError) -> None:
        """In the runner's reader thread: nobody is to get this runner any more."""
        _LOG.error("%s: %s", slot.demand.name, error)
        if slot.runner is not None:  # before its requests hear of it and are tried again
            self._examine(slot, slot.runner)
        with self._changed:
            self._perform(self._core.died(self._clock(), load_id))
        # What it held may be free already, so the counters have nothing to be compared with.
        self._bury(load_id, slot, {})

    def _examine(self, slot: _Slot, runner: Runner) -> None:
        """Tell the coroner about a runner that ended by itself."""
        if runner.autopsy is not None:
            self._coroner.died(
                name=slot.demand.name,
                model=slot.demand.key,
                settings=slot.planned,
                autopsy=runner.autopsy,
            )

    def _bury(self, load_id: LoadId, slot: _Slot, before: Mapping[str, int]) -> None:
        try:
            wait_for_memory(slot.need_bytes, before, self._free_bytes)
        finally:
            with self._changed:
                self._slots.pop(load_id, None)
                self._perform(self._core.unloaded(self._clock(), load_id))

    def _keep_time(self) -> None:
        """The timer thread: tick whenever the core has something to do by itself."""
        with self._changed:
            while not self._closed:
                deadline_s = self._core.next_deadline()
                now_s = self._clock()
                if deadline_s is None or deadline_s > now_s:
                    self._changed.wait(None if deadline_s is None else deadline_s - now_s)
                else:
                    self._perform(self._core.tick(now_s))

    def _describe(self, resident: Resident) -> LoadedModel:
        slot = self._slots[resident.load_id]
        assert slot.runner is not None
        expires_at_s = resident.expires_s
        if resident.in_flight and resident.keep_alive_s >= 0 and not resident.request.pinned:
            expires_at_s = self._clock() + resident.keep_alive_s
        return LoadedModel(
            name=slot.demand.name,
            key=resident.request.key,
            size_bytes=sum(slot.need_bytes.values()),
            vram_bytes=sum(size for pool, size in slot.need_bytes.items() if pool != HOST),
            num_ctx=slot.settings.num_ctx,
            settings=slot.settings,
            expires_at_s=expires_at_s,
            in_flight=len(resident.in_flight),
            pid=slot.runner.pid,
        )


def _answered(waiter: _Waiter, gone: Callable[[], bool]) -> bool:
    """Wait for the answer; false when the client left first."""
    while not waiter.answered.wait(GONE_POLL_S):
        if gone():
            return False
    return True


def _error(refusal: Refuse) -> ServerError:
    match refusal.reason:
        case Reason.BUSY | Reason.STOPPING:
            return BusyError(refusal.message)
        case Reason.DOES_NOT_FIT:
            return DoesNotFitError(refusal.message)
        case Reason.LOAD_FAILED:
            return LoadFailedError(refusal.message)
        case Reason.HELD_BACK:
            return HeldBackError(refusal.message, retry_after_s=refusal.retry_after_s)
        case _:
            assert_never(refusal.reason)
