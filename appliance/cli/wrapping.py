"""Break streamed text between words, as it comes. Pure: text in, text for the terminal out.

A word is written as soon as its letters are there. If it then proves too long for the line, it is
taken back and written again on the next one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from rich.cells import cell_len

_MIN_COLUMNS: Final = 20
"""Narrower terminals are left alone: hardly a word would fit."""
_BACK_AND_CLEAR: Final = "\x1b[{}D\x1b[K"
# Source: ECMA-48, CUB (cursor back) and EL (erase to the end of the line).


@dataclass(slots=True)
class Wrapping:
    """Follows the cursor of a terminal with so many columns; 0 columns wraps nothing."""

    columns: int
    _at: int = 0
    _word: list[str] = field(default_factory=list)

    def feed(self, text: str) -> str:
        """What to write so that ``text`` appears, with no word across two lines."""
        if self.columns < _MIN_COLUMNS:
            return text
        return "".join(self._next(character) for character in text)

    def _next(self, character: str) -> str:
        if character == "\n":
            self._at = 0
            self._word.clear()
            return character
        width = cell_len(character)
        if character in " \t":
            return self._blank(character)
        before = sum(map(cell_len, self._word))
        self._word.append(character)
        if self._at + width <= self.columns - 1:
            self._at += width
            return character
        if before + width > self.columns // 2:  # a word that is hardly one: break it here
            self._word = [character]
            self._at = width
            return "\n" + character
        self._at = before + width
        back = _BACK_AND_CLEAR.format(before) if before else ""
        return back + "\n" + "".join(self._word)

    def _blank(self, character: str) -> str:
        self._word.clear()
        width = 1 if character == " " else 8 - self._at % 8
        if self._at + width > self.columns - 1:
            self._at = 0
            return "\n"
        self._at += width
        return character
