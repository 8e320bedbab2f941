"""Find tool calls that end an answer: JSON behind a tag of the model's template, or bare. Pure.

Rules:
 * calls stand at the end: behind the tag, or from the first character on that is not blank if
   that is ``{`` or ``[``;
 * calls are objects with ``name`` and ``arguments`` or ``parameters``, in a row or in a list;
 * if anything else is there, all of it stays text, the tag included: nothing a model wrote is lost;
 * text before the tag is given out as it comes, everything from the tag on when the text has ended.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from server.chat import ToolCall
from server.output.thinking import partial_tag
from server.output.toolcalls import DECODER, Found, read_call

_BRACKETS = ("{", "[")
_BETWEEN = re.compile(r"[\s,;]*")


class TailCallSplitter:
    """Takes text in any pieces; what it gives, put together, does not depend on the cuts."""

    def __init__(self, *, tag: str, new_call_id: Callable[[], str]) -> None:
        """Start an answer; a bracket as ``tag`` means that nothing stands before calls."""
        self._tag = "" if tag in _BRACKETS else tag
        self._new_call_id = new_call_id
        self._held = ""
        self._began = False
        self._in_calls = False
        self._pieces: list[str] = []

    def feed(self, text: str) -> list[Found]:
        """Take some text and give out what is decided."""
        if self._in_calls:
            self._pieces.append(text)
            return []
        self._held += text
        if not self._began:
            start = self._held.lstrip()
            if not start:
                return []
            self._began = True
            if start.startswith(_BRACKETS):
                return self._enter("", self._held)
        return self._text()

    def finish(self) -> list[Found]:
        """Give out what was held back; the text has ended."""
        held, self._held = self._held + "".join(self._pieces), ""
        self._pieces = []
        if not held:
            return []
        try:
            calls = self._read(held) if self._in_calls else None
        except (ValueError, RecursionError):
            calls = None
        return [held] if calls is None else [*calls]

    def _text(self) -> list[Found]:
        before, tag, after = self._held.partition(self._tag) if self._tag else (self._held, "", "")
        if tag:
            return self._enter(before, tag + after)
        keep = len(before) - (partial_tag(before, self._tag) if self._tag else 0)
        text, self._held = before[:keep], before[keep:]
        return [text] if text else []

    def _enter(self, before: str, held: str) -> list[Found]:
        self._in_calls = True
        self._held, self._pieces = "", [held]
        return [before] if before else []

    def _read(self, held: str) -> list[ToolCall] | None:
        """The calls; ``None`` if there is anything that is no call, or nothing.

        Raises:
            ValueError: there is something that is no JSON.
            RecursionError: it is nested too deep.
        """
        calls: list[ToolCall] = []
        at = self._skip(held, 0)
        while at < len(held):
            value, at = DECODER.raw_decode(held, at)
            values: list[Any] = value if isinstance(value, list) else [value]
            for each in values:
                call = read_call(each, self._new_call_id) if _complete(each) else None
                if call is None:
                    return None
                calls.append(call)
            at = self._skip(held, at)
        return calls or None

    def _skip(self, held: str, at: int) -> int:
        """Behind blanks, separators and tags."""
        while True:
            found = _BETWEEN.match(held, at)
            at = found.end() if found else at
            if not self._tag or not held.startswith(self._tag, at):
                return at
            at += len(self._tag)


def _complete(value: Any) -> bool:
    """Bare JSON may be an answer, so a call must have its arguments."""
    return isinstance(value, dict) and ("arguments" in value or "parameters" in value)
