"""From generated text to chunks: a family's parser, ids for the calls, and the calls put together.

Where ordinary tokens spell the text of a control token, the runner has put a mark inside, so that
no parser takes it for the token. The marks are taken out of what is told.

Pure, but for the ids it is given.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from server.chat import Tool, ToolCall
from server.chunks import (
    Piece,
    TextChunk,
    ThinkingChunk,
    ToolCallChunk,
    ToolCallDeltaChunk,
    ToolCallStartChunk,
)
from server.output.events import (
    CallArguments,
    CallBroken,
    CallEnd,
    CallStart,
    Content,
    Event,
    Mark,
    Thinking,
)
from server.output.harmony import HarmonyParser
from server.output.layout import CallIds, Family, Tags
from server.output.parser import OutputParser, TagParser
from server.wishes import Reasoning

NewCallId = Callable[[CallIds], str]

SPELLED = "\ufdd0"
"""The same as `server.runner.spelling.SPELLED`; the runner may not be imported here."""

PLAIN = Family(name="plain")
"""Text that passes as it comes."""


class OutputStream:
    """Splits one answer.

    Attributes:
        tags: what stands around reasoning.
        thinks: reasoning is looked for.
        enough: the one call that was wanted is there; what follows is not told.
    """

    def __init__(
        self,
        *,
        family: Family = PLAIN,
        tags: Tags | None = None,
        thinking: bool = False,
        opened: bool = False,
        tools: Sequence[Tool] = (),
        new_call_id: NewCallId = str,
        one_call: bool = False,
    ) -> None:
        """Start an answer.

        Args:
            family: who writes it.
            tags: what stands around reasoning; ``None`` for the family's own.
            thinking: look for reasoning.
            opened: the prompt ended inside the reasoning; implies ``thinking``.
            tools: what may be called; only a request that has tools wants calls.
            new_call_id: makes an id, of the kind it is told, for a call that brings none.
            one_call: the answer ends with its first call.
        """
        self.tags = tags or family.tags
        self.thinks = thinking or opened or family.harmony
        self._opened = opened
        self._ids = family.call_ids
        self._new_call_id = new_call_id
        self._parser: OutputParser
        if family.harmony:
            self._parser = HarmonyParser(tools=tools)
        else:
            wanted = self.tags if self.thinks else None
            self._parser = TagParser(family, tags=wanted, opened=opened, tools=tools)
        self.enough = False
        self._one_call = one_call
        self._begun = 0
        self._call = ToolCallStartChunk(index=0, id="", name="")
        self._arguments: list[str] = []

    @property
    def reasoning(self) -> Reasoning:
        """What stands around the reasoning, for who generates the text."""
        return Reasoning(open=self.tags.open, close=self.tags.close, opened=self._opened)

    def feed(self, text: str) -> tuple[Piece, ...]:
        """Take some text and give out what is decided."""
        return self._pieces(self._parser.feed(text))

    def finish(self) -> tuple[Piece, ...]:
        """Give out what was held back; the text has ended."""
        return self._pieces(self._parser.finish())

    def _pieces(self, events: Sequence[Event]) -> tuple[Piece, ...]:
        told: list[Piece] = []
        for event in events:
            if not self.enough:
                told.extend(self._told(event))
                self.enough = self._one_call and isinstance(event, CallEnd)
        return tuple(told)

    def _told(self, event: Event) -> tuple[Piece, ...]:
        match event:
            case Content() | CallBroken():
                text = _unmarked(event.text)
                return (TextChunk(text=text),) if text else ()
            case Thinking():
                text = _unmarked(event.text)
                return (ThinkingChunk(text=text),) if text else ()
            case Mark():
                return ()
            case CallStart():
                call_id = _unmarked(event.id) or self._new_call_id(self._ids)
                name = _unmarked(event.name)
                self._call = ToolCallStartChunk(index=self._begun, id=call_id, name=name)
                self._begun += 1
                self._arguments.clear()
                return (self._call,)
            case CallArguments():
                text = _unmarked(event.text)
                self._arguments.append(text)
                return (ToolCallDeltaChunk(index=self._call.index, arguments=text),) if text else ()
            case CallEnd():
                arguments = json.loads("".join(self._arguments))
                call = ToolCall(id=self._call.id, name=self._call.name, arguments=arguments)
                return (ToolCallChunk(call=call, streamed=True),)


def _unmarked(text: str) -> str:
    return text.replace(SPELLED, "")
