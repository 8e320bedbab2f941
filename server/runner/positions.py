"""Where the places of prompts stand for the engine, which may give pictures fewer positions. Pure.

A model with M-RoPE gives all rows of a picture one position in time, and their column and row
beside it; what follows stands behind the larger of its sides. Everything else here counts places,
one for each token or row, so the difference is kept in this module, for each sequence.

Rules:
 * a picture counts once all its rows are in the cache; until then its rows are removed with its
   first;
 * no place inside a picture is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Shown:
    """A picture in a sequence: its places, and its positions."""

    start: int
    end: int
    first: int
    behind: int


class Positions:
    """Of all sequences; those without pictures have as many positions as places."""

    def __init__(self) -> None:
        """Begin without pictures."""
        self._shown: dict[int, tuple[_Shown, ...]] = {}

    def at(self, sequence: int, place: int) -> int:
        """The position of a place; of one behind the end, that of what comes next."""
        for picture in reversed(self._shown.get(sequence, ())):
            if picture.end <= place:
                return picture.behind + place - picture.end
        return place

    def place(self, sequence: int, position: int) -> int:
        """The highest place, where this is the highest position; -1 for -1."""
        for picture in reversed(self._shown.get(sequence, ())):
            if picture.first <= position:
                return picture.end - 1 + max(0, position - picture.behind + 1)
        return position

    def show(self, sequence: int, place: int, *, rows: int, positions: int) -> None:
        """Note that a picture is in the cache, behind all that was there."""
        first = self.at(sequence, place)
        picture = _Shown(place, place + rows, first, first + positions)
        self._shown[sequence] = (*self._shown.get(sequence, ()), picture)

    def cut(self, sequence: int, place: int) -> None:
        """Note that a sequence ends before this place."""
        self._keep(sequence, self._shown.get(sequence, ()), place)

    def copy(self, source: int, target: int, end: int) -> None:
        """Note that an empty sequence has the beginning of another."""
        self._keep(target, self._shown.get(source, ()), end)

    def holds(self, sequence: int) -> bool:
        """Whether there are pictures in a sequence."""
        return sequence in self._shown

    def clear(self) -> None:
        """Note that all sequences are empty."""
        self._shown.clear()

    def _keep(self, sequence: int, pictures: tuple[_Shown, ...], end: int) -> None:
        kept = tuple(picture for picture in pictures if picture.end <= end)
        if kept:
            self._shown[sequence] = kept
        else:
            self._shown.pop(sequence, None)
