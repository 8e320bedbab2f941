"""How a runner process ends, and how its requests do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.runner import protocol
from server.wishes import Constraint
from tests.engine.runner_driver import DEMO, PATIENCE_S, Driver, settings

pytestmark = pytest.mark.engine

ENDLESS: dict[str, Any] = {
    "logit_bias": tuple((token, -100.0) for token in (3059, 3061, 3065)),
    "num_predict": -1,
}
PING = "<|im_start|>user\nping<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def runner() -> Iterator[Driver]:
    with Driver(settings(num_ctx=1024, slots=2)) as driver:
        yield driver
    assert driver.process.returncode == 0, driver.stderr


def decode_started(driver: Driver, request: int) -> None:
    driver.until(lambda: bool(driver.rows[request]))


class TestCancel:
    def test_decoding_request_ends_and_frees_its_slot(self, runner: Driver) -> None:
        requests = [runner.start(PING, **ENDLESS) for _ in range(2)]
        for request in requests:
            decode_started(runner, request)
        waiting = runner.start(PING, num_predict=4)

        runner.send(protocol.Cancel(id=requests[0]))

        assert runner.finish(requests[0]).done == "cancelled"
        assert runner.finish(waiting).text == "pong"
        assert not runner.is_over(requests[1])
        runner.send(protocol.Cancel(id=requests[1]))
        assert runner.finish(requests[1]).done == "cancelled"

    def test_waiting_request_ends_without_running(self, runner: Driver) -> None:
        busy = [runner.start(PING, **ENDLESS) for _ in range(2)]
        waiting = runner.start(PING, constraint=Constraint(kind="json"), **ENDLESS)

        runner.send(protocol.Cancel(id=waiting))

        row = runner.finish(waiting)
        assert (row.done, row.completion_tokens) == ("cancelled", 0)
        runner.send(*(protocol.Cancel(id=request) for request in busy))
        for request in busy:
            runner.finish(request)

    def test_prefilling_request_ends_before_its_first_token(self) -> None:
        # A batch this large takes seconds; only an abort of the running batch ends it early.
        with Driver(settings(num_ctx=16384, slots=1, num_batch=16384, num_ubatch=16384)) as driver:
            prompt = tuple(n % 3000 for n in range(16000))
            driver.generate(PING, num_predict=1)
            request = driver.start(tokens=prompt, num_predict=5)
            driver.read(0.3)
            driver.send(protocol.Cancel(id=request))

            row = driver.finish(request)

            assert (row.done, row.completion_tokens) == ("cancelled", 0)
            assert driver.generate(PING, num_predict=4).text == "pong"

    def test_cancel_in_a_shared_prefill_leaves_the_other_answer_as_it_is(
        self, runner: Driver
    ) -> None:
        prompt = tuple(n % 3000 for n in range(900))
        alone = runner.generate(tokens=prompt, num_predict=20)
        for _ in range(5):
            other = runner.start(tokens=tuple(reversed(prompt)), num_predict=20)
            kept = runner.start(tokens=(*prompt[1:], 7), num_predict=5)
            runner.send(protocol.Cancel(id=other))
            assert runner.finish(other).done in ("cancelled", "length", "stop")
            assert runner.finish(kept).fault is None

        assert runner.generate(tokens=prompt, num_predict=20).text == alone.text

    def test_cancel_of_an_unknown_or_ended_request_is_ignored(self, runner: Driver) -> None:
        ended = runner.start(PING, num_predict=2)
        runner.finish(ended)
        runner.send(protocol.Cancel(id=ended), protocol.Cancel(id=10**9))

        assert runner.generate(PING, num_predict=4).text == "pong"

    def test_cancel_right_behind_the_request_is_obeyed(self, runner: Driver) -> None:
        command = runner.command(PING, **ENDLESS)
        runner.send(command, protocol.Cancel(id=command.id))

        assert runner.finish(command.id).done == "cancelled"

    def test_cancelled_prompt_is_not_computed_again(self, runner: Driver) -> None:
        prompt = tuple(n % 1000 + 1000 for n in range(700))
        request = runner.start(tokens=prompt, **ENDLESS)
        decode_started(runner, request)
        runner.send(protocol.Cancel(id=request))
        runner.finish(request)

        assert runner.generate(tokens=prompt, num_predict=1).cached_tokens == 699


class TestEnd:
    def test_runner_ends_when_the_server_hangs_up(self) -> None:
        driver = Driver()

        assert driver.hang_up() == 0

    def test_runner_ends_in_the_middle_of_an_answer(self) -> None:
        driver = Driver(settings(num_ctx=8192, slots=1, num_batch=8192, num_ubatch=8192))
        driver.start(tokens=tuple(n % 3000 for n in range(8000)), **ENDLESS)

        assert driver.hang_up() == 0

    def test_runner_ends_while_it_waits_for_its_load(self) -> None:
        driver = Driver(load=False)

        assert driver.hang_up() == 0

    def test_runner_dies_with_its_parent(self, tmp_path: Path) -> None:
        script = tmp_path / "parent.py"
        script.write_text(
            textwrap.dedent(
                """
                import os, socket, subprocess, sys
                ours, theirs = socket.socketpair()
                child = subprocess.Popen(
                    [sys.executable, "-P", "-m", "server.runner", str(theirs.fileno())],
                    pass_fds=(theirs.fileno(),),
                )
                # A copy of our end survives in a third process: only the death signal helps.
                keeper = subprocess.Popen(["sleep", "60"], pass_fds=(ours.fileno(),))
                ours.sendall(sys.stdin.buffer.readline())
                ours.recv(1 << 16)
                print(child.pid, keeper.pid, flush=True)
                sys.stdin.read()
                """
            )
        )
        load = protocol.encode(protocol.Load(model_path=str(DEMO), settings=settings()))
        with subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as parent:
            assert parent.stdin is not None
            assert parent.stdout is not None
            parent.stdin.write(load)
            parent.stdin.flush()
            child, keeper = map(int, parent.stdout.readline().split())
            parent.kill()
        os.kill(keeper, signal.SIGKILL)

        deadline = time.monotonic() + PATIENCE_S
        while _is_running(child):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def test_ctrl_c_is_left_to_the_server(self, runner: Driver) -> None:
        runner.process.send_signal(signal.SIGINT)

        assert runner.generate(PING, num_predict=4).text == "pong"

    @pytest.mark.parametrize(
        "line", [b"junk\n", b'{"op":"dance"}\n', b'{"op":"cancel","id":1,"x":2}\n']
    )
    def test_line_that_is_no_command_ends_the_runner_with_an_error(self, line: bytes) -> None:
        driver = Driver()
        driver.socket.sendall(line)
        driver.until(lambda: driver.closed)

        assert driver.hang_up() == 1
        assert "RunnerCrashedError" in driver.stderr

    def test_wrong_arguments_are_a_usage_error(self) -> None:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "server.runner"], capture_output=True, check=False
        )

        assert done.returncode == 2
        assert b"usage" in done.stderr

    def test_crash_of_the_engine_closes_the_socket_with_a_signal(self) -> None:
        driver = Driver()
        driver.start(PING, **ENDLESS)
        driver.process.send_signal(signal.SIGSEGV)
        driver.until(lambda: driver.closed)

        assert driver.hang_up() == -signal.SIGSEGV
        assert "Segmentation fault" in driver.stderr


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
