"""Places and positions of sequences with pictures; against a list of every place's position."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.runner.positions import Positions

PARTS = st.lists(
    st.one_of(st.integers(1, 5), st.tuples(st.integers(2, 9), st.integers(1, 4))), max_size=8
)
"""Tokens, or a picture's rows and positions."""


def written(parts: list[int | tuple[int, int]], subject: Positions, sequence: int) -> list[int]:
    """Positions of all places, and of the next one."""
    positions: list[int] = []
    following = 0
    for part in parts:
        if isinstance(part, int):
            positions += range(following, following + part)
            following += part
        else:
            rows, taken = part
            subject.show(sequence, len(positions), rows=rows, positions=taken)
            positions += [following] * rows
            following += taken
    return [*positions, following]


def ends(parts: list[int | tuple[int, int]]) -> list[int]:
    """Places at which nothing is cut through."""
    found = [0]
    for part in parts:
        begin = found[-1]
        found += range(begin + 1, begin + part + 1) if isinstance(part, int) else [begin + part[0]]
    return found


@given(PARTS)
def test_places_have_the_positions_behind_what_is_there(parts: list[int | tuple[int, int]]) -> None:
    subject = Positions()
    positions = written(parts, subject, 1)
    for place in ends(parts):
        assert subject.at(1, place) == positions[place]
        assert subject.at(2, place) == place
    highest = max(positions[:-1], default=-1)
    assert subject.place(1, highest) == len(positions) - 2


@given(PARTS, st.integers(0, 40), st.integers(1, 5))
def test_a_cut_or_shared_sequence_is_that_of_its_beginning(
    parts: list[int | tuple[int, int]], cut: int, more: int
) -> None:
    subject = Positions()
    positions = written(parts, subject, 1)
    end = ends(parts)[min(cut, len(ends(parts)) - 1)]
    subject.copy(1, 2, end)
    subject.cut(1, end)
    for sequence in (1, 2):
        assert subject.at(sequence, end) == positions[end]
        assert subject.at(sequence, end + more) == positions[end] + more
        assert subject.place(sequence, positions[end] + more - 1) == end + more - 1
    subject.cut(1, 0)
    assert not subject.holds(1)
    subject.clear()
    assert not subject.holds(2)
