from __future__ import annotations

import pytest

from server.runner.autopsy import Autopsy, keepable, read_last_words
from server.runner.watchdog import STEPS_LATE, Watchdog


def test_idle_runner_is_never_late() -> None:
    dog = Watchdog(stall_s=30)
    assert not dog.is_late(1e9)
    dog.busy(1e9)
    dog.idle()
    assert not dog.is_late(2e9)


def test_counter_that_stands_still_is_late_after_the_limit() -> None:
    dog = Watchdog(stall_s=30)
    dog.busy(100.0)
    assert not dog.is_late(130.0)
    assert dog.is_late(130.1)


def test_frame_that_does_not_count_on_is_no_progress() -> None:
    dog = Watchdog(stall_s=30)
    dog.busy(0.0)
    dog.step(1.0, 1)
    dog.step(25.0, 1)
    assert dog.is_late(32.0)


def test_ended_request_is_progress() -> None:
    dog = Watchdog(stall_s=30)
    dog.busy(0.0)
    dog.alive(20.0)
    assert not dog.is_late(45.0)


def test_slow_steps_make_it_patient() -> None:
    dog = Watchdog(stall_s=30)
    dog.busy(0.0)
    for number in range(1, 60):
        dog.step(10.0 * number, number)
    assert dog.limit_s == pytest.approx(10.0 * STEPS_LATE, rel=0.01)


def test_slow_machine_has_time_for_its_first_batch() -> None:
    dog = Watchdog(stall_s=30)
    dog.loaded(batch_s=25.0)
    dog.busy(0.0)
    assert not dog.is_late(499.0)
    assert dog.is_late(501.0)


FATAL = b"""Fatal Python error: Aborted

Thread 0x00007f (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 5 in wait

Current thread 0x00007f (most recent call first):
  File "/opt/satchel/lib/server/runner/library.py", line 160 in decode
  File "<string>", line 1 in <module>

Extension modules: numpy, secret prompt (total: 2)
"""


def test_last_words_are_taken_apart() -> None:
    words = read_last_words(
        b"assert: /build/ggml/src/ggml.c:123: GGML_ASSERT(a == b) failed\nassert: second\n" + FATAL
    )
    assert words.assertion == "ggml.c:123: GGML_ASSERT(a == b) failed"
    assert words.stack == (
        "Fatal Python error: Aborted",
        "Thread 0x00007f (most recent call first):",
        "lib/python3.11/threading.py:5 wait",
        "Current thread 0x00007f (most recent call first):",
        "server/runner/library.py:160 decode",
        "<string>:1 <module>",
    )


@pytest.mark.parametrize("data", [b"", b"\xff\xfe\0", b"the prompt was: hello\n"])
def test_other_lines_are_not_kept(data: bytes) -> None:
    words = read_last_words(data)
    assert (words.assertion, words.stack) == ("", ())


def test_lines_that_quote_a_client_are_left_out() -> None:
    lines = ("engine: parse: error parsing grammar: expecting name at secret", "/store/x: gone")
    assert keepable(lines, hide="/store/") == ("(a line about a client's grammar)", "x: gone")


@pytest.mark.parametrize(
    ("cause", "outside"),
    [("SIGKILL", True), ("SIGTERM", True), ("SIGSEGV", False), ("exit 3", False),
     ("killed by the server", False)],
)  # fmt: skip
def test_signals_from_outside_are_told_apart(cause: str, *, outside: bool) -> None:
    assert Autopsy(pid=1, cause=cause, text="").from_outside == outside
