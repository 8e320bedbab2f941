"""Read a text that is still being written. Pure.

A parser is a coroutine: it reads from a `Source` and waits (``yield``) where what it sees does not
decide yet. So it is written as if the whole text were there, and what it does cannot depend on how
the text was cut into pieces.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

_T = TypeVar("_T")

Wait = Generator[None, None, _T]
"""A coroutine that waits for more text and then returns something."""

_BLANKS = re.compile(r"\s*")


class Source:
    """Text as it arrives.

    Attributes:
        ended: no more will come.
    """

    def __init__(self) -> None:
        self.ended = False
        self._buffer = ""
        self._at = 0
        self._unclaimed: list[str] = []
        self._record: list[str] = []

    def put(self, text: str) -> None:
        """Add what has arrived."""
        self._buffer = self._buffer[self._at :] + text
        self._at = 0

    def claim(self) -> str:
        """All text taken since the last claim."""
        claimed = "".join(self._unclaimed)
        self._unclaimed.clear()
        return claimed

    def record(self) -> None:
        """Remember from here on what is taken."""
        self._record.clear()

    def recorded(self) -> str:
        """All text taken since `record`."""
        return "".join(self._record)

    def take(self, count: int) -> str:
        """The next characters, which are there."""
        text = self._buffer[self._at : self._at + count]
        self._at += len(text)
        self._unclaimed.append(text)
        self._record.append(text)
        return text

    def peek(self) -> Wait[str]:
        """The next character; empty at the end."""
        while self._at == len(self._buffer):
            if self.ended:
                return ""
            yield
        return self._buffer[self._at]

    def match(self, pattern: re.Pattern[str]) -> str:
        """What of the text that is there matches here; never waits."""
        found = pattern.match(self._buffer, self._at)
        return found[0] if found else ""

    def blanks(self) -> Wait[str]:
        """Take white space."""
        taken = ""
        while (yield from self.peek()).isspace():
            taken += self.take(len(self.match(_BLANKS)))
        return taken

    def begins(self, options: Sequence[str]) -> Wait[str]:
        """The longest of the options that the text goes on with, not taken; empty if none."""
        longest = max(map(len, options), default=0)
        while True:
            head = self._buffer[self._at : self._at + longest]
            undecided = any(len(head) < len(o) and o.startswith(head) for o in options)
            if self.ended or not undecided:
                return max((o for o in options if o and head.startswith(o)), key=len, default="")
            yield

    def accept(self, options: Sequence[str]) -> Wait[str]:
        """Take the longest of the options that the text goes on with; empty if none."""
        found = yield from self.begins(options)
        return self.take(len(found))

    def until(self, stops: Sequence[str], sink: Callable[[str], None]) -> Wait[str]:
        """Pass on text up to one of the stops, each piece as soon as it is decided.

        Returns:
            The stop, not taken; empty at the end of the text.
        """
        pattern, beginnings = _searcher(tuple(stops))
        while True:
            found = pattern.search(self._buffer, self._at) if stops else None
            end = found.start() if found else len(self._buffer) - self._partial(beginnings)
            if end > self._at:
                sink(self.take(end - self._at))
            if found:
                return found[0]
            if self.ended:
                if self._at < len(self._buffer):
                    sink(self.take(len(self._buffer) - self._at))
                return ""
            yield

    def _partial(self, beginnings: frozenset[str]) -> int:
        """Length of the longest end of the text that may grow into a stop."""
        longest = min(max(map(len, beginnings), default=0), len(self._buffer) - self._at)
        for length in range(longest, 0, -1):
            if self._buffer[len(self._buffer) - length :] in beginnings:
                return length
        return 0


@functools.lru_cache(maxsize=256)
def _searcher(stops: tuple[str, ...]) -> tuple[re.Pattern[str], frozenset[str]]:
    """A pattern for the first of the stops, and all their proper beginnings."""
    pattern = re.compile("|".join(re.escape(stop) for stop in sorted(stops, key=len, reverse=True)))
    return pattern, frozenset(stop[:n] for stop in stops for n in range(1, len(stop)))
