"""From generated text to chunks: thinking first, then tool calls in what is left. Pure."""

from __future__ import annotations

from collections.abc import Callable

from server.chat import TextChunk, ThinkingChunk, ToolCallChunk
from server.output import toolcalls
from server.output.tailcalls import TailCallSplitter
from server.output.thinking import Part, Tags, ThinkingSplitter
from server.output.toolcalls import Found, ToolCallSplitter

Piece = TextChunk | ThinkingChunk | ToolCallChunk

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
        self._thinking = ThinkingSplitter(opened=opened, tags=tags) if self.thinks else None
        self._calls: ToolCallSplitter | TailCallSplitter | None = None
        if tools and tool_tag == toolcalls.OPEN:
            self._calls = ToolCallSplitter(new_call_id=new_call_id)
        elif tools:
            self._calls = TailCallSplitter(tag=tool_tag, new_call_id=new_call_id)

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
            pieces.extend(_piece(found) for found in self._calls.finish())
        return tuple(pieces)

    def _pieces(self, part: Part) -> list[Piece]:
        kind, text = part
        if kind == "thinking":
            return [ThinkingChunk(text=text)]
        if self._calls is None:
            return [TextChunk(text=text)]
        return [_piece(found) for found in self._calls.feed(text)]


def _piece(found: Found) -> Piece:
    return TextChunk(text=found) if isinstance(found, str) else ToolCallChunk(call=found)
