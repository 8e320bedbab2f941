from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hwprobe.settings import EngineSettings
from server.errors import BadRequestError, LoadFailedError, RunnerCrashedError
from server.runner import protocol
from server.runner.process import Runner, RunnerLimits, Stream
from server.wishes import SamplingOptions
from tests.fakes import fake_runner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LIMITS = RunnerLimits(term_s=0.2)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Runner]]:
    """Starts fake runners by script, and stops them at the end."""
    runners: list[Runner] = []

    def spawn(
        *,
        limits: RunnerLimits = LIMITS,
        on_progress: Callable[[float], None] = print,
        **script: Any,
    ) -> Runner:
        path = tmp_path / f"{len(runners)}.json"
        path.write_text(json.dumps(script), encoding="utf-8")
        load = protocol.Load(model_path=str(path), settings=EngineSettings(num_ctx=256, slots=2))
        runners.append(
            Runner.spawn(
                load, command=fake_runner.command(), limits=limits, on_progress=on_progress
            )
        )
        return runners[-1]

    yield spawn
    for runner in runners:
        runner.stop(1.0)
        assert not Path(f"/proc/{runner.pid}").exists()


def ask(runner: Runner, prompt: str, **sampling: Any) -> Stream:
    return runner.generate(
        protocol.Generate(id=0, prompt=prompt, add_bos=False, sampling=SamplingOptions(**sampling))
    )


def rest(stream: Stream) -> list[protocol.Row]:
    rows = []
    while not stream.ended:
        row = stream.next(10)
        assert row is not None, "no row in 10 s"
        rows.append(row)
    return rows


def text(rows: list[protocol.Row]) -> str:
    return "".join(row.text for row in rows)


# --- refusals and deaths ------------------------------------------------------------------------


def test_command_that_does_not_exist_is_a_failed_load(tmp_path: Path) -> None:
    load = protocol.Load(model_path="x", settings=EngineSettings(num_ctx=256))
    with pytest.raises(LoadFailedError, match="could not be started"):
        Runner.start(load, command=(str(tmp_path / "missing"),))


def test_refused_load_carries_the_runners_words(start: Callable[..., Runner]) -> None:
    runner = start(fail_load="unknown model architecture: 'nonsense'")
    with pytest.raises(LoadFailedError, match="unknown model architecture: 'nonsense'"):
        runner.wait_ready()
    assert not runner.alive


def test_death_while_loading_names_the_signal_and_the_last_words(
    start: Callable[..., Runner],
) -> None:
    runner = start(crash_load=True, crash_signal=signal.SIGABRT, last_words="GGML_ASSERT(x) failed")
    with pytest.raises(LoadFailedError, match=r"SIGABRT: GGML_ASSERT\(x\) failed"):
        runner.wait_ready()


def test_load_without_progress_is_given_up(start: Callable[..., Runner]) -> None:
    runner = start(hang_load=True, limits=RunnerLimits(load_s=0.2))
    with pytest.raises(LoadFailedError, match="made no progress"):
        runner.wait_ready()


def test_load_with_progress_outlives_the_limit(start: Callable[..., Runner]) -> None:
    seen: list[float] = []
    runner = start(load_s=2.4, limits=RunnerLimits(load_s=1.5), on_progress=seen.append)
    assert runner.wait_ready().num_ctx == 256
    assert seen == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.faults
def test_killed_runner_ends_every_stream_with_the_signals_name(
    start: Callable[..., Runner],
) -> None:
    runner = start(step_s=0.02, log=["engine: ready"])
    runner.wait_ready()
    streams = [ask(runner, "one two three " * 50) for _ in range(4)]
    assert streams[0].next(10) is not None
    os.kill(runner.pid, signal.SIGKILL)
    for stream in streams:
        with pytest.raises(RunnerCrashedError, match="killed by SIGKILL: engine: ready"):
            rest(stream)
        assert stream.ended
        assert stream.next(0) is None
    assert not runner.alive
    with pytest.raises(RunnerCrashedError, match="SIGKILL"):
        ask(runner, "again")
    with pytest.raises(RunnerCrashedError, match="SIGKILL"):
        runner.tokenize("again")


def test_exit_code_is_named(start: Callable[..., Runner]) -> None:
    runner = start(crash_after_steps=2, crash_signal=0, last_words="cannot go on")
    with pytest.raises(RunnerCrashedError, match="ended with exit code 3: cannot go on"):
        rest(ask(runner, "a b c d"))


def test_broken_line_ends_the_runner(start: Callable[..., Runner]) -> None:
    runner = start(garbage_after_steps=2)
    with pytest.raises(RunnerCrashedError, match="was killed: broken line"):
        rest(ask(runner, "a b c d"))


def test_endless_line_ends_the_runner(
    start: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "MAX_LINE_BYTES", 1 << 20)
    runner = start(endless_line=True)
    with pytest.raises(RunnerCrashedError, match="a line of over 1048576 bytes"):
        rest(ask(runner, "a b c d"))


def test_silence_with_requests_in_flight_ends_the_runner(start: Callable[..., Runner]) -> None:
    runner = start(hang=True, limits=RunnerLimits(stall_s=0.3))
    runner.wait_ready()
    with pytest.raises(RunnerCrashedError, match=r"no step for 0\.3 s"):
        rest(ask(runner, "a b c d"))


def test_silence_without_requests_is_peace(start: Callable[..., Runner]) -> None:
    runner = start(limits=RunnerLimits(stall_s=0.2))
    assert text(rest(ask(runner, "before"))) == "before"
    time.sleep(0.6)
    assert text(rest(ask(runner, "after"))) == "after"


def test_runner_that_does_not_read_is_killed(start: Callable[..., Runner]) -> None:
    runner = start(deaf=True, limits=RunnerLimits(send_s=0.2))
    runner.wait_ready()
    with pytest.raises(RunnerCrashedError, match="does not read its socket"):
        ask(runner, "x" * (4 << 20))


def test_unanswered_call_is_given_up(start: Callable[..., Runner]) -> None:
    runner = start(deaf=True, limits=RunnerLimits(call_s=0.1))
    with pytest.raises(RunnerCrashedError, match="did not answer within"):
        runner.tokenize("hello")


def test_death_is_told_once_to_who_asked(start: Callable[..., Runner]) -> None:
    runner = start()
    runner.wait_ready()
    told: list[RunnerCrashedError] = []
    heard = threading.Event()

    def tell(error: RunnerCrashedError) -> None:
        told.append(error)
        heard.set()

    runner.on_exit(tell)
    os.kill(runner.pid, signal.SIGKILL)
    assert heard.wait(10)
    late: list[RunnerCrashedError] = []
    runner.on_exit(late.append)
    assert [str(error) for error in told] == [str(error) for error in late]
    assert "SIGKILL" in str(told[0])


def test_stop_is_no_death_to_tell(start: Callable[..., Runner]) -> None:
    runner = start()
    runner.wait_ready()
    told: list[RunnerCrashedError] = []
    runner.on_exit(told.append)
    runner.stop(5)
    runner.on_exit(told.append)
    assert told == []


def test_text_with_a_lone_surrogate_is_refused(start: Callable[..., Runner]) -> None:
    runner = start()
    for call in (lambda: ask(runner, "\ud800"), lambda: runner.tokenize("\ud800")):
        with pytest.raises(BadRequestError, match="lone surrogate"):
            call()
    assert text(rest(ask(runner, "still here"))) == "still here"


def test_request_longer_than_a_line_is_refused(
    start: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "MAX_LINE_BYTES", 1000)
    with pytest.raises(BadRequestError, match="expected at most 1000 bytes"):
        ask(start(), "x" * 1000)


def test_refused_request_leaves_the_others(start: Callable[..., Runner]) -> None:
    runner = start(num_ctx=4)
    long = runner.generate(protocol.Generate(id=0, prompt="a b c d e", truncate=False))
    rows = rest(long)
    assert rows[-1].fault == "prompt: expected at most 4 tokens, found 6"
    assert text(rest(ask(runner, "a b"))) == "a b"


# --- answers ------------------------------------------------------------------------------------


def test_rows_reach_the_stream_they_belong_to(start: Callable[..., Runner]) -> None:
    runner = start()
    prompts = [f"request {n} says  {'word ' * n}end\n" for n in range(20)]
    streams = [ask(runner, prompt) for prompt in prompts]
    assert [text(rest(stream)) for stream in streams] == prompts


def test_last_row_counts(start: Callable[..., Runner]) -> None:
    rows = rest(ask(start(), "a b c d", num_predict=3))
    assert rows[-1].done == "length"
    assert (rows[-1].prompt_tokens, rows[-1].completion_tokens) == (4, 3)
    assert text(rows) == "a b c"


def test_stop_text_is_cut_off(start: Callable[..., Runner]) -> None:
    rows = rest(ask(start(), "one two three four", stop=("o th",)))
    assert (text(rows), rows[-1].done) == ("one tw", "stop")


def test_cancelled_stream_ends_and_the_others_go_on(start: Callable[..., Runner]) -> None:
    runner = start(step_s=0.01)
    first, second, queued = (ask(runner, "word " * 30) for _ in range(3))
    assert first.next(10) is not None
    first.cancel()
    queued.cancel()
    assert rest(first)[-1].done == "cancelled"
    assert rest(queued)[-1].done == "cancelled"
    first.cancel()
    assert rest(second)[-1].done == "stop"
    assert not [stream for stream in (first, second, queued) if not stream.ended]


def test_next_gives_up_after_its_time(start: Callable[..., Runner]) -> None:
    stream = ask(start(hang=True), "a")
    assert stream.next(0.05) is None
    assert not stream.ended


def test_text_survives_tokenize_and_detokenize(start: Callable[..., Runner]) -> None:
    runner = start()
    tokens = runner.tokenize("über  den\nWolken ", add_bos=False)
    assert len(tokens) == 4
    assert runner.detokenize(tokens) == "über  den\nWolken "


def test_many_threads_share_one_runner(start: Callable[..., Runner]) -> None:
    runner = start()
    runner.wait_ready()
    wrong: list[str] = []

    def client(number: int) -> None:
        for turn in range(10):
            prompt = f"client {number} turn {turn}"
            if text(rest(ask(runner, prompt))) != prompt or not runner.tokenize(prompt):
                wrong.append(prompt)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# --- the process --------------------------------------------------------------------------------


def test_child_leads_its_group_is_expendable_and_dumps_no_core(
    start: Callable[..., Runner],
) -> None:
    runner = start()
    runner.wait_ready()
    assert os.getpgid(runner.pid) == runner.pid
    assert Path(f"/proc/{runner.pid}/oom_score_adj").read_text(encoding="ascii") == "500\n"
    limits = Path(f"/proc/{runner.pid}/limits").read_text(encoding="ascii")
    core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
    assert core.split()[4:6] == ["0", "0"]
    environment = Path(f"/proc/{runner.pid}/environ").read_bytes().split(b"\0")
    assert b"GGML_NO_BACKTRACE=1" in environment


def test_log_keeps_the_last_lines_bounded_and_printable(start: Callable[..., Runner]) -> None:
    lines = [f"line {n}" for n in range(300)] + ["\x1b[31mred" + "x" * 9000]
    runner = start(log=lines, crash_after_steps=1, last_words="the end")
    with pytest.raises(RunnerCrashedError, match="the end"):
        rest(ask(runner, "a"))
    assert len(runner.log_lines) == 200
    assert runner.log_lines[-1] == "the end"
    assert all(line.isprintable() and len(line) <= 500 for line in runner.log_lines)


def test_closed_socket_ends_the_child(start: Callable[..., Runner]) -> None:
    runner = start()
    runner.wait_ready()
    runner.stop(10)
    assert not Path(f"/proc/{runner.pid}").exists()
    with pytest.raises(RunnerCrashedError, match="has been stopped"):
        ask(runner, "too late")


@pytest.mark.faults
@pytest.mark.parametrize(
    "script", [{"ignore_close": True}, {"ignore_close": True, "ignore_term": True}]
)
def test_child_that_ignores_the_close_is_killed(
    start: Callable[..., Runner], script: dict[str, bool]
) -> None:
    runner = start(**script)
    runner.wait_ready()
    stream = ask(runner, "word " * 10000)
    assert stream.next(10) is not None
    runner.stop(0.1)
    assert not Path(f"/proc/{runner.pid}").exists()
    with pytest.raises(RunnerCrashedError, match="has been stopped"):
        rest(stream)


def test_stop_while_loading_fails_the_load(start: Callable[..., Runner]) -> None:
    runner = start(hang_load=True)
    runner.stop(0.1)
    with pytest.raises(LoadFailedError, match="while loading: the model's runner has been stopped"):
        runner.wait_ready()


def test_child_with_a_parent_death_signal_outlives_the_thread_that_started_it(
    tmp_path: Path,
) -> None:
    """PR_SET_PDEATHSIG follows the forking thread: that one must live as long as the child."""
    script = tmp_path / "child.py"
    script.write_text(
        "import ctypes, runpy, signal, sys\n"
        "ctypes.CDLL(None).prctl(1, signal.SIGKILL)\n"
        f"sys.argv[0] = {str(fake_runner.__file__)!r}\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n",
        encoding="utf-8",
    )
    load = protocol.Load(model_path="none", settings=EngineSettings(num_ctx=256))
    runners: list[Runner] = []
    command = (sys.executable, "-P", str(script))
    thread = threading.Thread(target=lambda: runners.append(Runner.start(load, command=command)))
    thread.start()
    thread.join()
    assert text(rest(ask(runners[0], "alive and well"))) == "alive and well"
    runners[0].stop(5)
