"""Requests are prepared beside the I/O thread, each within a time; no engine here."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from server.errors import EngineRefusedError
from server.runner import protocol
from server.runner.inbox import Arrival
from server.runner.preparing import MOST_STUCK, Preparing
from server.runner.work import Work
from server.wishes import Constraint, SamplingOptions

PATIENCE_S = 20.0


def arrival(command: protocol.Generate) -> Arrival:
    work = Work(id=command.id, prompt=(1,), most_tokens=1)
    return Arrival(work=work, sampling=SamplingOptions(), top_logprobs=None, gate=None)


class Outcomes:
    """What became of the requests, in their order."""

    def __init__(
        self, prepare: Callable[[protocol.Generate], Arrival], limit_s: float = PATIENCE_S
    ) -> None:
        self.told: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()
        self.subject = Preparing(
            prepare,
            accept=lambda item: self.told.put((item.work.id, "")),
            refuse=lambda request, reason: self.told.put((request, reason)),
            limit_s=limit_s,
        )

    def submit(self, request: int) -> None:
        self.subject.submit(protocol.Generate(id=request))

    def next(self) -> tuple[int, str]:
        return self.told.get(timeout=PATIENCE_S)


def test_refusal_is_told_and_the_next_request_is_prepared() -> None:
    def prepare(command: protocol.Generate) -> Arrival:
        if command.id == 1:
            raise EngineRefusedError("no")
        return arrival(command)

    outcomes = Outcomes(prepare)
    outcomes.submit(1)
    outcomes.submit(2)

    assert [outcomes.next(), outcomes.next()] == [(1, "no"), (2, "")]


def test_error_nobody_thought_of_costs_one_request(capfd: pytest.CaptureFixture[str]) -> None:
    def prepare(command: protocol.Generate) -> Arrival:
        return arrival(command) if command.id == 2 else 1 / 0  # type: ignore[return-value]

    outcomes = Outcomes(prepare)
    outcomes.submit(1)
    outcomes.submit(2)

    assert [outcomes.next(), outcomes.next()] == [(1, "the request could not be prepared"), (2, "")]
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_request_that_takes_too_long_is_refused_and_holds_up_no_other() -> None:
    release = threading.Event()

    def prepare(command: protocol.Generate) -> Arrival:
        if command.id < 10:
            assert release.wait(PATIENCE_S)
        return arrival(command)

    outcomes = Outcomes(prepare, limit_s=0.2)
    reason = "the grammar takes too long to compile"
    outcomes.submit(1)
    assert outcomes.next() == (1, reason)
    outcomes.submit(10)
    assert outcomes.next() == (10, "")

    outcomes.submit(2)
    assert outcomes.next() == (2, reason)
    assert MOST_STUCK == 2
    outcomes.submit(11)  # both threads are stuck now
    assert outcomes.next() == (11, reason)

    release.set()
    while outcomes.subject._stuck:
        release.wait(0.01)
    outcomes.submit(12)
    assert outcomes.next() == (12, "")


def test_cancelled_request_is_never_told_of() -> None:
    begun, release = threading.Event(), threading.Event()

    def prepare(command: protocol.Generate) -> Arrival:
        begun.set()
        assert release.wait(PATIENCE_S)
        return arrival(command)

    outcomes = Outcomes(prepare)
    outcomes.submit(1)
    outcomes.submit(2)
    assert begun.wait(PATIENCE_S)

    assert outcomes.subject.cancel(1)
    assert outcomes.subject.cancel(2)
    assert not outcomes.subject.cancel(2)
    outcomes.submit(3)
    release.set()

    assert outcomes.next() == (3, "")
    assert not outcomes.subject.cancel(3)


def test_request_that_may_be_free_goes_on_without_a_grammar_that_takes_too_long() -> None:
    going_on = threading.Event()

    def prepare(command: protocol.Generate) -> Arrival:
        if command.constraint is not None:
            going_on.wait(PATIENCE_S)
        return arrival(command)

    outcomes = Outcomes(prepare, limit_s=0.05)
    wanted = Constraint(kind="regex", source="x", begins=("x",), optional=True)
    outcomes.subject.submit(protocol.Generate(id=1, constraint=wanted))
    assert outcomes.next() == (1, "")
    outcomes.subject.submit(protocol.Generate(id=2, constraint=replace(wanted, optional=False)))
    assert outcomes.next() == (2, "the grammar takes too long to compile")
    going_on.set()
