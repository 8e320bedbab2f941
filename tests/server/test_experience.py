"""Loads that get no memory step down; loads and answers teach; budgets are measured anew."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hwprobe.calibrate import keep_calibration, read_calibration
from hwprobe.estimate import HOST, KV_CACHE, estimate
from hwprobe.gguf import ModelProfile, model_profile, read_header
from hwprobe.ladder import step_down
from hwprobe.loads import LOADS_FILE, Loads
from hwprobe.placement import Wish
from hwprobe.settings import EngineSettings
from hwprobe.speed import Calibration, speed_key
from server.errors import DoesNotFitError, LoadFailedError
from server.experience import Experience, difference, private_bytes_of, private_plan_bytes
from server.residents import Choice
from server.runner import protocol
from server.runner.process import RUNNER_COMMAND, Runner
from tests.server.test_scheduler import Site, answer, eventually

DEMO = Path(__file__).parents[1] / "demo-model" / "demo-f16.gguf"
MIB = 1 << 20


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def profile() -> ModelProfile:
    return model_profile(read_header(DEMO))


def ladder(
    profile: ModelProfile, need: Mapping[str, int]
) -> Callable[[EngineSettings], tuple[str, Choice] | None]:
    """The real ladder, with the needs of the simulator."""

    def lesser(settings: EngineSettings) -> tuple[str, Choice] | None:
        step = step_down(profile, Wish(), settings)
        if step is None:
            return None
        return step.words, Choice(settings=step.settings, need_bytes=need)

    return lesser


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / LOADS_FILE).read_text().splitlines()]


def test_load_that_gets_no_memory_is_tried_smaller_and_each_step_is_recorded(
    site: Site, profile: ModelProfile, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    experience = Experience(loads=Loads(tmp_path / "engine", identity="b"))
    scheduler = site.scheduler(experience=experience)
    demand = replace(
        site.model("big", need=4, most_cells=256),
        profile=profile,
        lesser=ladder(profile, {"host": 3}),
    )
    with scheduler.acquire(demand) as lease:
        assert answer(lease, "hello") == "hello"
        assert lease.settings.kv_cells <= 256
        (loaded,) = scheduler.loaded()
        assert loaded.size_bytes == 3, "what it takes is what it was loaded with"
    (record,) = records(tmp_path / "engine")
    assert record["steps"] == [
        "micro-batches of 128 tokens",
        "micro-batches of 64 tokens",
        "weights in the layout of the file",
        "KV cache as q8_0",
        "1 slot(s)",
    ]
    assert record["planned"]["slots"] == 2
    assert record["settings"]["slots"] == 1
    assert sum("trying with less" in one.getMessage() for one in caplog.records) == 5


def test_load_that_gets_no_memory_at_all_fails_with_the_engines_words(
    site: Site, profile: ModelProfile
) -> None:
    demand = replace(
        site.model("huge", most_cells=0), profile=profile, lesser=ladder(profile, {"host": 1})
    )
    with pytest.raises(LoadFailedError, match="failed to allocate buffer for kv cache"):
        site.scheduler().acquire(demand)


def test_other_failures_are_not_tried_smaller(site: Site, profile: ModelProfile) -> None:
    demand = replace(
        site.model("bad", fail_load="invalid magic"),
        profile=profile,
        lesser=ladder(profile, {"host": 1}),
    )
    with pytest.raises(LoadFailedError, match="invalid magic"):
        site.scheduler().acquire(demand)
    assert len(site.loads) == 1


def test_step_that_would_take_more_than_there_is_is_not_taken(
    site: Site, profile: ModelProfile
) -> None:
    """Layers that leave a GPU need host memory that another model holds."""
    scheduler = site.scheduler()
    other = scheduler.acquire(site.model("other", need=8))
    demand = replace(
        site.model("big", need=2, most_cells=0),
        profile=profile,
        lesser=ladder(profile, {"host": 3}),
    )
    with pytest.raises(LoadFailedError, match="failed to allocate"):
        scheduler.acquire(demand)
    assert len(site.loads) == 2
    other.close()


def test_budget_is_measured_before_a_load(site: Site) -> None:
    """Other programs have taken memory since the server started."""
    now = {"host": 10}
    seen: list[Mapping[str, int]] = []

    def measure(taken: Mapping[str, int]) -> Mapping[str, int]:
        seen.append(dict(taken))
        return now

    scheduler = site.scheduler(measure=measure)
    first = scheduler.acquire(site.model("first", need=4))
    now["host"] = 6
    with pytest.raises(DoesNotFitError, match="expected at most 6 B on host, found 7 B"):
        scheduler.acquire(site.model("second", need=7))
    assert seen == [{}, {"host": 4}]
    first.close()
    with scheduler.acquire(site.model("third", need=5)):
        eventually(lambda: [one.name for one in scheduler.loaded()] == ["third:latest"])
    now["host"] = 10
    with scheduler.acquire(site.model("first", need=4)):
        assert len(scheduler.loaded()) == 2, "and it is seen when they gave it back"


def test_different_contexts_do_not_reload_in_turns(site: Site) -> None:
    scheduler = site.scheduler()
    for ctx in (512, 1024, 512, 256, 1024, 768, 512):
        with scheduler.acquire(site.model("m", wish=Wish(num_ctx=ctx))) as lease:
            assert answer(lease, "x") == "x"
    assert [load.settings.num_ctx for load in site.loads] == [512, 1024]


def test_answer_that_was_alone_teaches_the_speed_and_others_do_not(
    profile: ModelProfile, tmp_path: Path
) -> None:
    settings = EngineSettings(num_ctx=256)
    key = speed_key(profile, settings)
    known = Calibration(
        identity="i", threads=1, bandwidth_bytes_per_s=1e9, block_s=0.0, operations_per_s=1e9
    )
    keep_calibration(tmp_path, known)
    experience = Experience(
        loads=Loads(tmp_path, identity="b"),
        calibration_folder=tmp_path,
        identity="i",
        private_bytes=lambda _: 1,
    )
    short = protocol.Row(
        id=1, done="stop", prompt_tokens=10, completion_tokens=99, prompt_s=1.0, eval_s=1.0
    )
    long = replace(short, prompt_tokens=128, completion_tokens=101, prompt_s=0.5, eval_s=2.0)
    for row in (short, replace(long, done="cancelled"), replace(long, cached_tokens=100), long):
        experience.answered(profile, settings, row)
    experience.leaves(name="m", profile=profile, settings=settings, buffers={}, pid=0)
    kept = read_calibration(tmp_path, "i")
    assert kept is not None
    assert (kept.measured[key].decode, kept.measured[key].prompt) == (50.0, 256.0)
    assert kept.measured[key].runs == 1


def test_requests_that_share_a_runner_are_not_timed(site: Site) -> None:
    scheduler = site.scheduler()
    rows: list[protocol.Row] = []
    with scheduler.acquire(site.model("m", step_s=0.05)) as lease:
        lease.runner.on_alone(rows.append)
        assert answer(lease, "alone") == "alone"
        eventually(lambda: len(rows) == 1)
        streams = [
            lease.runner.generate(protocol.Generate(id=0, prompt="a b c d", add_bos=False))
            for _ in range(2)
        ]
        for stream in streams:
            while not stream.ended:
                stream.next(10)
        assert answer(lease, "again") == "again"
        eventually(lambda: len(rows) == 2)
    assert [row.completion_tokens for row in rows] == [1, 1]


def test_difference_between_formulas_and_engine_is_told_with_its_terms(
    profile: ModelProfile,
) -> None:
    settings = EngineSettings(num_ctx=8192, slots=4)
    plan = estimate(profile, settings)
    own = plan.term_bytes(KV_CACHE) + plan.term_bytes("compute")
    assert difference(plan, {"CPU": own, "CPU_Mapped": 999 * MIB}, settings) == ""
    line = difference(plan, {"CPU": 2 * own}, settings)
    assert "KV cache" in line
    assert "less than by the engine" in line
    assert difference(plan, {}, settings) == ""


def test_load_that_held_more_than_planned_widens_the_margin_and_says_so(
    profile: ModelProfile, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = EngineSettings(num_ctx=512)
    expected = private_plan_bytes(estimate(profile, settings), {}, settings)
    loads = Loads(tmp_path, identity="b")
    experience = Experience(loads=loads, private_bytes=lambda _: expected * 11 // 10)
    experience.leaves(name="m", profile=profile, settings=settings, buffers={}, pid=0)
    assert loads.margin(profile).excess_share == pytest.approx(0.1, abs=0.001)
    assert experience.margin(profile) == loads.margin(profile)
    assert any("the margin grows" in one.getMessage() for one in caplog.records)
    (record,) = records(tmp_path)
    assert record["margin"]["runs"] == 1


def test_process_that_is_gone_teaches_nothing(profile: ModelProfile, tmp_path: Path) -> None:
    loads = Loads(tmp_path, identity="b")
    settings = EngineSettings(num_ctx=512)
    Experience(loads=loads).leaves(
        name="m", profile=profile, settings=settings, buffers={}, pid=2**22 + 1
    )
    assert loads.margin(profile).runs == 0


@pytest.mark.engine
def test_real_engine_without_memory_steps_down_and_serves(
    site: Site, profile: ModelProfile, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The address space of the runner ends before the cache does that was planned."""
    caplog.set_level(logging.INFO)
    limited = ("prlimit", f"--as={1200 * MIB}", *RUNNER_COMMAND)
    experience = Experience(loads=Loads(tmp_path / "engine", identity="b"))
    scheduler = site.scheduler(
        budgets={"host": 64 << 30},
        experience=experience,
        start_runner=lambda load: Runner.spawn(load, command=limited),
    )
    settings = EngineSettings(num_ctx=8192 * 16, slots=4, num_ubatch=64, repack=False)

    demand = site.model("real", need=1)
    planned = demand.plan({})
    demand = replace(
        demand,
        model_path=DEMO,
        profile=profile,
        plan=lambda _: replace(planned, settings=settings),
        lesser=ladder(profile, {"host": 1}),
    )
    with scheduler.acquire(demand) as lease:
        assert answer(lease, "Hello")
        assert lease.settings.kv_cells < settings.kv_cells
        pid = lease.runner.pid
        held = private_bytes_of(pid)
    (record,) = records(tmp_path / "engine")
    assert record["steps"]
    assert held is not None
    assert record["private_measured_bytes"] <= record["private_predicted_bytes"]
    plan = estimate(profile, lease.settings)
    assert held <= plan.total_bytes(HOST)
