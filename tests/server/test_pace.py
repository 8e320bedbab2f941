"""How much prefill a step carries: in tiles, by who decodes, on fast and slow machines."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.runner.batching import Batching
from server.runner.pace import (
    ALONE_STEP_S,
    LEAST_TOKENS,
    PREFILL_TOKENS,
    SHARED_STEP_S,
    TILE_ROWS,
    Pace,
)
from server.runner.work import Limits, Work

BATCH = 2048


def taught(rate: float, base_s: float, *, batch: int = BATCH, apart: bool = False) -> Pace:
    """A pace that has seen a machine of this rate and base until it believes it."""
    pace = Pace(batch, rate, apart=apart)
    for _ in range(40):
        pace.measure(1, 0, base_s + 1 / rate)
        pace.measure(0, 512, base_s + 512 / rate)
    return pace


@pytest.mark.parametrize("seconds", [0.0, -1.0])
def test_a_clock_that_stood_still_teaches_nothing(seconds: float) -> None:
    pace = Pace(BATCH, 200.0)
    pace.measure(0, 512, seconds)
    pace.measure(4, 0, seconds)
    assert pace.expect(0, 200) == pytest.approx(1.0)


@given(
    st.floats(min_value=0.1, max_value=1e6),
    st.integers(min_value=0, max_value=256),
    st.integers(min_value=1, max_value=4096),
    st.lists(
        st.tuples(
            st.integers(min_value=0, max_value=256),
            st.integers(min_value=0, max_value=2048),
            st.floats(min_value=1e-6, max_value=100.0),
        ),
        max_size=20,
    ),
)
@settings(deadline=None, max_examples=200)
def test_prefill_always_goes_on_and_never_beyond_the_batch(
    rate: float, decoding: int, batch: int, seen: list[tuple[int, int, float]]
) -> None:
    pace = Pace(batch, rate)
    for rows, prefill, seconds in seen:
        if rows + prefill:
            pace.measure(rows, prefill, seconds)
            assert pace.expect(rows, prefill) > 0
    budget = pace.budget(decoding)
    assert budget >= 1
    assert budget == 1 or decoding + budget <= batch


@given(
    st.floats(min_value=TILE_ROWS, max_value=1e5),
    st.floats(min_value=0.0, max_value=0.05),
    st.integers(min_value=0, max_value=200),
)
@settings(deadline=None, max_examples=200)
def test_steps_are_whole_tiles(rate: float, base_s: float, decoding: int) -> None:
    rows = decoding + taught(rate * 1.01, base_s).budget(decoding)
    assert rows % TILE_ROWS == 0


@given(
    st.floats(min_value=4 * TILE_ROWS / SHARED_STEP_S, max_value=1e5),
    st.floats(min_value=0.0, max_value=SHARED_STEP_S / 2),
    st.integers(min_value=1, max_value=TILE_ROWS - 1),
)
@settings(deadline=None, max_examples=200)
def test_a_fast_machine_keeps_the_aim_next_to_streams(
    rate: float, base_s: float, decoding: int
) -> None:
    pace = taught(rate, base_s)
    assert base_s + (decoding + pace.budget(decoding)) / rate <= SHARED_STEP_S * 1.01


def test_prompts_that_come_together_are_not_held_back_for_streams_that_do_not_exist() -> None:
    assert taught(250.0, 0.01).budget(0) == 192
    assert taught(250.0, 0.01).budget(4) == TILE_ROWS - 4


@given(
    st.floats(min_value=TILE_ROWS, max_value=1e5),
    st.floats(min_value=0.0, max_value=0.05),
    st.integers(min_value=0, max_value=200),
)
@settings(deadline=None, max_examples=200)
def test_prefill_that_takes_turns_is_whole_tiles_by_itself(
    rate: float, base_s: float, decoding: int
) -> None:
    pace = taught(rate * 1.01, base_s, apart=True)
    budget = pace.budget(decoding)
    assert budget % TILE_ROWS == 0
    aim_s = SHARED_STEP_S if decoding else ALONE_STEP_S
    assert budget == TILE_ROWS or base_s + (decoding + budget) / rate <= aim_s * 1.05


def test_prefill_that_takes_turns_stays_within_the_batch() -> None:
    assert taught(1e5, 0.0, batch=100, apart=True).budget(30) == TILE_ROWS
    assert taught(1e5, 0.0, batch=30, apart=True).budget(30) == 30
    assert taught(10.0, 0.0, apart=True).budget(5) == LEAST_TOKENS


def test_a_machine_too_slow_for_tiles_goes_on_in_smaller_steps() -> None:
    pace = Pace(BATCH, 10.0)
    assert pace.budget(0) == LEAST_TOKENS
    assert pace.budget(5) == LEAST_TOKENS


def test_many_streams_are_not_taken_for_prefill() -> None:
    pace = taught(1000.0, 0.01)
    before = pace.expect(0, 512)
    for _ in range(40):
        pace.measure(16, 0, 0.01 + 16 / 1000.0)
    assert pace.expect(0, 512) == pytest.approx(before, rel=0.01)


def test_a_few_tokens_of_prefill_teach_neither() -> None:
    pace = taught(1000.0, 0.01)
    before = pace.expect(3, 100)
    pace.measure(3, PREFILL_TOKENS - 1, 5.0)
    assert pace.expect(3, 100) == before


def test_a_machine_that_got_slower_is_noticed() -> None:
    pace = taught(1000.0, 0.0)
    for _ in range(20):
        pace.measure(0, 128, 128 / 200.0)
    assert pace.expect(0, 200) == pytest.approx(ALONE_STEP_S, rel=0.1)


def test_sixteen_prompts_at_once_take_few_steps_and_whole_tiles() -> None:
    """A machine of 250 tokens a second; only the last steps of prefill may be less than a tile."""
    batching = Batching(
        Limits(slots=16, cells=16 * 256, context_tokens=256, sequences=32, batch_tokens=BATCH)
    )
    pace = taught(250.0, 0.01)
    for number in range(16):
        batching.submit(Work(id=number, prompt=(number,) * 128, most_tokens=64))
    batching.admit(lambda _sequence, _position: True)
    sizes = []
    while any(run.pending > 1 for run in batching.running.values()):
        chunks = batching.plan(pace.budget(batching.decoding))
        sizes.append(sum(len(chunk.tokens) for chunk in chunks))
        for chunk in chunks:
            batching.advance(chunk)
            if chunk.output:
                batching.append(chunk.id, 1)
    assert all(size % TILE_ROWS == 0 for size in sizes[:-1])
    assert len(sizes) < 16 * 128 / LEAST_TOKENS / 2
