"""Find tool calls in Hermes form: ``<tool_call>{"name": …, "arguments": {…}}</tool_call>``. Pure.

Rules:
 * a well-formed call becomes a call, also when the text ends before its closing tag;
 * anything else stays text, its tags included: nothing a model wrote is lost;
 * blanks next to a call are dropped, blanks elsewhere are kept;
 * what could still become a tag is held back; `finish` gives it out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, NoReturn

from server.chat import ToolCall
from server.output.thinking import partial_tag

OPEN = "<tool_call>"
CLOSE = "</tool_call>"

Found = str | ToolCall


class ToolCallSplitter:
    """Takes text in any pieces; what it gives does not depend on the cuts."""

    def __init__(self, *, new_call_id: Callable[[], str]) -> None:
        self._new_call_id = new_call_id
        self._held = ""
        self._gap = ""
        self._inside = False
        self._searched = 0
        self._after_call = False

    def feed(self, text: str) -> list[Found]:
        """Take some text and give out what is decided."""
        found: list[Found] = []
        self._held += text
        while self._in_call(found) if self._inside else self._in_text(found):
            pass
        return found

    def finish(self) -> list[Found]:
        """Give out what was held back; the text has ended."""
        held, self._held = self._held, ""
        if self._inside:
            self._inside = False
            call = self._read(held)
            gap, self._gap = self._gap, ""
            return [call] if call else [gap + OPEN + held]
        if self._after_call:
            held = held.lstrip()
        return [held] if held else []

    def _in_text(self, found: list[Found]) -> bool:
        if self._after_call:
            self._held = self._held.lstrip()
            if not self._held:
                return False
        before, tag, after = self._held.partition(OPEN)
        keep = len(before) if tag else len(before) - partial_tag(before, OPEN)
        text = before[:keep].rstrip()
        if text:
            found.append(text)
            self._after_call = False
        if tag:
            self._gap, self._held = before[len(text) :], after
            self._inside, self._searched = True, 0
            return True
        self._held = before[len(text) :]
        return False

    def _in_call(self, found: list[Found]) -> bool:
        end = self._held.find(CLOSE, self._searched)
        if end < 0:
            self._searched = max(0, len(self._held) - len(CLOSE) + 1)
            return False
        inner, self._held = self._held[:end], self._held[end + len(CLOSE) :]
        self._inside = False
        call = self._read(inner)
        found.append(call or self._gap + OPEN + inner + CLOSE)
        self._gap = ""
        self._after_call = call is not None
        return True

    def _read(self, inner: str) -> ToolCall | None:
        try:
            return read_call(DECODER.decode(inner), self._new_call_id)
        except (ValueError, RecursionError):
            return None


def read_call(value: Any, new_call_id: Callable[[], str]) -> ToolCall | None:
    """A call from ``{"name": …, "arguments": {…}}``; ``None`` if it is none.

    ``parameters`` may stand for ``arguments``, and these may be JSON in a text.

    Raises:
        ValueError: the text is no JSON.
        RecursionError: it is nested too deep.
    """
    if not isinstance(value, dict):
        return None
    name, arguments = value.get("name"), value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = DECODER.decode(arguments)
    if isinstance(name, str) and name and isinstance(arguments, dict):
        return ToolCall(id=new_call_id(), name=name, arguments=arguments)
    return None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no number of JSON readers")
    return value


DECODER = json.JSONDecoder(strict=False, parse_constant=_no_constant, parse_float=_finite)
"""Texts may hold raw line breaks, but there are no numbers that JSON does not have."""
