"""Which texts are computed together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.runner.packing import PACK_TOKENS, Packing, Piece


def texts(*lengths: int) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(range(length)) for length in lengths)


def steps(packing: Packing) -> list[tuple[Piece, ...]]:
    """Everything to the end."""
    found = []
    while packing.busy:
        pieces = packing.plan()
        assert pieces
        packing.advance(pieces)
        found.append(pieces)
    return found


@pytest.mark.parametrize("wrong", [(), texts(0), texts(3, 65)])
def test_no_text_an_empty_and_an_overlong_one_are_refused(wrong: tuple[tuple[int, ...]]) -> None:
    packing = Packing(batch_tokens=64, sequences=8)
    with pytest.raises(ValueError, match="expected"):
        packing.submit(1, wrong)
    assert not packing.busy


def test_short_texts_share_a_step() -> None:
    packing = Packing(batch_tokens=64, sequences=8)
    packing.submit(1, texts(20, 20, 20, 20))
    assert [[piece.index for piece in step] for step in steps(packing)] == [[0, 1, 2], [3]]


def test_step_has_no_more_texts_than_sequences() -> None:
    packing = Packing(batch_tokens=64, sequences=3)
    packing.submit(1, texts(*[1] * 7))
    assert [len(step) for step in steps(packing)] == [3, 3, 1]


def test_text_beyond_the_pack_is_computed_alone() -> None:
    packing = Packing(batch_tokens=4096, sequences=64)
    packing.submit(1, texts(3, 2000, 3))
    assert [[piece.index for piece in step] for step in steps(packing)] == [[0], [1], [2]]


def test_requests_take_turns() -> None:
    packing = Packing(batch_tokens=64, sequences=4)
    packing.submit(1, texts(*[8] * 100))
    packing.submit(2, texts(8, 8))
    first, second = packing.plan(), None
    packing.advance(first)
    second = packing.plan()
    assert [piece.request for piece in first] == [1, 2, 1, 2]
    assert {piece.request for piece in second} == {1}


def test_same_step_is_planned_again_until_it_is_computed() -> None:
    packing = Packing(batch_tokens=64, sequences=4)
    packing.submit(1, texts(30, 40))
    assert packing.plan() == packing.plan()


def test_dropped_request_is_computed_no_more() -> None:
    packing = Packing(batch_tokens=64, sequences=4)
    packing.submit(1, texts(30, 40))
    packing.submit(2, texts(5))
    pieces = packing.plan()
    packing.drop(1)
    packing.advance(pieces)
    packing.drop(3)
    assert not packing.busy


@given(
    lengths=st.lists(
        st.lists(st.integers(1, 700), min_size=1, max_size=12), min_size=1, max_size=6
    ),
    sequences=st.integers(1, 9),
)
def test_every_text_is_computed_once_in_order_and_within_the_limits(
    lengths: list[list[int]], sequences: int
) -> None:
    packing = Packing(batch_tokens=700, sequences=sequences)
    for request, wanted in enumerate(lengths):
        packing.submit(request, texts(*wanted))
    done = steps(packing)
    for step in done:
        assert len(step) <= sequences
        assert sum(len(piece.tokens) for piece in step) <= PACK_TOKENS or len(step) == 1
    for request, wanted in enumerate(lengths):
        mine = [piece for step in done for piece in step if piece.request == request]
        assert [piece.index for piece in mine] == list(range(len(wanted)))
        assert [len(piece.tokens) for piece in mine] == wanted


@given(lengths=st.lists(st.integers(1, 700), min_size=2, max_size=6), others=st.integers(1, 40))
def test_no_request_waits_longer_than_there_are_requests(lengths: list[int], others: int) -> None:
    """One text each beside a request without end."""
    packing = Packing(batch_tokens=700, sequences=64)
    packing.submit(99, texts(*[others] * 1000))
    for request, length in enumerate(lengths):
        packing.submit(request, texts(length))
    waiting = set(range(len(lengths)))
    for _ in range(len(lengths) + 1):
        pieces = packing.plan()
        waiting -= {piece.request for piece in pieces}
        packing.advance(pieces)
    assert not waiting
