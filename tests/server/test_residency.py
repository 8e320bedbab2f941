from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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

GIB = 1 << 30
HOST = {"host": 10 * GIB}


def engine(**values: Any) -> EngineSettings:
    return EngineSettings(**{"num_ctx": 4096, "num_ubatch": 64, **values})


class Bench:
    """A core with a clock; keeps what is loaded by key, so tests read like a story."""

    def __init__(self, budgets: dict[str, int] | None = None, **limits: Any) -> None:
        self.core = Residency(budgets=budgets or HOST, **limits)
        self.now = 0.0
        self._numbers = itertools.count(1)

    def ask(
        self,
        key: str,
        gib: float = 1,
        *,
        choices: tuple[Choice, ...] | None = None,
        keep_alive_s: float = 300,
        pinned: bool = False,
        **wish: Any,
    ) -> tuple[Ticket, list[Effect]]:
        """Ask for a model of so many GiB on the host, loaded the way the wish says."""
        ticket = Ticket(next(self._numbers))
        asked = Wish(**wish)
        planned = {name: value for name, value in wish.items() if value is not None}
        request = Request(
            ticket=ticket,
            key=key,
            wish=asked,
            choices=choices or (choice(gib, **planned),),
            keep_alive_s=keep_alive_s,
            pinned=pinned,
        )
        return ticket, self.core.request(self.now, request)

    def use(self, key: str, gib: float = 1, **values: Any) -> Ticket:
        """Ask, load if it has to, and be granted."""
        ticket, effects = self.ask(key, gib, **values)
        while not any(isinstance(e, Grant) and e.ticket == ticket for e in effects):
            assert effects, f"{key} waits"
            effects = [e for effect in effects for e in self.obey(effect)]
        return ticket

    def have(self, key: str, gib: float = 1, **values: Any) -> None:
        """A loaded model that nobody uses."""
        self.finish(self.use(key, gib, **values))

    def obey(self, effect: Effect) -> list[Effect]:
        match effect:
            case Load():
                return self.core.loaded(self.now, effect.load_id)
            case Unload():
                return self.core.unloaded(self.now, effect.load_id)
        return []

    def finish(self, ticket: Ticket) -> list[Effect]:
        return self.core.finished(self.now, ticket)

    def after(self, seconds: float) -> list[Effect]:
        self.now += seconds
        return self.core.tick(self.now)

    def id_of(self, key: str) -> LoadId:
        return next(r.load_id for r in self.core.residents if r.request.key == key)

    def keys(self) -> set[str]:
        return {r.request.key for r in self.core.residents if r.phase is not Phase.UNLOADING}


def choice(gib: float, pool: str = "host", **values: Any) -> Choice:
    return Choice(settings=engine(**values), need_bytes={pool: int(gib * GIB)})


def kinds(effects: list[Effect]) -> list[str]:
    return [type(effect).__name__ for effect in effects]


# --- refusals -----------------------------------------------------------------------------------


def test_model_larger_than_the_memory_is_refused() -> None:
    _, effects = Bench().ask("a", 11)
    assert isinstance(effects[0], Refuse)
    assert effects[0].reason is Reason.DOES_NOT_FIT
    assert effects[0].message == "memory: expected at most 10.0 GiB on host, found 11.0 GiB"


def test_model_that_fits_only_without_a_pinned_one_is_refused() -> None:
    bench = Bench()
    bench.have("pinned", 4, pinned=True)
    _, effects = bench.ask("a", 7)
    assert isinstance(effects[0], Refuse)
    assert effects[0].message == "memory: expected at most 6.00 GiB on host, found 7.00 GiB"


def test_model_for_a_pool_that_does_not_exist_is_refused() -> None:
    _, effects = Bench().ask("a", choices=(choice(1, "gpu0"),))
    assert kinds(effects) == ["Refuse"]


def test_no_place_besides_pinned_models_is_refused() -> None:
    bench = Bench(max_loaded_models=1)
    bench.have("pinned", pinned=True)
    _, effects = bench.ask("a")
    assert isinstance(effects[0], Refuse)
    assert effects[0].message == "loaded models: all places are taken by pinned models"


def test_queue_is_bounded_and_refuses_in_ollamas_words() -> None:
    bench = Bench(max_queue=2)
    for _ in range(2):
        assert "Refuse" not in kinds(bench.ask("a")[1])
    for key in ("a", "b"):
        _, effects = bench.ask(key)
        assert isinstance(effects[0], Refuse)
        assert effects[0].reason is Reason.BUSY
        assert effects[0].message == (
            "server busy, please try again.  maximum pending requests exceeded"
        )


def test_full_queue_does_not_refuse_what_is_loaded() -> None:
    bench = Bench(max_queue=1)
    bench.have("a", 2)
    bench.ask("b", 2)
    assert kinds(bench.ask("a")[1]) == ["Grant"]


def test_failed_load_refuses_all_who_waited_and_is_tried_afresh() -> None:
    bench = Bench()
    tickets = [bench.ask("a")[0] for _ in range(3)]
    effects = bench.core.load_failed(0, bench.id_of("a"), "bad magic")
    assert [(e.ticket, e.message) for e in effects if isinstance(e, Refuse)] == [
        (ticket, "bad magic") for ticket in tickets
    ]
    assert kinds(bench.ask("a")[1]) == ["Load"]


def test_draining_refuses_the_queue_and_newcomers_and_lets_finish() -> None:
    bench = Bench()
    busy = bench.use("busy", 2)
    bench.have("idle", 2)
    bench.ask("loading", 2)
    effects = bench.core.drain(0)
    assert sorted(kinds(effects)) == ["Refuse", "Unload"]
    assert kinds(bench.ask("busy")[1]) == ["Refuse"]
    assert kinds(bench.finish(busy)) == ["Unload"]
    assert kinds(bench.core.loaded(0, bench.id_of("loading"))) == ["Unload"]


# --- reuse and reload ---------------------------------------------------------------------------


def test_smaller_context_uses_the_larger_one() -> None:
    bench = Bench()
    bench.have("a", num_ctx=8192)
    assert kinds(bench.ask("a", num_ctx=4096)[1]) == ["Grant"]


def test_open_wish_never_reloads() -> None:
    bench = Bench()
    bench.have("a", num_ctx=512, num_batch=64, num_gpu=3, threads=1, use_mmap=False)
    assert kinds(bench.ask("a")[1]) == ["Grant"]
    assert kinds(bench.ask("a", choices=(choice(1),), num_gpu=-1, threads=0)[1]) == ["Grant"]


@pytest.mark.parametrize(
    "wish",
    [{"num_ctx": 8192}, {"num_batch": 1024}, {"num_gpu": 7}, {"threads": 3}, {"use_mmap": False}],
)
def test_other_load_option_reloads_an_idle_model(wish: dict[str, Any]) -> None:
    bench = Bench()
    bench.have("a")
    _, effects = bench.ask("a", **wish)
    assert kinds(effects) == ["Unload"]
    effects = bench.obey(effects[0])
    assert isinstance(effects[0], Load)
    assert {name: getattr(effects[0].choice.settings, name) for name in wish} == wish


def test_reload_waits_for_those_in_flight() -> None:
    bench = Bench()
    ticket = bench.use("a")
    assert bench.ask("a", num_ctx=8192)[1] == []
    assert kinds(bench.finish(ticket)) == ["Unload"]


def test_what_planning_did_not_grant_does_not_reload_again() -> None:
    """A wish beyond the model or the machine is planned down; asking again changes nothing."""
    bench = Bench()
    planned = (choice(1, num_ctx=2048, num_gpu=33),)
    bench.have("a", choices=planned, num_ctx=100_000, num_gpu=999)
    assert kinds(bench.ask("a", choices=planned, num_ctx=100_000, num_gpu=999)[1]) == ["Grant"]
    assert kinds(bench.ask("a", choices=planned, num_ctx=200_000, num_gpu=50)[1]) == ["Grant"]


def test_two_clients_with_different_contexts_load_twice_not_forever() -> None:
    bench = Bench()
    loads = 0
    for _ in range(10):
        for num_ctx in (2048, 8192):
            ticket, effects = bench.ask("a", num_ctx=num_ctx)
            while effects:
                loads += kinds(effects).count("Load")
                effects = [e for effect in effects for e in bench.obey(effect)]
            bench.finish(ticket)
    assert loads == 2


def test_pinned_model_suits_every_wish() -> None:
    bench = Bench()
    bench.have("a", pinned=True)
    assert kinds(bench.ask("a", num_ctx=100_000, threads=7)[1]) == ["Grant"]


# --- keep_alive ---------------------------------------------------------------------------------


def test_zero_unloads_as_soon_as_idle() -> None:
    bench = Bench()
    first = bench.use("a", keep_alive_s=300)
    last = bench.use("a", keep_alive_s=0)
    assert bench.finish(last) == []
    assert kinds(bench.finish(first)) == ["Unload"]


def test_negative_stays_for_ever() -> None:
    bench = Bench()
    bench.have("a", keep_alive_s=-1)
    assert bench.core.next_deadline() is None
    assert bench.after(1e9) == []


def test_latest_request_decides() -> None:
    bench = Bench()
    bench.have("a", keep_alive_s=-1)
    bench.have("a", keep_alive_s=7)
    assert bench.core.next_deadline() == 7
    assert bench.after(6.9) == []
    assert kinds(bench.after(0.2)) == ["Unload"]


def test_request_at_the_last_moment_keeps_the_model() -> None:
    bench = Bench()
    bench.have("a", keep_alive_s=7)
    bench.now = 8  # the timer has not rung yet
    assert kinds(bench.ask("a")[1]) == ["Grant"]


def test_pinned_model_outlives_its_time() -> None:
    bench = Bench()
    bench.have("a", pinned=True, keep_alive_s=0)
    assert bench.after(1e6) == []
    assert kinds(bench.core.stop_model(bench.now, "a")) == ["Unload"]


def test_load_whose_client_left_is_finished_and_kept() -> None:
    bench = Bench()
    ticket, _ = bench.ask("a", keep_alive_s=7)
    assert bench.core.cancelled(0, ticket) == []
    assert bench.core.loaded(0, bench.id_of("a")) == []
    assert bench.core.next_deadline() == 7


def test_stopped_model_finishes_what_runs_and_takes_nothing_new() -> None:
    bench = Bench()
    ticket = bench.use("a")
    assert bench.core.stop_model(0, "a") == []
    _, effects = bench.ask("a")
    assert effects == []
    effects = bench.finish(ticket)
    assert kinds(effects) == ["Unload"]
    assert kinds(bench.obey(effects[0])) == ["Load"]


def test_stop_of_an_unknown_model_does_nothing() -> None:
    assert Bench().core.stop_model(0, "a") == []


# --- making room --------------------------------------------------------------------------------


def test_least_recently_used_of_equals_leaves() -> None:
    bench = Bench()
    for key in ("old", "new"):
        bench.have(key, 5)
        bench.now += 60
    _, effects = bench.ask("c", 5)
    assert effects == [Unload(load_id=bench.id_of("old"))]


def test_nobody_leaves_who_is_not_needed() -> None:
    bench = Bench()
    for key, gib in (("tiny", 1), ("large", 7), ("tiny too", 1)):
        bench.have(key, gib)
        bench.now += 60
    bench.ask("c", 7)
    assert bench.keys() == {"tiny", "tiny too"}


def test_smallest_that_is_enough_leaves() -> None:
    bench = Bench()
    bench.have("large", 6)
    bench.have("small", 3)
    bench.ask("c", 4)
    assert bench.keys() == {"large"}


def test_model_in_use_and_pinned_model_stay_while_an_idle_one_is_enough() -> None:
    bench = Bench()
    bench.use("busy", 3)
    bench.have("pinned", 3, pinned=True)
    bench.now += 100
    bench.have("idle", 3)
    bench.ask("c", 3)
    assert bench.keys() == {"busy", "pinned"}


def test_limit_of_models_makes_room_too() -> None:
    bench = Bench(max_loaded_models=2)
    bench.have("a")
    bench.have("b")
    bench.ask("c")
    assert bench.keys() == {"b"}


def test_load_waits_until_the_memory_is_really_free() -> None:
    bench = Bench()
    bench.have("a", 8)
    _, effects = bench.ask("b", 8)
    assert kinds(effects) == ["Unload"]
    assert bench.after(60) == []
    assert kinds(bench.obey(effects[0])) == ["Load"]


def test_best_choice_comes_before_sparing_an_idle_model() -> None:
    pools = {"host": 10 * GIB, "gpu0": 10 * GIB}
    bench = Bench(pools)
    bench.have("a", choices=(choice(8, "gpu0"),))
    both = (choice(8, "gpu0"), choice(8, "host"))
    _, effects = bench.ask("b", choices=both)
    assert effects == [Unload(load_id=bench.id_of("a"))]


def test_lesser_choice_comes_before_waiting_for_a_busy_model() -> None:
    pools = {"host": 10 * GIB, "gpu0": 10 * GIB}
    bench = Bench(pools)
    bench.use("a", choices=(choice(8, "gpu0"),))
    both = (choice(8, "gpu0"), choice(8, "host"))
    _, effects = bench.ask("b", choices=both)
    assert isinstance(effects[0], Load)
    assert effects[0].choice is both[1]


def test_memory_of_a_crashed_model_is_free_and_its_requests_are_forgotten() -> None:
    bench = Bench()
    ticket = bench.use("a", 8)
    bench.ask("b", 8)
    dead = bench.id_of("a")
    assert bench.core.died(0, dead) == []
    assert bench.finish(ticket) == []
    assert kinds(bench.core.unloaded(0, dead)) == ["Load"]


# --- fairness -----------------------------------------------------------------------------------


def test_request_to_a_loaded_model_does_not_wait_behind_a_load() -> None:
    bench = Bench()
    bench.have("a", 2)
    bench.ask("b", 8)
    assert kinds(bench.ask("a")[1]) == ["Grant"]


def test_load_that_fits_elsewhere_does_not_wait_behind_one_that_does_not() -> None:
    bench = Bench({"gpu0": 10 * GIB, "gpu1": 10 * GIB})
    bench.use("busy", choices=(choice(8, "gpu0"),))
    assert bench.ask("blocked", choices=(choice(8, "gpu0"),))[1] == []
    assert kinds(bench.ask("c", choices=(choice(8, "gpu1"),))[1]) == ["Load"]


def test_load_may_use_what_the_one_before_it_leaves_over() -> None:
    bench = Bench()
    bench.use("busy", 6)
    assert bench.ask("large", 8)[1] == []
    assert kinds(bench.ask("small", 2)[1]) == ["Load"]
    assert bench.ask("too much", 1)[1] == []


def test_busy_model_serves_others_until_patience_ends_then_makes_room() -> None:
    bench = Bench(patience_s=5)
    first = bench.use("a", 8)
    bench.now = 100
    bench.ask("b", 8)
    assert bench.core.next_deadline() == 105
    second, effects = bench.ask("a")
    assert kinds(effects) == ["Grant"]
    assert bench.after(5) == []
    assert bench.ask("a")[1] == []
    assert bench.finish(first) == []
    effects = bench.finish(second)
    assert kinds(effects) == ["Unload"]
    effects = bench.obey(effects[0])
    assert isinstance(effects[0], Load)
    assert effects[0].request.key == "b"


def test_claim_ends_with_the_request_that_made_it() -> None:
    bench = Bench(patience_s=5)
    bench.use("a", 8)
    impatient, _ = bench.ask("b", 8)
    bench.after(10)
    waits, effects = bench.ask("a")
    assert effects == []
    effects = bench.core.cancelled(bench.now, impatient)
    assert effects == [Grant(ticket=waits, load_id=bench.id_of("a"))]


def test_new_model_serves_those_who_waited_before_it_makes_room() -> None:
    bench = Bench(patience_s=5)
    waits, _ = bench.ask("a", 8)
    bench.ask("b", 8)
    bench.now = 100
    effects = bench.core.loaded(bench.now, bench.id_of("a"))
    assert effects == [Grant(ticket=waits, load_id=bench.id_of("a"))]
    assert kinds(bench.ask("a")[1]) == ["Grant"], "it may serve for its own patience"
    bench.after(5)
    assert bench.ask("a")[1] == []


@settings(deadline=None, max_examples=60)
@given(
    traffic=st.lists(st.sampled_from("ab"), min_size=30, max_size=60),
    patience_s=st.sampled_from([0.0, 1.0, 5.0]),
)
def test_steady_traffic_starves_nobody(traffic: list[str], patience_s: float) -> None:
    """Someone always uses ``a`` or ``b``; ``c`` needs the memory of both and gets it."""
    bench = Bench(patience_s=patience_s, max_queue=10_000)
    running = [bench.use("a", 5), bench.use("b", 5)]
    wanted, effects = bench.ask("c", 10)
    for step, key in enumerate(traffic * 10):
        bench.now += 1
        effects += bench.core.tick(bench.now)
        effects += bench.ask(key, 5)[1]
        if step % 2 and running:
            effects += bench.finish(running.pop(0))
        todo, effects = effects, []
        for effect in todo:
            if isinstance(effect, Grant):
                running.append(effect.ticket)
            effects += bench.obey(effect)
        if wanted in running:
            return
    pytest.fail("starved")
