from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hwprobe import errors as probe_errors
from hwprobe.estimate import MemoryEstimate, MemoryTerm
from hwprobe.placement import Placement, Wish
from hwprobe.settings import EngineSettings
from server.errors import (
    BusyError,
    ClientGoneError,
    DoesNotFitError,
    LoadFailedError,
    RunnerCrashedError,
)
from server.runner import protocol
from server.runner.process import Runner, RunnerLimits, Stream
from server.scheduler import Demand, Lease, Scheduler, SchedulerLimits
from tests.fakes import fake_runner

BUDGETS = {"host": 10, "gpu0": 10}
spawn = partial(Runner.spawn, command=fake_runner.command(), limits=RunnerLimits(term_s=0.2))


class Site:
    """A scheduler, models that are scripts, and the memory they are said to take."""

    def __init__(self, tmp_path: Path) -> None:
        self._tmp_path = tmp_path
        self._schedulers: list[Scheduler] = []
        self.loads: list[protocol.Load] = []

    def scheduler(self, **changes: Any) -> Scheduler:
        limits = changes.pop("limits", {})
        values: dict[str, Any] = {
            "budgets": BUDGETS,
            "start_runner": self.start,
            "limits": SchedulerLimits(**{"stop_grace_s": 1.0, "patience_s": 0.2, **limits}),
        }
        self._schedulers.append(Scheduler(**{**values, **changes}))
        return self._schedulers[-1]

    def start(self, load: protocol.Load) -> Runner:
        self.loads.append(load)
        return spawn(load)

    def model(
        self,
        name: str,
        need: int = 1,
        *,
        wish: Wish | None = None,
        keep_alive_s: float | None = None,
        pinned: bool = False,
        pools: tuple[str, ...] = ("host",),
        **script: Any,
    ) -> Demand:
        path = self._tmp_path / f"{name}.json"
        path.write_text(json.dumps(script), encoding="utf-8")
        wish = wish or Wish()
        return Demand(
            name=f"{name}:latest",
            key=name,
            model_path=path,
            plan=partial(plan, need, wish, pools),
            wish=wish,
            keep_alive_s=keep_alive_s,
            pinned=pinned,
        )

    def close(self) -> None:
        for scheduler in self._schedulers:
            scheduler.close(0)


def plan(need: int, wish: Wish, pools: tuple[str, ...], taken: Mapping[str, int]) -> Placement:
    """The first pool that has room takes the model; more taken makes it refuse."""
    for pool in pools:
        if taken.get(pool, 0) + need <= BUDGETS[pool]:
            term = MemoryTerm(name="weights", pool=pool, size_bytes=need)
            return Placement(
                variant="F16",
                settings=EngineSettings(
                    num_ctx=wish.num_ctx or 256, slots=2, num_gpu=int(pool != "host")
                ),
                estimate=MemoryEstimate(terms=(term,)),
                budgets=BUDGETS,
                reasons=(),
                rejected=(),
            )
    raise probe_errors.DoesNotFitError("no variant fits this machine: 1 B short", hint="buy more")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.close()


def ask(lease: Lease, prompt: str) -> Stream:
    return lease.runner.generate(protocol.Generate(id=0, prompt=prompt, add_bos=False))


def answer(lease: Lease, prompt: str) -> str:
    return rest(ask(lease, prompt))


def rest(stream: Stream) -> str:
    text = ""
    while not stream.ended:
        row = stream.next(10)
        assert row is not None
        text += row.text
    return text


def eventually(holds: Callable[[], bool]) -> None:
    """Wait up to 10 s for something that other threads bring about."""
    end_s = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end_s, "it did not come about in 10 s"
        time.sleep(0.01)


def in_background(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def pids(scheduler: Scheduler) -> dict[str, int]:
    return {model.key: model.pid for model in scheduler.loaded()}


# --- refusals -----------------------------------------------------------------------------------


def test_model_that_cannot_be_placed_is_refused_with_the_plans_words(site: Site) -> None:
    with pytest.raises(DoesNotFitError, match="1 B short") as caught:
        site.scheduler().acquire(site.model("a", 11))
    assert caught.value.hint == "buy more"


def test_model_that_fits_only_without_a_pinned_one_is_refused(site: Site) -> None:
    scheduler = site.scheduler()
    scheduler.acquire(site.model("pinned", 6, pinned=True)).close()
    with pytest.raises(DoesNotFitError):
        scheduler.acquire(site.model("a", 6))


def test_failed_load_is_told_to_everyone_who_waited_and_tried_again(site: Site) -> None:
    scheduler = site.scheduler()
    demand = site.model("a", load_s=0.3, fail_load="unknown architecture")
    errors: list[str] = []

    def client() -> None:
        with pytest.raises(LoadFailedError) as caught:
            scheduler.acquire(demand)
        errors.append(str(caught.value))

    threads = [in_background(client) for _ in range(5)]
    for thread in threads:
        thread.join()
    assert errors == ["unknown architecture"] * 5
    site.model("a")  # the file is replaced by a good one
    with scheduler.acquire(demand) as lease:
        assert answer(lease, "well now") == "well now"


def test_self_test_that_finds_nothing_that_works_is_a_failed_load(site: Site) -> None:
    def check(path: Path, settings: EngineSettings) -> EngineSettings:
        del settings
        raise probe_errors.EngineCheckError(f"the engine crashes on {path.name}")

    with pytest.raises(LoadFailedError, match=r"the engine crashes on a\.json"):
        site.scheduler(check=check).acquire(site.model("a"))
    assert site.loads == []


def test_full_queue_refuses_in_ollamas_words(site: Site) -> None:
    scheduler = site.scheduler(limits={"max_queue": 1})
    slow = site.model("slow", hang_load=True)
    left = threading.Event()

    def client() -> None:
        with pytest.raises(ClientGoneError):
            scheduler.acquire(slow, gone=left.is_set)

    thread = in_background(client)
    eventually(lambda: scheduler.waiting == 1)
    with pytest.raises(BusyError, match=r"server busy, please try again\.  maximum pending"):
        scheduler.acquire(site.model("b"))
    left.set()
    thread.join()
    with scheduler.acquire(site.model("b")) as lease:
        assert answer(lease, "served") == "served"


def test_client_that_leaves_does_not_abort_the_load(site: Site) -> None:
    scheduler = site.scheduler()
    with pytest.raises(ClientGoneError, match="request canceled"):
        scheduler.acquire(site.model("a", load_s=0.5), gone=lambda: True)
    assert scheduler.waiting == 0
    eventually(lambda: set(pids(scheduler)) == {"a"})
    assert len(site.loads) == 1


def test_closed_scheduler_refuses(site: Site) -> None:
    scheduler = site.scheduler()
    scheduler.close(0)
    with pytest.raises(BusyError, match="server is stopping"):
        scheduler.acquire(site.model("a"))
    scheduler.close(0)


# --- reuse --------------------------------------------------------------------------------------


def test_requests_share_one_runner(site: Site) -> None:
    scheduler = site.scheduler()
    with scheduler.acquire(site.model("a")) as first, scheduler.acquire(site.model("a")) as second:
        assert first.runner is second.runner
        assert scheduler.loaded()[0].in_flight == 2
    assert len(site.loads) == 1


def test_larger_context_reloads_and_smaller_one_does_not(site: Site) -> None:
    scheduler = site.scheduler()
    for num_ctx, loads in ((256, 1), (1024, 2), (512, 2), (None, 2)):
        with scheduler.acquire(site.model("a", wish=Wish(num_ctx=num_ctx))) as lease:
            assert lease.settings.num_ctx == max(num_ctx or 0, 256 if loads == 1 else 1024)
        assert len(site.loads) == loads


def test_settings_the_self_test_changed_do_not_reload(site: Site) -> None:
    def check(path: Path, settings: EngineSettings) -> EngineSettings:
        del path
        return EngineSettings(num_ctx=settings.num_ctx, threads=1, repack=False)

    scheduler = site.scheduler(check=check)
    demand = site.model("a", wish=Wish(threads=8))
    for _ in range(3):
        with scheduler.acquire(demand) as lease:
            assert lease.settings.threads == 1
    assert len(site.loads) == 1
    assert not site.loads[0].settings.repack


def test_lease_closed_twice_counts_once(site: Site) -> None:
    scheduler = site.scheduler()
    lease, other = (scheduler.acquire(site.model("a")) for _ in range(2))
    lease.close()
    lease.close()
    assert scheduler.loaded()[0].in_flight == 1
    other.close()


# --- keep_alive ---------------------------------------------------------------------------------


def test_zero_unloads_at_once_and_ends_the_process(site: Site) -> None:
    scheduler = site.scheduler()
    with scheduler.acquire(site.model("a", keep_alive_s=0)) as lease:
        pid = lease.runner.pid
    eventually(lambda: not Path(f"/proc/{pid}").exists())
    assert scheduler.loaded() == ()


def test_seconds_unload_when_they_have_passed(site: Site) -> None:
    scheduler = site.scheduler()
    scheduler.acquire(site.model("a", keep_alive_s=0.3)).close()
    (model,) = scheduler.loaded()
    assert model.expires_at_s is not None
    assert model.expires_at_s <= time.monotonic() + 0.3
    eventually(lambda: scheduler.loaded() == ())
    assert time.monotonic() >= model.expires_at_s


def test_negative_stays_and_has_no_expiry(site: Site) -> None:
    scheduler = site.scheduler()
    scheduler.acquire(site.model("a", keep_alive_s=0.1)).close()
    scheduler.acquire(site.model("a", keep_alive_s=-1)).close()
    time.sleep(0.3)
    assert [model.expires_at_s for model in scheduler.loaded()] == [None]


def test_default_is_the_servers(site: Site) -> None:
    scheduler = site.scheduler(limits={"keep_alive_s": 0.0})
    scheduler.acquire(site.model("a")).close()
    eventually(lambda: scheduler.loaded() == ())


def test_model_in_use_does_not_expire(site: Site) -> None:
    scheduler = site.scheduler()
    with scheduler.acquire(site.model("a", keep_alive_s=0.05)) as lease:
        time.sleep(0.3)
        assert answer(lease, "still here") == "still here"
        (model,) = scheduler.loaded()
        assert model.expires_at_s is not None
        assert model.expires_at_s > time.monotonic() - 0.05


# --- memory -------------------------------------------------------------------------------------


def test_ps_tells_memory_per_pool_and_context(site: Site) -> None:
    scheduler = site.scheduler()
    scheduler.acquire(site.model("cpu", 3)).close()
    scheduler.acquire(site.model("gpu", 4, pools=("gpu0",), wish=Wish(num_ctx=512))).close()
    told = [(m.name, m.size_bytes, m.vram_bytes, m.num_ctx) for m in scheduler.loaded()]
    assert told == [("cpu:latest", 3, 0, 256), ("gpu:latest", 4, 4, 512)]


def test_idle_model_makes_room(site: Site) -> None:
    scheduler = site.scheduler()
    scheduler.acquire(site.model("a", 6)).close()
    with scheduler.acquire(site.model("b", 6)) as lease:
        assert answer(lease, "here") == "here"
    assert set(pids(scheduler)) == {"b"}


def test_model_that_fits_on_the_gpu_evicts_rather_than_fall_back_to_the_cpu(site: Site) -> None:
    scheduler = site.scheduler()
    scheduler.acquire(site.model("a", 6, pools=("gpu0",))).close()
    with scheduler.acquire(site.model("b", 6, pools=("gpu0", "host"))) as lease:
        assert lease.settings.num_gpu == 1
    assert set(pids(scheduler)) == {"b"}


def test_model_falls_back_to_the_cpu_rather_than_wait_for_a_busy_one(site: Site) -> None:
    scheduler = site.scheduler()
    with (
        scheduler.acquire(site.model("a", 6, pools=("gpu0",))),
        scheduler.acquire(site.model("b", 6, pools=("gpu0", "host"))) as lease,
    ):
        assert lease.settings.num_gpu == 0


def test_load_waits_for_gpu_counters_that_lag(site: Site) -> None:
    free = {"gpu0": 2}
    scheduler = site.scheduler(free_bytes=lambda: dict(free))
    scheduler.acquire(site.model("a", 8, pools=("gpu0",))).close()
    granted = threading.Event()

    def client() -> None:
        with scheduler.acquire(site.model("b", 8, pools=("gpu0",))):
            granted.set()

    thread = in_background(client)
    eventually(lambda: scheduler.loaded() == ())
    assert not granted.wait(0.5), "it was loaded into memory that is not free yet"
    free["gpu0"] = 10
    assert granted.wait(10)
    thread.join()


# --- fairness -----------------------------------------------------------------------------------


def test_loaded_model_answers_while_another_loads(site: Site) -> None:
    scheduler = site.scheduler()
    scheduler.acquire(site.model("a")).close()
    left = threading.Event()

    def client() -> None:
        with pytest.raises(ClientGoneError):
            scheduler.acquire(site.model("slow", hang_load=True), gone=left.is_set)

    thread = in_background(client)
    eventually(lambda: len(site.loads) == 2)
    with scheduler.acquire(site.model("a")) as lease:
        assert answer(lease, "at once") == "at once"
    left.set()
    thread.join()


def test_steady_traffic_makes_room_after_a_while(site: Site) -> None:
    scheduler = site.scheduler()
    over = threading.Event()
    served: list[str] = []

    def traffic() -> None:
        while not over.is_set():
            with scheduler.acquire(site.model("a", 6, step_s=0.01)) as lease:
                served.append(answer(lease, "one two three four five"))

    threads = [in_background(traffic) for _ in range(3)]
    eventually(lambda: len(served) > 3)
    with scheduler.acquire(site.model("b", 6)) as lease:
        assert answer(lease, "my turn") == "my turn"
    so_far = len(served)
    eventually(lambda: len(served) > so_far + 3)
    over.set()
    for thread in threads:
        thread.join()


def test_many_clients_and_models_in_little_memory_are_all_served(site: Site) -> None:
    scheduler = site.scheduler(limits={"patience_s": 0.05})
    answers: list[bool] = []

    def client(number: int) -> None:
        for turn in range(4):
            name, need = (("a", 4), ("b", 4), ("c", 7), ("d", 2))[(number + turn) % 4]
            keep_alive_s = (0, 0.05, 300)[(number + turn) % 3]
            demand = site.model(name, need, keep_alive_s=keep_alive_s)
            with scheduler.acquire(demand) as lease:
                prompt = f"client {number} turn {turn}"
                answers.append(answer(lease, prompt) == prompt)

    threads = [in_background(partial(client, number)) for number in range(10)]
    for thread in threads:
        thread.join()
    assert answers == [True] * 40
    assert scheduler.waiting == 0


# --- crashes ------------------------------------------------------------------------------------


@pytest.mark.faults
def test_killed_runner_costs_its_own_requests_only(site: Site) -> None:
    scheduler = site.scheduler()
    with (
        scheduler.acquire(site.model("a", step_s=0.02)) as doomed,
        scheduler.acquire(site.model("b", step_s=0.02)) as other,
    ):
        stream, unharmed = ask(doomed, "word " * 100), ask(other, "word " * 20)
        assert stream.next(10) is not None
        os.kill(doomed.runner.pid, signal.SIGKILL)
        with pytest.raises(RunnerCrashedError, match="SIGKILL"):
            rest(stream)
        assert doomed.crashed
        with scheduler.acquire(site.model("a")) as fresh:
            assert fresh.runner is not doomed.runner
            assert answer(fresh, "as if nothing had been") == "as if nothing had been"
        assert rest(unharmed) == "word " * 20
        assert not other.crashed
    assert [model.in_flight for model in scheduler.loaded()] == [0, 0]


@pytest.mark.faults
def test_runner_killed_while_idle_is_replaced(site: Site) -> None:
    scheduler = site.scheduler()
    scheduler.acquire(site.model("a")).close()
    dead = pids(scheduler)["a"]
    os.kill(dead, signal.SIGKILL)
    eventually(lambda: scheduler.loaded() == ())
    with scheduler.acquire(site.model("a")) as lease:
        assert lease.runner.pid != dead
        assert answer(lease, "fresh") == "fresh"


@pytest.mark.faults
def test_runner_killed_while_loading_is_a_failed_load(site: Site) -> None:
    scheduler = site.scheduler()
    demand = site.model("a", crash_load=True, last_words="out of memory")
    with pytest.raises(LoadFailedError, match=r"while loading: .*SIGKILL: out of memory"):
        scheduler.acquire(demand)
    site.model("a")
    scheduler.acquire(demand).close()


# --- unload and close ---------------------------------------------------------------------------


def test_unload_of_a_busy_model_waits_and_newcomers_get_a_fresh_one(site: Site) -> None:
    scheduler = site.scheduler()
    with scheduler.acquire(site.model("a")) as lease:
        assert scheduler.unload("a")
        assert answer(lease, "let me finish") == "let me finish"
        left = threading.Event()

        def newcomer() -> None:
            with scheduler.acquire(site.model("a"), gone=left.is_set) as fresh:
                assert fresh.runner is not lease.runner

        thread = in_background(newcomer)
        eventually(lambda: scheduler.waiting == 1)
        assert len(site.loads) == 1
    thread.join()
    assert len(site.loads) == 2


def test_unload_of_an_idle_model_ends_it_and_of_an_unknown_one_says_so(site: Site) -> None:
    scheduler = site.scheduler()
    scheduler.acquire(site.model("a", pinned=True)).close()
    assert scheduler.unload("a")
    eventually(lambda: scheduler.loaded() == ())
    assert not scheduler.unload("a")
    assert not scheduler.unload("never heard of")


def test_close_lets_requests_in_flight_finish(site: Site) -> None:
    scheduler = site.scheduler()
    lease = scheduler.acquire(site.model("a", step_s=0.02))
    pid = lease.runner.pid
    texts: list[str] = []

    def client() -> None:
        with lease:
            texts.append(answer(lease, "word " * 20))

    thread = in_background(client)
    scheduler.close(30)
    thread.join()
    assert texts == ["word " * 20]
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.faults
def test_close_ends_what_outlasts_its_time(site: Site) -> None:
    scheduler = site.scheduler()
    lease = scheduler.acquire(site.model("a", hang=True))
    stubborn = scheduler.acquire(site.model("b", ignore_close=True, ignore_term=True))
    stream = ask(lease, "never answered")
    errors: list[Exception] = []

    def waits_for_a_load() -> None:
        with pytest.raises(BusyError) as caught:
            scheduler.acquire(site.model("c", hang_load=True))
        errors.append(caught.value)

    thread = in_background(waits_for_a_load)
    eventually(lambda: len(site.loads) == 3)
    scheduler.close(0.1)
    with pytest.raises(RunnerCrashedError, match="has been stopped"):
        stream.next(10)
    thread.join()
    assert [str(error) for error in errors] == ["server is stopping"]
    for runner in (lease.runner, stubborn.runner):
        assert not Path(f"/proc/{runner.pid}").exists()
    lease.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("load-")]
