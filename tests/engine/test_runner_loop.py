"""The decode loop over an engine that fails on purpose; samplers are the real ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.runner.inbox import Arrival, Inbox
from server.runner.library import ABORTED, NO_ROOM, OK
from server.runner.loop import Loop
from server.runner.proposing import Proposer
from server.runner.protocol import Row, Step
from server.runner.shape import Shape
from server.runner.spelling import Spellings
from server.runner.work import Work
from server.wishes import SamplingOptions

pytestmark = pytest.mark.engine

SIZE = 64
FAILED = -3
Part = tuple[tuple[int, ...], int, int]
"""Tokens, position and sequence of a chunk."""


class Batch:
    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.outputs: list[int] = []

    def clear(self) -> None:
        self.parts, self.outputs = [], []

    def add(self, tokens: Sequence[int], *, position: int, sequence: int, output: int) -> None:
        self.parts.append((tuple(tokens), position, sequence))
        self.outputs += tokens[len(tokens) - output :]


class Engine:
    """Answers a token with the next one, and fails as ``fate`` says."""

    def __init__(self, fate: Callable[[list[Part]], int], **changes: Any) -> None:
        fields = {
            "context_tokens": 32,
            "cells": 96,
            "batch_tokens": 16,
            "sequences": 6,
            "output_rows": 14,
            "vocabulary_size": SIZE,
            "divisible": True,
            "can_shift": True,
            "window_tokens": 0,
        }
        self.shape = Shape(**{**fields, **changes})
        self.scales: tuple[float, ...] = ()
        self.sight = None
        self.prefill_rate = 1000.0
        self.vocabulary = SimpleNamespace(
            piece=lambda token: b"%d " % token,
            whole_piece=lambda token: b"%d " % token,
            is_end=lambda token: token == SIZE - 1,
            is_framing=lambda _token: False,
            spellings=Spellings(),
        )
        self.batch = Batch()
        self.cache: dict[int, list[int]] = {n: [] for n in range(self.shape.sequences)}
        self.removed: list[tuple[int, int]] = []
        self.cycle = SIZE
        self._fate = fate

    def position(self, _sequence: int, place: int) -> int:
        return place

    def decode(self) -> int:
        answer = self._fate(self.batch.parts)
        if answer in (OK, ABORTED):
            for tokens, position, sequence in self.batch.parts:
                assert position == len(self.cache[sequence])
                half = tokens if answer == OK else tokens[: len(tokens) // 2]
                self.cache[sequence] += half
        return answer

    def logits(self, output: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        row = np.zeros(SIZE, np.float32)
        row[(self.batch.outputs[output] + 1) % self.cycle] = 9.0
        return row

    def remove(self, sequence: int, start: int, _end: int = -1) -> bool:
        self.removed.append((sequence, start))
        del self.cache[sequence][start:]
        return True

    def share(self, source: int, target: int, end: int) -> None:
        self.cache[target] = self.cache[source][:end]

    def last_position(self, sequence: int) -> int:
        return len(self.cache[sequence]) - 1

    def state_bytes(self, sequence: int) -> int:
        return len(self.cache[sequence])

    def can_resume(self, _sequence: int, _position: int) -> bool:
        return True

    def abort(self) -> None:
        pass

    rearm = abort


def arrival(number: int, prompt: Sequence[int], most: int = 5) -> Arrival:
    return Arrival(
        work=Work(id=number, prompt=tuple(prompt), most_tokens=most),
        sampling=SamplingOptions(temperature=0.0),
        top_logprobs=None,
        gate=None,
    )


def run(
    engine: Engine,
    *arrivals: Arrival,
    slots: int = 3,
    clock: Callable[[], float] = time.monotonic,
) -> dict[int, Row]:
    """Run all requests to their end; returns each one's last row with all its tokens."""
    subject: Any = engine
    inbox = Inbox(engine.abort, engine.rearm)
    rows: dict[int, list[Row]] = {item.work.id: [] for item in arrivals}

    def send(step: Step) -> None:
        for row in step.rows:
            rows[row.id].append(row)
        last = [held[-1] for held in rows.values() if held]
        if step.n > 500 or len([r for r in last if r.done or r.fault]) == len(rows):
            inbox.close()

    loop = Loop(subject, slots=slots, inbox=inbox, send=send, clock=clock)
    for item in arrivals:
        inbox.put(item)
    loop.run()
    loop.close()
    assert loop.steps < 500, "the loop does not come to an end"
    return {
        number: Row(
            id=number,
            tokens=tuple(token for row in held for token in row.tokens),
            done=held[-1].done,
            fault=held[-1].fault,
            accepted=held[-1].accepted,
        )
        for number, held in rows.items()
    }


THREE = (arrival(1, [1, 2]), arrival(2, [20, 21]), arrival(3, [40, 41]))
ANSWERS = {1: (3, 4, 5, 6, 7), 2: (22, 23, 24, 25, 26), 3: (42, 43, 44, 45, 46)}


def tokens(rows: dict[int, Row]) -> dict[int, tuple[int, ...]]:
    return {number: row.tokens for number, row in rows.items()}


class TestFailureOfOneIsNotThatOfAll:
    def test_only_the_request_that_fails_alone_gets_a_fault(self) -> None:
        def fate(parts: list[Part]) -> int:
            return FAILED if any(23 in part[0] for part in parts) else OK

        rows = run(Engine(fate), *THREE)

        assert rows[2].fault == "the engine failed to compute this request (-3)"
        assert rows[2].tokens == (22, 23)
        assert (rows[1].tokens, rows[3].tokens) == (ANSWERS[1], ANSWERS[3])

    @pytest.mark.parametrize("answer", [-1, -2, FAILED])
    def test_failure_of_a_batch_that_each_survives_alone_is_not_noticed(self, answer: int) -> None:
        calls = iter(range(10_000))

        rows = run(Engine(lambda _parts: answer if next(calls) in (1, 7) else OK), *THREE)

        assert tokens(rows) == ANSWERS

    def test_logits_that_are_none_are_the_fault_of_their_request_only(self) -> None:
        engine = Engine(lambda _parts: OK)
        healthy = engine.logits

        def logits(output: int) -> np.ndarray[Any, np.dtype[np.float32]]:
            row = healthy(output)
            if engine.batch.outputs[output] == 43:
                row[:] = np.nan
            return row

        engine.logits = logits  # type: ignore[method-assign]
        rows = run(engine, *THREE)

        assert rows[3].fault == "the model computed no usable probabilities"
        assert (rows[1].tokens, rows[2].tokens) == (ANSWERS[1], ANSWERS[2])

    @pytest.mark.parametrize("divisible", [True, False])
    def test_aborted_batches_are_computed_again(self, divisible: bool) -> None:  # noqa: FBT001
        calls = iter(range(10_000))
        engine = Engine(
            lambda _parts: ABORTED if next(calls) % 3 == 1 else OK,
            divisible=divisible,
            can_shift=divisible,
        )

        assert tokens(run(engine, *THREE)) == ANSWERS


class TestCacheWithoutRoom:
    def test_idle_prompts_are_given_up_first(self) -> None:
        def fate(parts: list[Part]) -> int:
            held = sum(map(len, engine.cache.values()))
            return OK if held + sum(len(part[0]) for part in parts) <= 16 else NO_ROOM

        engine = Engine(fate)
        arrivals = [arrival(n, [n, n + 1, n + 2], most=3) for n in (1, 11, 21, 31, 41)]

        rows = run(engine, *arrivals, slots=1)

        assert all(row.done == "length" for row in rows.values())

    def test_large_steps_are_made_smaller(self) -> None:
        def fate(parts: list[Part]) -> int:
            return OK if sum(len(part[0]) for part in parts) <= 3 else NO_ROOM

        rows = run(Engine(fate), arrival(1, range(1, 15)))

        assert rows[1].tokens == (15, 16, 17, 18, 19)

    def test_last_request_gives_way_and_is_answered_later(self) -> None:
        def fate(parts: list[Part]) -> int:
            return OK if len(parts) == 1 else NO_ROOM

        assert tokens(run(Engine(fate), *THREE)) == ANSWERS

    def test_request_that_never_fits_gets_a_fault(self) -> None:
        rows = run(Engine(lambda _parts: NO_ROOM), *THREE)

        assert {row.fault for row in rows.values()} == {"the KV cache has no room for this request"}


class TestTokensComputedAhead:
    @given(st.data())
    @settings(deadline=None, max_examples=60)
    def test_whatever_is_proposed_the_answers_are_the_same(self, data: st.DataObject) -> None:
        draw = data.draw(st.randoms(use_true_random=False))

        def propose(_self: Proposer, _forced: tuple[int, ...], _ratio: float) -> tuple[int, ...]:
            last = _self._lookup._tokens[-1] if _self._lookup else 0
            right = [(last + 1 + n) % SIZE for n in range(draw.randrange(5))]
            return (*right, *(draw.randrange(SIZE) for _ in range(draw.randrange(4))))

        trouble = draw.choice([OK, ABORTED, NO_ROOM])
        # Without room again and again, the last one that runs has nothing left to give up.
        fates = iter([OK, trouble, OK] * (1 if trouble == NO_ROOM else 4))
        engine = Engine(lambda _parts: next(fates, OK))
        works = [arrival(n, [20 * n, 20 * n + 1], most=draw.randrange(1, 30)) for n in range(3)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Proposer, "propose", propose)
            rows = run(engine, *works)

        for item in works:
            begin, most = 20 * item.work.id + 2, item.work.most_tokens
            expected = [n % SIZE for n in range(begin, begin + most)]
            end = expected.index(SIZE - 1) if SIZE - 1 in expected else len(expected)
            assert rows[item.work.id].fault is None
            assert list(rows[item.work.id].tokens) == expected[:end]

    def test_repetition_is_found_and_saves_steps(self) -> None:
        engine = Engine(lambda _parts: OK, context_tokens=200, cells=600)
        engine.cycle = 4
        clock = iter(range(100_000))

        row = run(engine, arrival(1, [0, 1, 2, 3] * 4, most=40), clock=lambda: next(clock) * 0.1)[1]

        assert row.tokens == tuple(n % 4 for n in range(40))
        assert row.accepted > 10
