"""How a family of models writes reasoning and tool calls. Pure values.

A `Family` is data: the texts that frame, and for each way to write calls a `Layout` with a `Body`
that reads one call. `server.output.parser` reads by them, `server.output.families` lists them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from server.chat import Tool
from server.output.lark import Lark
from server.output.source import Source, Wait


@dataclass(frozen=True, slots=True, kw_only=True)
class Tags:
    """What stands around reasoning; neither is empty."""

    open: str = "<think>"
    close: str = "</think>"


class CallSink(Protocol):
    """Who is told of the call that is being read.

    Attributes:
        source: where it is read from.
        tools: the functions that may be called.
    """

    @property
    def source(self) -> Source:
        """Where it is read from."""

    @property
    def tools(self) -> Sequence[Tool]:
        """The functions that may be called."""

    def start(self, name: str, id: str = "") -> None:  # noqa: A002 - the field's name
        """The name is known."""

    def arguments(self, text: str) -> None:
        """Some more JSON text of the arguments."""

    def end(self) -> None:
        """The call is whole."""


class Body(Protocol):
    """One way to write a call."""

    def read(self, sink: CallSink) -> Wait[None]:
        """Read what stands where a call may begin: one call, or a list of them.

        Raises:
            MalformedCallError: it is none, or breaks off.
        """

    def write(self, lark: Lark, tool: Tool) -> str:
        """The grammar of one call of this tool, with arguments by its schema."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where calls stand.

    Attributes:
        openers: texts that begin calls, the usual one first; empty for calls that nothing
            announces, which only count as the first thing of an answer.
        closers: texts that end them, dropped where they come.
        body: reads one call.
        implied: beginnings of calls whose opener the model forgot; they belong to the call.
        call_open: stands before each call inside.
        call_close: stands behind it, dropped where it comes.
        listed: calls stand in a list between brackets.
        lines: calls stand on lines of their own.
        certain: an opener begins nothing but calls; else it may as well be the answer.
    """

    openers: tuple[str, ...]
    body: Body
    closers: tuple[str, ...] = ()
    implied: tuple[str, ...] = ()
    call_open: tuple[str, ...] = ()
    call_close: tuple[str, ...] = ()
    listed: bool = False
    lines: bool = False
    certain: bool = True


CallIds = Literal["generated", "short"]
"""Ids made here: ``call_`` and eight characters, or the nine letters and digits of Mistral's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How one family of models writes.

    Attributes:
        name: as shown to operators.
        tags: what stands around reasoning, if the template does not tell.
        frames: texts that only frame visible text and are dropped.
        layouts: the ways it writes calls; none if it has no calls.
        call_ids: what ids look like where the model gives none.
        harmony: its answers are in OpenAI's harmony format, and all else here does not count.
    """

    name: str
    tags: Tags = Tags()
    frames: tuple[str, ...] = ()
    layouts: tuple[Layout, ...] = ()
    call_ids: CallIds = "generated"
    harmony: bool = False
