"""Which requests are drafted for, and with how many tokens: the clock is in the test's hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from types import SimpleNamespace
from typing import Any, cast

import pytest

from server.runner.drafting import Drafter, Wanted
from server.runner.generation import Generation
from server.runner.pace import Pace
from server.runner.proposing import MOST_PROPOSED, Odds, Proposer
from server.runner.running import Running
from server.runner.speculating import Speculation

RIGHT = 0.9


class Door:
    """Lets everybody in until it is closed."""

    def __init__(self) -> None:
        self.is_open = True
        self.announced: list[AbstractSet[int]] = []
        self.inside = 0

    def begin(self, requests: AbstractSet[int], expected_s: float) -> bool:
        assert expected_s >= 0
        self.announced.append(requests)
        self.inside += self.is_open
        return self.is_open

    def end(self) -> None:
        self.inside -= 1


class FakeDrafter:
    """Proposes a token as often as it is asked to."""

    def __init__(self, step_s: float, *, broken: bool = False) -> None:
        self.step_s = step_s
        self.odds = Odds(RIGHT)
        self.wanted: list[Wanted] = []
        self._broken = broken

    def catch_up_tokens(self, step_s: float) -> int:
        return int(1000 * step_s)

    def expect(self, wanted: Sequence[Wanted], _tokens: int) -> float:
        return self.step_s * len(wanted)

    def propose(self, wanted: Sequence[Wanted], catch_up: int) -> Mapping[int, tuple[int, ...]]:
        assert catch_up == 80
        if self._broken:
            raise BrokenPipeError
        self.wanted = list(wanted)
        return {one.sequence: (7,) * one.most for one in wanted if one.sequence}

    def settle(self, *, right: int, wrong: int) -> None:
        self.odds.note(right=right, wrong=wrong)


def pace(base_s: float = 0.1) -> Pace:
    """A row takes 1 ms, a step ``base_s`` more."""
    subject = Pace(512, 1000.0)
    for _ in range(60):
        subject.measure(1, 0, base_s + 0.001)
    return subject


def generation(proposer: Proposer | None, left: int = 100) -> Generation:
    subject = Generation.__new__(Generation)
    vars_: dict[str, Any] = {
        "_proposer": proposer,
        "sampled": 1,
        "_most": left + 1,
        "_sampler": SimpleNamespace(forced=lambda: ()),
    }
    for name, value in vars_.items():
        setattr(subject, name, value)
    return subject


def requests(
    count: int, *, fixed: int = -1, left: int = 100
) -> tuple[dict[int, Running], dict[int, Generation]]:
    running, generations = {}, {}
    for number in range(1, count + 1):
        held = SimpleNamespace(sequence=number, tokens=[1, 2, 3])
        running[number] = cast("Running", SimpleNamespace(pending=1, active=True, held=held))
        proposer = Proposer((1, 2, 3), drafts=Odds(RIGHT), drafted_tokens=fixed)
        generations[number] = generation(proposer, left)
    return running, generations


def drafted(
    step_s: float, count: int = 1, *, fixed: int = -1, left: int = 100, most: int = MOST_PROPOSED
) -> dict[int, int]:
    """How many tokens each request is drafted for, where a step of the draft takes so long."""
    subject = Speculation(
        most=most, pace=pace(), door=Door(), drafter=cast("Drafter", FakeDrafter(step_s))
    )
    found = subject.new_proposals(count, *requests(count, fixed=fixed, left=left), sees=no_pictures)
    return {request: len(tokens) for request, tokens in found.items()}


def no_pictures(_request: int) -> bool:
    return False


def test_a_cheap_draft_proposes_many_tokens() -> None:
    assert drafted(0.0) == {1: 8}
    assert drafted(0.002) == {1: 8}


def test_a_dear_draft_proposes_fewer_and_then_none() -> None:
    counts = [drafted(step_s).get(1, 0) for step_s in (0.01, 0.03, 0.05, 0.07, 0.09, 0.1, 1.0)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 8
    assert counts[-2:] == [0, 0]


def test_requests_share_the_rows_and_at_last_there_are_none() -> None:
    assert drafted(0.002, 2) == {1: 4, 2: 4}
    assert drafted(0.002, 8) == dict.fromkeys(range(1, 9), 1)
    assert drafted(0.002, 9) == {}


def test_it_does_not_pay_where_many_share_a_step() -> None:
    """The base of 100 ms is shared: a row that costs 20 ms does not pay for six."""
    cheap, dear = drafted(0.02, 1), drafted(0.12, 6)
    assert cheap[1] > 1
    assert dear == {}


def test_a_number_that_is_asked_for_is_kept_to() -> None:
    assert drafted(1.0, fixed=3) == {1: 3}
    assert drafted(0.0, fixed=0) == {}
    assert drafted(0.0, 4, fixed=8) == dict.fromkeys(range(1, 5), 2)


def test_nothing_is_proposed_beyond_the_length_asked_for() -> None:
    assert drafted(0.0, left=3) == {1: 2}
    assert drafted(0.0, left=1) == {}


def test_a_model_that_takes_nothing_back_gets_nothing() -> None:
    assert drafted(0.0, most=0) == {}


def test_requests_with_pictures_and_without_speculation_get_nothing() -> None:
    running, generations = requests(3)
    generations[2] = generation(None)
    subject = Speculation(
        most=8, pace=pace(), door=Door(), drafter=cast("Drafter", FakeDrafter(0.0))
    )
    found = subject.new_proposals(3, running, generations, sees=lambda request: request == 1)
    assert set(found) == {3}


def test_who_is_cancelled_is_not_drafted_for() -> None:
    door, drafter = Door(), FakeDrafter(0.0)
    door.is_open = False
    subject = Speculation(most=8, pace=pace(), door=door, drafter=cast("Drafter", drafter))
    assert subject.new_proposals(2, *requests(2), sees=no_pictures) == {}
    assert door.announced == [{1, 2}]
    assert drafter.wanted == []


def test_the_door_is_shut_behind_a_failure() -> None:
    door = Door()
    broken = cast("Drafter", FakeDrafter(0.0, broken=True))
    subject = Speculation(most=8, pace=pace(), door=door, drafter=broken)
    with pytest.raises(BrokenPipeError):
        subject.new_proposals(1, *requests(1), sees=no_pictures)
    assert door.inside == 0


def test_what_became_of_drafts_is_learned() -> None:
    drafter = FakeDrafter(0.0)
    subject = Speculation(most=8, pace=pace(), door=Door(), drafter=cast("Drafter", drafter))
    running, generations = requests(1)
    for _ in range(30):
        found = subject.new_proposals(1, running, generations, sees=no_pictures)
        if found:
            subject.settle(generations[1], proposed=len(found[1]), right=0)
    assert drafter.odds.right < 0.2
    tried = [
        bool(subject.new_proposals(1, running, generations, sees=no_pictures)) for _ in range(64)
    ]
    assert sum(tried) == 2  # now and then, with one token
