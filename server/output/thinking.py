"""Split reasoning from the answer: ``<think>…</think>`` at the start of the text. Pure.

Other tags may stand for these two.

Rules:
 * the tag counts only as the first thing that is not blank; later ones are ordinary text;
 * where the prompt already ended with the opening tag, the text starts inside;
 * blanks around the tags belong to neither side; nothing else is dropped;
 * what could still become a tag is held back; `finish` gives it out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Part = tuple[Literal["thinking", "content"], str]
_State = Literal["before", "opened", "inside", "closed", "content"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tags:
    """What stands around reasoning; neither is empty."""

    open: str = "<think>"
    close: str = "</think>"


class ThinkingSplitter:
    """Takes text in any pieces; the parts it gives do not depend on the cuts."""

    def __init__(self, *, opened: bool, tags: Tags) -> None:
        self._tags = tags
        self._state: _State = "opened" if opened else "before"
        self._held = ""

    def feed(self, text: str) -> list[Part]:
        """Take some text and give out what is decided."""
        parts: list[Part] = []
        self._held += text
        while self._advance(parts):
            pass
        return parts

    def finish(self) -> list[Part]:
        """Give out what was held back; the text has ended."""
        held, self._held = self._held, ""
        match self._state:
            case "before" | "content":
                return [("content", held)] if held else []
            case "inside":
                return [("thinking", held)] if held else []
            case "opened" | "closed":
                return []

    def _advance(self, parts: list[Part]) -> bool:
        """Take one step; whether another may follow."""
        match self._state:
            case "before":
                return self._before()
            case "opened" | "closed":
                self._held = self._held.lstrip()
                if self._held:
                    self._state = "inside" if self._state == "opened" else "content"
                return bool(self._held)
            case "inside":
                return self._inside(parts)
            case "content":
                if self._held:
                    parts.append(("content", self._held))
                    self._held = ""
                return False

    def _before(self) -> bool:
        start = self._held.lstrip()
        if start.startswith(self._tags.open):
            self._held = start[len(self._tags.open) :]
            self._state = "opened"
            return True
        if self._tags.open.startswith(start):
            return False
        self._state = "content"
        return True

    def _inside(self, parts: list[Part]) -> bool:
        before, tag, after = self._held.partition(self._tags.close)
        if tag:
            if before.rstrip():
                parts.append(("thinking", before.rstrip()))
            self._held = after
            self._state = "closed"
            return True
        safe = len(before[: len(before) - partial_tag(before, self._tags.close)].rstrip())
        if safe:
            parts.append(("thinking", before[:safe]))
            self._held = before[safe:]
        return False


def partial_tag(text: str, tag: str) -> int:
    """Length of the longest end of ``text`` that could grow into ``tag``; 0 if none."""
    for length in range(min(len(text), len(tag) - 1), 0, -1):
        if tag.startswith(text[-length:]):
            return length
    return 0
