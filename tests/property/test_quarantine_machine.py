"""Quarantine and breaker under random events, watched by a plain history of what happened."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from server.quarantine import Breaker, BreakerPolicy, Quarantine, QuarantinePolicy

POLICY = QuarantinePolicy(hold_s=10.0, forget_s=50.0, crashes=2)
ROW = BreakerPolicy(tolerated=2, window_s=30.0, first_s=5.0, most_s=40.0)
MARKS = ("a", "b", "c", "d")


class QuarantineMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.core = Quarantine(POLICY)
        self.now = 0.0
        self.crashes: dict[str, list[float]] = {mark: [] for mark in MARKS}
        self.blamed: dict[str, float] = {}

    @rule(seconds=st.sampled_from([0.0, 1.0, 6.0, 11.0, 49.0, 51.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(marks=st.lists(st.sampled_from(MARKS), max_size=5), inside=st.booleans())
    def crash(self, marks: list[str], *, inside: bool) -> None:
        held = self.core.crashed(self.now, marks, inside=inside)
        for mark in set(marks):
            self.crashes[mark].append(self.now)
            recent = [at for at in self.crashes[mark] if self.now - at < POLICY.forget_s]
            guilty = len(recent) >= POLICY.crashes or (inside and len(set(marks)) == 1)
            if guilty:
                self.blamed[mark] = self.now
            assert (mark in held) == guilty

    @rule(mark=st.sampled_from(MARKS))
    def answer(self, mark: str) -> None:
        self.core.answered(mark)
        self.crashes[mark].clear()
        self.blamed.pop(mark, None)

    @invariant()
    def only_the_blamed_are_held_back_and_not_for_ever(self) -> None:
        for mark in MARKS:
            expected = 0.0
            if mark in self.blamed:
                expected = max(0.0, self.blamed[mark] + POLICY.hold_s - self.now)
            assert self.core.held_s(self.now, mark) == expected

    @invariant()
    def a_crash_is_forgotten(self) -> None:
        for mark, times in self.crashes.items():
            recent = any(self.now - at < POLICY.forget_s for at in times)
            assert self.core.is_suspect(self.now, mark) == recent


class BreakerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.core = Breaker(ROW)
        self.now = 0.0
        self.held_until: dict[str, float] = {}
        self.last: dict[str, float] = {}
        self.row: dict[str, int] = {}

    @rule(seconds=st.sampled_from([0.0, 1.0, 4.0, 12.0, 29.0, 31.0, 71.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(load=st.sampled_from("xy"))
    def crash(self, load: str) -> None:
        hold_s = self.core.crashed(self.now, load)
        free_s = self.held_until.get(load, self.last.get(load, self.now))
        fresh = load in self.last and self.now - max(free_s, self.last[load]) >= ROW.window_s
        self.row[load] = 1 if fresh else self.row.get(load, 0) + 1
        self.last[load] = self.now
        assert (hold_s > 0) == (self.row[load] > ROW.tolerated)
        assert hold_s <= ROW.most_s
        if self.row[load] > ROW.tolerated + 1:
            assert hold_s >= min(2 * ROW.first_s, ROW.most_s)
        self.held_until[load] = self.now + hold_s

    @invariant()
    def loads_are_held_for_as_long_as_was_said(self) -> None:
        for load in "xyz":
            expected = max(0.0, self.held_until.get(load, 0.0) - self.now)
            assert abs(self.core.held_s(self.now, load) - expected) < 1e-9


TestQuarantine = QuarantineMachine.TestCase
TestBreaker = BreakerMachine.TestCase


def test_memory_of_suspects_is_bounded() -> None:
    core = Quarantine(POLICY)
    for number in range(10_000):
        core.crashed(float(number), [f"m{number}"], inside=True)
    assert core.held_s(9_999.0, "m9999") == POLICY.hold_s
    assert core.held_s(9_999.0, "m5000") == 0.0
    assert not core.is_suspect(9_999.0, "m0")
