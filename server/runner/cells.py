"""How many cells of the KV cache are taken, when sequences share their beginnings. Pure.

A sequence is a row of spans; a span that several sequences hold is one object in all their rows.
So shared cells count once, and it is known which positions are a sequence's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class _Span:
    """Consecutive positions, and how many sequences hold them."""

    length: int
    holders: int = 1


class Cells:
    """The positions of all sequences.

    Attributes:
        used: cells taken, shared ones counted once.
    """

    def __init__(self) -> None:
        self.used = 0
        self._rows: dict[int, list[_Span]] = {}

    def length(self, sequence: int) -> int:
        """Positions that a sequence holds."""
        return sum(span.length for span in self._rows.get(sequence, ()))

    def shared(self, sequence: int) -> int:
        """Positions at the start of a sequence up to the last that others hold too."""
        at = shared = 0
        for span in self._rows.get(sequence, ()):
            at += span.length
            if span.holders > 1:
                shared = at
        return shared

    def union(self, sequences: Iterable[int]) -> int:
        """Cells that these sequences hold together."""
        spans = {id(span): span.length for one in sequences for span in self._rows.get(one, ())}
        return sum(spans.values())

    def beyond(self, sequence: int, end: int, others: Iterable[int]) -> int:
        """Cells of the first ``end`` positions of a sequence that none of the others holds."""
        known = {id(span) for one in others for span in self._rows.get(one, ())}
        at = count = 0
        for span in self._rows.get(sequence, ()):
            if id(span) not in known:
                count += min(span.length, max(end - at, 0))
            at += span.length
        return count

    def set_length(self, sequence: int, length: int) -> None:
        """Let a sequence end at ``length``: new cells of its own, or less of what it held."""
        row = self._rows.setdefault(sequence, [])
        more = length - self.length(sequence)
        if more < 0:
            self._release(row, self._split(sequence, length), len(row))
        elif more and row and row[-1].holders == 1:
            row[-1].length += more
        elif more:
            row.append(_Span(more))
        self.used += max(more, 0)

    def share(self, source: int, target: int, end: int) -> None:
        """Let an empty ``target`` hold the first ``end`` positions of ``source``."""
        assert not self.length(target)
        row = self._rows[source][: self._split(source, end)]
        for span in row:
            span.holders += 1
        self._rows[target] = row

    def cut_out(self, sequence: int, start: int, end: int) -> None:
        """Let a sequence give up positions ``start`` to ``end``; what follows moves down."""
        self._split(sequence, end)
        first = self._split(sequence, start)
        row = self._rows[sequence]
        at, last = start, first
        while at < end:
            at += row[last].length
            last += 1
        self._release(row, first, last)

    def _release(self, row: list[_Span], first: int, last: int) -> None:
        for span in row[first:last]:
            span.holders -= 1
            if not span.holders:
                self.used -= span.length
        del row[first:last]

    def _split(self, sequence: int, position: int) -> int:
        """Make a span begin at a position, for all who hold it; returns its index in the row."""
        at = 0
        for index, span in enumerate(self._rows.get(sequence, ())):
            if at >= position:
                return index
            if at + span.length > position:
                rest = _Span(at + span.length - position, span.holders)
                span.length = position - at
                for row in self._rows.values():
                    for place, other in enumerate(row):
                        if other is span:
                            row.insert(place + 1, rest)
                            break
                return index + 1
            at += span.length
        return len(self._rows.get(sequence, ()))
