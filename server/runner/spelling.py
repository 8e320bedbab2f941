"""Texts of control tokens that ordinary tokens spell in an answer: only text, and marked as such.

A model that repeats what it was told can write ``<tool_call>`` letter by letter. What frames
reasoning and calls is the token of that name, so where the vocabulary has it the spelled text gets
a mark U+FDD0 before its last character, and whoever parses the answer does not take it for the
token (`server.output.stream` takes the marks out). Pure.

A U+FDD0 of the model's own becomes U+FFFD: Unicode reserves it for marks like this one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

SPELLED = "\ufdd0"
"""The same as `server.output.stream.SPELLED`; neither package may import the other."""


class Spellings:
    """The texts of one vocabulary's control tokens. Never changes: safe in any thread."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        """Take the texts; those of one character say nothing."""
        self._texts = frozenset(text for text in texts if len(text) > 1)
        self._ends = frozenset(text[-1] for text in self._texts)
        self._lengths = tuple(sorted({len(text) for text in self._texts}))
        self.reach = max(self._lengths, default=1) - 1

    def ends(self, text: str, begin: int) -> Iterator[int]:
        """Where a text of a control token ends, as the index of its last character.

        Args:
            text: what was written.
            begin: only those that end here or later.
        """
        for at in range(begin, len(text)):
            if text[at] not in self._ends:
                continue
            if any(text[max(0, at + 1 - size) : at + 1] in self._texts for size in self._lengths):
                yield at
