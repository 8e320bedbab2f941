"""Real crashes of the real engine: what is known of them, and that it is told to nobody else."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from appliance.crashes import CrashFolder
from server.coroner import Coroner
from server.errors import HeldBackError, RunnerCrashedError
from server.runner import protocol
from server.runner.process import Runner, RunnerLimits, Stream
from server.wishes import SamplingOptions
from tests.engine.runner_driver import DEMO, settings
from tests.fakes import crashing_runner
from tests.fakes.crashing_runner import ABORT, FAULT, HANG, poison

pytestmark = pytest.mark.engine

COMMAND = (sys.executable, "-P", crashing_runner.__file__)
SECRET = "zebra harpsichord 471193"


@pytest.fixture
def start() -> Iterator[Callable[..., Runner]]:
    runners: list[Runner] = []

    def begin(**limits: float) -> Runner:
        load = protocol.Load(model_path=str(DEMO), settings=settings())
        runners.append(Runner.start(load, command=COMMAND, limits=RunnerLimits(**limits)))
        return runners[-1]

    yield begin
    for runner in runners:
        runner.stop(1.0)


def ask(runner: Runner, *, tokens: tuple[int, ...] = (), prompt: str = "", more: int = 5) -> Stream:
    sampling = SamplingOptions(temperature=0.0, num_predict=more)
    return runner.generate(protocol.Generate(id=0, tokens=tokens, prompt=prompt, sampling=sampling))


def end(stream: Stream) -> str:
    """How a stream ends that is to end with the runner's death."""
    try:
        while not stream.ended:
            stream.next(60)
    except RunnerCrashedError as error:
        return str(error)
    return "it ended without an error"


def test_failed_assertion_is_told_with_its_text(start: Callable[..., Runner]) -> None:
    runner = start()
    message = end(ask(runner, tokens=poison(ABORT)))
    autopsy = runner.autopsy
    assert autopsy is not None
    assert autopsy.cause == "SIGABRT"
    assert "GGML_ASSERT(" in autopsy.assertion
    assert message == f"the model's runner was killed by SIGABRT: {autopsy.assertion}"
    assert "/" not in autopsy.assertion.partition(":")[0]
    assert any(line.endswith(" decode") for line in autopsy.stack)
    assert autopsy.ready


def test_segmentation_fault_leaves_the_frames(start: Callable[..., Runner]) -> None:
    runner = start()
    assert "SIGSEGV" in end(ask(runner, tokens=poison(FAULT)))
    autopsy = runner.autopsy
    assert autopsy is not None
    assert autopsy.stack[0] == "Fatal Python error: Segmentation fault"
    assert not autopsy.from_outside


def test_decode_that_hangs_is_ended_though_the_other_thread_answers(
    start: Callable[..., Runner],
) -> None:
    runner = start(stall_s=0.6)
    stream = ask(runner, tokens=poison(HANG))
    while runner.alive:
        with contextlib.suppress(RunnerCrashedError):
            runner.tokenize("hello")
    assert "made no step for" in end(stream)


def test_record_names_requests_and_steps_and_holds_no_text(
    start: Callable[..., Runner], tmp_path: Path
) -> None:
    runner = start()
    coroner = Coroner(folder=CrashFolder(tmp_path), engine_build="build")
    said = ask(runner, prompt=SECRET, more=400)
    first = said.next(60)
    assert first is not None
    with coroner.watching(runner.pid, "mark"):
        end(ask(runner, tokens=poison(ABORT)))
        end(said)
        assert runner.autopsy is not None
        coroner.died(name="demo", model="k", settings=settings(), autopsy=runner.autopsy)
    ((_, record),) = CrashFolder(tmp_path).records()
    assert record.requests == (1, 2)
    assert record.steps >= 1
    assert record.held_back == ("mark",)
    assert dict(record.settings) == {**asdict(settings()), "tensor_split": [], "workers": []}
    with pytest.raises(HeldBackError), coroner.watching(2, "mark"):
        pass
    (path,) = tmp_path.glob("*.json")
    text = path.read_text() + json.dumps(runner.log_lines)
    for word in (*SECRET.split(), f"{ABORT}, {ABORT}", f'"{first.text.strip()}"'):
        if len(word) > 2:
            assert word not in text


def test_answers_of_a_runner_that_did_not_crash_are_the_usual_ones(
    start: Callable[..., Runner],
) -> None:
    runner = start()
    stream = ask(runner, prompt="hello", more=3)
    while not stream.ended:
        row = stream.next(60)
        assert row is not None
        assert row.fault is None
    assert runner.autopsy is None
