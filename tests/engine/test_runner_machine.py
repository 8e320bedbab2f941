"""Everything that can happen to a runner's requests, in any order, over an engine that fails.

The loop, its batching, samplers and states are the real ones. The engine is simulated: it answers
a token with the next one, and checks what the real one would abort on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from server.runner.inbox import Arrival, Inbox, Item
from server.runner.library import ABORTED, NO_ROOM, OK
from server.runner.loop import Loop
from server.runner.protocol import Row, Step
from server.runner.work import Work
from server.wishes import SamplingOptions
from tests.engine.test_runner_loop import FAILED, SIZE, Engine, Part

pytestmark = pytest.mark.engine

Bytes = npt.NDArray[np.uint8]
CONTEXT = 32
LAST = SIZE - 1
"""The token that ends an answer."""

POISON = 50
"""The engine fails to compute it."""

STEPS = 3000
"""More than all that a run can ask for: each request has at most 31 tokens to compute and 12 to
say, and may be computed anew as often as something goes wrong."""


class Simulator(Engine):
    """The failing engine of the loop's tests, with states, slides and an abort that works."""

    def __init__(self, fate: Callable[[list[Part]], int], **changes: Any) -> None:
        super().__init__(self._told, **changes)
        self._script = fate
        self.aborted = False

    def _told(self, parts: list[Part]) -> int:
        self.aborted = False
        answer = self._script(parts)
        return ABORTED if self.aborted and answer == OK else answer

    def abort(self) -> None:
        self.aborted = True

    def rearm(self) -> None:
        self.aborted = False

    def remove(self, sequence: int, start: int, _end: int = -1) -> bool:
        assert self.shape.divisible or start in (0, len(self.cache[sequence]))
        return super().remove(sequence, start)

    def share(self, source: int, target: int, end: int) -> None:
        assert not self.cache[target]
        assert end <= len(self.cache[source])
        super().share(source, target, end)

    def slide(self, sequence: int, start: int, end: int) -> None:
        del self.cache[sequence][start:end]

    def save_state(self, sequence: int, target: Bytes) -> bool:
        target[:] = self.cache[sequence]
        return True

    def load_state(self, sequence: int, source: Bytes) -> bool:
        assert not self.cache[sequence]
        self.cache[sequence] = source.tolist()
        return True


class Stepped(Inbox):
    """Lets the loop go so many steps, then return; it may be run again."""

    left = 0

    def take(self, *, wait: bool) -> list[Item] | None:
        with self._changed:
            stuck = wait and not self._items
        if stuck or not self.left:
            return None
        self.left -= 1
        return super().take(wait=False)


@dataclass(slots=True)
class Asked:
    """A request as its client sees it.

    Attributes:
        before_step: it was cancelled when no step was running, so nothing more is said.
    """

    prompt: tuple[int, ...]
    most: int
    tenant: str
    said: list[int] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    cancelled: bool = False
    before_step: bool = False

    @property
    def answer(self) -> list[int]:
        """What is to be said, if nothing comes between."""
        first = self.prompt[-1] + 1
        return list(range(first, min(first + self.most, LAST)))


class RunnerMachine(RuleBasedStateMachine):
    """Submit, cancel, finish, preempt, abort, fail and crash."""

    @initialize(
        slots=st.integers(1, 3),
        spare=st.integers(0, 2),
        cells=st.integers(CONTEXT, 3 * CONTEXT),
        batch=st.integers(6, 16),
        tile=st.sampled_from([0, 4]),
        divisible=st.booleans(),
        saved=st.sampled_from([0, 64, 1000]),
    )
    def start(self, **shape: Any) -> None:
        self.shape = shape
        self.asked: dict[int, Asked] = {}
        self.next = 0
        self.lives = 0
        self.fates: list[int] = []
        self.during: list[int] = []
        self.missed: Counter[int] = Counter()
        self.begin()

    def begin(self) -> None:
        """A new life: an engine with an empty cache, and a loop."""
        self.lives += 1
        slots = self.shape["slots"]
        self.engine = Simulator(
            self._decode,
            cells=self.shape["cells"],
            context_tokens=CONTEXT,
            batch_tokens=self.shape["batch"],
            sequences=slots + self.shape["spare"],
            divisible=self.shape["divisible"],
            can_shift=self.shape["divisible"],
            saved_bytes=self.shape["saved"],
            tile_rows=self.shape["tile"],
        )
        self.engine.prefill_rate = 100.0  # budgets of a few tokens
        subject: Any = self.engine
        self.inbox = Stepped(self.engine.abort, self.engine.rearm)
        self.loop = Loop(subject, slots=slots, inbox=self.inbox, send=self._send)
        # Prompts of a few tokens are to be followed, kept and restored like long ones.
        self.loop._batching._follow_tokens = 2
        self.loop._batching._leaving.least_tokens = 2
        line = self.loop._batching._line
        take = line.take

        def fair(work: Work) -> None:
            running = Counter(run.work.tenant for run in self.loop._batching.running.values())
            fewest = min(running[one.tenant] for one in line)
            assert running[work.tenant] == fewest, "a slot went to a tenant that has more"
            take(work)

        line.take = fair  # type: ignore[method-assign]

    def _decode(self, parts: list[Part]) -> int:
        while self.during:
            self.inbox.cancel(self.during.pop())
        answer = self.fates.pop() if self.fates else OK
        if any(POISON in tokens for tokens, _position, _sequence in parts):
            answer = FAILED
        self._count_missed(parts, answer)
        return answer

    def _count_missed(self, parts: Sequence[Part], answer: int) -> None:
        """Who decodes is in every step, or in every second where prefill takes turns."""
        if answer != OK or self.loop._suspects or self.loop._shrink:
            self.missed.clear()
            return
        computed = {sequence for _tokens, _position, sequence in parts}
        for request, run in self.loop._batching.running.items():
            if run.pending == 1 and run.active and run.held.sequence not in computed:
                self.missed[request] += 1
                assert self.missed[request] <= (1 if self.shape["tile"] else 0)
            else:
                del self.missed[request]

    def _send(self, step: Step) -> None:
        for row in step.rows:
            self._deliver(row)

    def _deliver(self, row: Row) -> None:
        asked = self.asked[row.id]
        assert not asked.ends, "a row came after the end"
        asked.said += row.tokens
        if row.done or row.fault:
            asked.ends.append(row.done or "fault")

    def _submit(self, number: int) -> None:
        asked = self.asked[number]
        self.inbox.put(
            Arrival(
                work=Work(
                    id=number,
                    prompt=asked.prompt,
                    most_tokens=asked.most,
                    tenant=asked.tenant,
                    scope=asked.tenant,
                ),
                sampling=SamplingOptions(temperature=0.0),
                top_logprobs=None,
                gate=None,
            )
        )

    @property
    def open(self) -> list[int]:
        return [number for number, asked in self.asked.items() if not asked.ends]

    @rule(
        prompts=st.lists(
            st.tuples(
                st.lists(st.integers(1, 3), min_size=1, max_size=18),
                st.sampled_from([4, 4, 5, 6, 30, POISON - 3, 55, 61]),
                st.integers(1, 12),
                st.sampled_from("ab"),
            ),
            min_size=1,
            max_size=5,
        )
    )
    def submit(self, prompts: list[tuple[list[int], int, int, str]]) -> None:
        for prompt, last, most, tenant in prompts:
            self.next += 1
            self.asked[self.next] = Asked((*prompt, last), most, tenant)
            self._submit(self.next)

    @precondition(lambda self: self.open)
    @rule(steps=st.integers(1, 12))
    def go_on(self, steps: int) -> None:
        self.inbox.left = steps
        self.loop.run()

    @precondition(lambda self: self.open)
    @rule(choice=st.integers(0, 100))
    def cancel(self, choice: int) -> None:
        number = self.open[choice % len(self.open)]
        self.asked[number].cancelled = self.asked[number].before_step = True
        self.inbox.cancel(number)

    @precondition(lambda self: self.open)
    @rule(choice=st.integers(0, 100))
    def cancel_during_a_step(self, choice: int) -> None:
        number = self.open[choice % len(self.open)]
        self.asked[number].cancelled = True
        self.during.append(number)

    @rule(fate=st.sampled_from([NO_ROOM, ABORTED, FAILED]), times=st.integers(1, 2))
    def something_goes_wrong(self, fate: int, times: int) -> None:
        self.fates += [fate] * times

    @precondition(lambda self: self.open)
    @rule()
    def preempt(self) -> None:
        self.loop._carrier.apply(self.loop._batching.preempt())

    @precondition(lambda self: len(self.open) > 1)
    @rule()
    def crash(self) -> None:
        """The process dies: who has heard nothing is asked again, others are told."""
        self.loop.close()
        self.begin()
        self.during.clear()
        self.missed.clear()
        for number in self.open:
            asked = self.asked[number]
            if asked.said or asked.cancelled:
                asked.ends.append("crashed")
            else:
                self._submit(number)

    @invariant()
    def cells_belong_to_somebody(self) -> None:
        if not hasattr(self, "loop"):
            return
        batching = self.loop._batching
        owners = [run.held.sequence for run in batching.running.values()]
        owners += [held.sequence for held in batching.idle]
        assert len(owners) == len(set(owners))
        for sequence, cells in self.engine.cache.items():
            assert len(cells) == batching.cells.length(sequence)
            assert not cells or sequence in owners, "cells without an owner"
        assert batching.cells.used <= self.shape["cells"]

    @invariant()
    def requests_end_once(self) -> None:
        for asked in getattr(self, "asked", {}).values():
            assert len(asked.ends) <= 1
            assert asked.said == asked.answer[: len(asked.said)] or LAST in asked.said

    def teardown(self) -> None:
        """Everybody gets an end, in time, and then nothing is left but what is kept for others."""
        if not hasattr(self, "loop"):
            return
        self.fates.clear()
        for number in self.during:
            self.inbox.cancel(number)
        self.during.clear()
        self.inbox.left = STEPS
        self.loop.run()
        for asked in self.asked.values():
            (end,) = asked.ends
            assert not asked.before_step or end in ("cancelled", "crashed")
            if end in ("stop", "length"):
                assert [token for token in asked.said if token != LAST] == asked.answer
            elif end == "cancelled":
                assert asked.cancelled
        self.cells_belong_to_somebody()
        batching = self.loop._batching
        assert not batching.running
        assert not batching.waiting
        assert not self.loop._generations
        assert not self.loop._arrivals
        while effects := batching.evict():
            self.loop._carrier.apply(effects)
        assert batching.cells.used == 0
        self.loop.close()


TestRunnerMachine = RunnerMachine.TestCase
TestRunnerMachine.settings = settings(deadline=None, max_examples=100, stateful_step_count=40)
