"""Split an answer in OpenAI's harmony format: channels, recipients, messages. Pure.

An answer is a row of messages, ``<|start|>assistant<|channel|>NAME to=WHO<|message|>TEXT<|end|>``;
the prompt ends behind the first ``<|start|>assistant``. Source: OpenAI's harmony response format.

Rules:
 * ``analysis`` is reasoning, ``final`` is visible text, and so is ``commentary`` for nobody;
 * a message for a recipient is a call; ``functions.`` is dropped from its name;
 * the recipient may stand behind the role or behind the channel;
 * a call whose text is no JSON object becomes visible text, its header included;
 * text without a header is visible, because an answer may be continued in its middle.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from server.chat import Tool
from server.output.bodies.named import read_arguments
from server.output.jsontext import MalformedCallError
from server.output.parser import Reader
from server.output.source import Wait

_START, _CHANNEL, _MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
ANSWER_HEADER = f"{_CHANNEL}final{_MESSAGE}"
"""What stands before visible text, behind the prompt."""

_ENDS = ("<|end|>", "<|call|>", "<|return|>")
_RECIPIENT = re.compile(r"\bto=(\S+)")
_NAME = re.compile(r"[\w.-]+")
_HEADER_STOPS = (_MESSAGE, *_ENDS)
_MAX_HEADER_CHARACTERS = 1024
"""Why: a header is a role, a channel, a recipient and a type."""


class HarmonyParser(Reader):
    """The parser of gpt-oss and other models that write harmony."""

    def __init__(self, *, tools: Sequence[Tool] = ()) -> None:
        """Start an answer; without ``tools`` calls stay text."""
        super().__init__(tools)

    def run(self) -> Wait[None]:
        """Messages to the end."""
        first = yield from self.source.begins((_CHANNEL, _START, " to=", "to=", _MESSAGE))
        if not first:
            yield from self._body(self.content)
        while (yield from self.source.peek()):
            yield from self._message()

    def _message(self) -> Wait[None]:
        """One message, from its header to its end."""
        source = self.source
        source.record()
        parts: list[str] = []
        found = yield from source.until(_HEADER_STOPS, parts.append)
        if found != _MESSAGE:
            source.take(len(found))
            header = "".join(parts)
            if header.strip():
                self.content(header)
            return
        header = "".join(parts)
        source.take(len(found))
        _, _, behind = header.partition(_CHANNEL)
        words = behind.split("<|constrain|>")[0].split()
        channel = words[0].partition("<|")[0] if words and not words[0].startswith("to=") else ""
        to = _RECIPIENT.search(header)
        if to and self.tools and len(header) <= _MAX_HEADER_CHARACTERS:
            yield from self._call(to[1].partition("<|")[0].removeprefix("functions."))
        elif channel == "analysis" and not to:
            yield from self._body(self.thinking)
        elif to:
            self.content(source.recorded())
            yield from self._body(self.content)
        else:
            yield from self._body(self.content)

    def _body(self, tell: Callable[[str], None]) -> Wait[None]:
        """The text of a message; its end is dropped."""
        source = self.source
        found = yield from source.until((*_ENDS, _START), tell)
        if found in _ENDS:
            source.take(len(found))

    def _call(self, name: str) -> Wait[None]:
        source = self.source
        try:
            yield from read_arguments(self, name if _NAME.fullmatch(name) else "")
        except MalformedCallError:
            self.broken()
            yield from self._body(self.content)
            return
        yield from source.blanks()
        yield from source.accept(_ENDS)
