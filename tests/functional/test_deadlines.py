"""Requests whose time is over: in the queue, in a load, in prefill, while decoding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from server.deadline import NEVER, Deadline
from server.errors import BadRequestError
from server.options import resolve_timeout
from tests.functional.live import LiveServer
from tests.functional.test_life_cycle import eventually, in_flight, post_raw

SLOW = {"words": ["w "] * 20_000, "step_s": 0.005}


def chat(seconds: float | None = 0.4, **more: Any) -> dict[str, Any]:
    options = {} if seconds is None else {"request_timeout": seconds}
    messages = [{"role": "user", "content": "hi"}]
    return {"model": "tiny", "messages": messages, "options": options, **more}


@pytest.mark.parametrize("value", ["5s", True, 0, -1, [], float("inf")])
def test_timeout_that_is_no_positive_number_is_refused(value: Any) -> None:
    with pytest.raises(BadRequestError, match='option "request_timeout" must be'):
        resolve_timeout({"request_timeout": value})


def test_earliest_limit_counts_and_none_is_none() -> None:
    assert resolve_timeout({}) is None
    now = [100.0]
    assert not Deadline.after(0.0, (None, 0.0), lambda: now[0]).passed
    deadline = Deadline.after(95.0, (20.0, None, 6.0), lambda: now[0])
    assert (deadline.limit_s, deadline.within(5.0), deadline.passed) == (6.0, 1.0, False)
    now[0] = 101.0
    assert (deadline.within(5.0), deadline.passed) == (0.0, True)
    assert NEVER.within(0.2) == 0.2


def test_answer_that_has_begun_ends_with_what_was_said(tmp_path: Path) -> None:
    with LiveServer(tmp_path, script=SLOW) as server:
        *parts, last = server.lines("/api/chat", **chat())
        assert (last["done"], last["done_reason"]) == (True, "timeout")
        assert last["eval_count"] == len([part for part in parts if part["message"]["content"]])
        assert last["eval_count"] > 1
        eventually(lambda: in_flight(server) == 0)
        status, whole = server.post("/api/chat", **chat(stream=False))
        assert (status, whole["done_reason"]) == (200, "timeout")
        assert whole["message"]["content"].startswith("w w ")
        limited = {"request_timeout": 0.3}
        body = {"model": "tiny", "prompt": "x", "stream": False, "options": limited}
        assert server.post("/api/generate", **body)[1]["done_reason"] == "timeout"


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ("/v1/chat/completions", ("choices", 0, "finish_reason"), "length"),
        ("/v1/messages", ("stop_reason",), "max_tokens"),
    ],
)
def test_other_dialects_say_it_in_their_words(
    tmp_path: Path, path: str, field: tuple[Any, ...], value: str
) -> None:
    with LiveServer(tmp_path, script=SLOW) as server:
        status, answer = server.post(path, **chat(max_tokens=10_000))
        assert status == 200, answer
        for key in field:
            answer = answer[key]
        assert answer == value


@pytest.mark.parametrize("stream", [True, False])
def test_request_without_a_token_in_time_is_504(tmp_path: Path, *, stream: bool) -> None:
    with LiveServer(tmp_path, script={"hang": True}) as server:
        status, data = server.ask("POST", "/api/chat", chat(0.3, stream=stream))
        assert status == 504
        assert json.loads(data)["error"] == "request: not answered within 0.3 s"
        eventually(lambda: in_flight(server) == 0)


def test_request_whose_model_is_not_ready_in_time_is_504_and_the_load_goes_on(
    tmp_path: Path,
) -> None:
    with LiveServer(tmp_path, script={"words": ["x"], "load_s": 1.2}) as server:
        status, answer = server.post("/api/chat", **chat(0.2))
        assert (status, answer["error"]) == (504, "request: not begun within 0.2 s")
        eventually(server.scheduler.loaded)
        assert server.post("/api/chat", **chat(5.0, stream=False))[0] == 200


def test_operators_limit_cannot_be_outlived(tmp_path: Path) -> None:
    with LiveServer(tmp_path, script=SLOW, flags={"request_timeout_s": 0.4}) as server:
        for seconds in (None, 600.0):
            *_, last = server.lines("/api/chat", **chat(seconds))
            assert last["done_reason"] == "timeout"


def test_deadline_of_one_request_leaves_the_others_alone(tmp_path: Path) -> None:
    with LiveServer(tmp_path, script=SLOW) as server:
        with post_raw(server, "/api/chat", chat(None)) as other:
            other.recv(1)
            assert server.lines("/api/chat", **chat(0.3))[-1]["done_reason"] == "timeout"
            assert in_flight(server) == 1
            assert other.recv(1)
        eventually(lambda: in_flight(server) == 0)
