"""From generated text to chunks: thinking first, then tool calls in what is left. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

from server.chat import (
    Piece,
    Reasoning,
    TextChunk,
    ThinkingChunk,
    ToolCall,
    ToolCallChunk,
    ToolCallDeltaChunk,
    ToolCallStartChunk,
)
from server.output import toolcalls
from server.output.tailcalls import TailCallSplitter
from server.output.thinking import Part, Tags, ThinkingSplitter
from server.output.toolcalls import Found, ToolCallSplitter

DEFAULT_TAGS = Tags()


class OutputStream:
    """Splits one answer.

    With neither thinking nor tools the text passes as it comes.

    Attributes:
        tags: what stands around reasoning.
        thinks: reasoning is looked for.
    """

    def __init__(
        self,
        *,
        thinking: bool,
        opened: bool,
        tools: bool,
        new_call_id: Callable[[], str],
        tags: Tags = DEFAULT_TAGS,
        tool_tag: str = toolcalls.OPEN,
    ) -> None:
        """Start an answer.

        Args:
            thinking: look for reasoning.
            opened: the prompt ended inside the reasoning; implies ``thinking``.
            tools: look for tool calls; only a request that has tools wants them.
            new_call_id: gives each call its id.
            tags: what stands around reasoning.
            tool_tag: what a call begins with.
        """
        self.tags = tags
        self.thinks = thinking or opened
        self._opened = opened
        self._thinking = ThinkingSplitter(opened=opened, tags=tags) if self.thinks else None
        self._calls: ToolCallSplitter | TailCallSplitter | None = None
        self._begun = 0
        if tools and tool_tag == toolcalls.OPEN:
            self._calls = ToolCallSplitter(new_call_id=new_call_id)
        elif tools:
            self._calls = TailCallSplitter(tag=tool_tag, new_call_id=new_call_id)

    @property
    def reasoning(self) -> Reasoning:
        """What stands around the reasoning, for who generates the text."""
        return Reasoning(open=self.tags.open, close=self.tags.close, opened=self._opened)

    def feed(self, text: str) -> tuple[Piece, ...]:
        """Take some text and give out what is decided."""
        parts: list[Part] = [("content", text)] if text else []
        if self._thinking is not None:
            parts = self._thinking.feed(text)
        return tuple(piece for part in parts for piece in self._pieces(part))

    def finish(self) -> tuple[Piece, ...]:
        """Give out what was held back; the text has ended."""
        parts = self._thinking.finish() if self._thinking is not None else []
        pieces = [piece for part in parts for piece in self._pieces(part)]
        if self._calls is not None:
            pieces.extend(self._found(self._calls.finish()))
        return tuple(pieces)

    def _pieces(self, part: Part) -> list[Piece]:
        kind, text = part
        if kind == "thinking":
            return [ThinkingChunk(text=text)]
        if self._calls is None:
            return [TextChunk(text=text)]
        return self._found(self._calls.feed(text))

    def _found(self, found: Iterable[Found]) -> list[Piece]:
        pieces: list[Piece] = []
        for each in found:
            pieces.extend([TextChunk(text=each)] if isinstance(each, str) else self._call(each))
        return pieces

    def _call(self, call: ToolCall) -> tuple[Piece, ...]:
        index, self._begun = self._begun, self._begun + 1
        return (
            ToolCallStartChunk(index=index, id=call.id, name=call.name),
            ToolCallDeltaChunk(
                index=index, arguments=json.dumps(call.arguments, ensure_ascii=False)
            ),
            ToolCallChunk(call=call, streamed=True),
        )
