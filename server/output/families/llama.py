"""Llama 3.1 to 3.3: a bare JSON object, or something behind ``<|python_tag|>``; Functionary 3.1.

A bare object counts as a call only if it names a tool of the request and has arguments, because
it may as well be the answer. Behind the tag stands the same object, or a call of a built-in tool
as in Python: ``brave_search.call(query="…")``.

Source of the format: Meta's prompt format pages for Llama 3.1 to 3.3, and their chat templates;
MeetKai's chat template for Functionary 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass

from server.chat import Tool
from server.output.bodies.expressions import PythonBody
from server.output.bodies.named import NamedBody
from server.output.bodies.objects import ObjectBody
from server.output.lark import Lark
from server.output.layout import CallSink, Family, Layout
from server.output.source import Wait

PYTHON_TAG = "<|python_tag|>"
_OBJECT = ObjectBody(arguments=("parameters", "arguments"), declared_only=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class _TaggedBody:
    """An object or a Python call."""

    def read(self, sink: CallSink) -> Wait[None]:
        """Read one call; see `Body`."""
        yield from sink.source.blanks()
        if (yield from sink.source.peek()) in ("{", "["):
            yield from ObjectBody().read(sink)
        else:
            yield from PythonBody().read(sink)

    def write(self, lark: Lark, tool: Tool) -> str:
        """The object of one call; see `Body`."""
        return _OBJECT.write(lark, tool)


LLAMA = Family(
    name="llama3",
    layouts=(
        Layout(openers=(PYTHON_TAG,), body=_TaggedBody()),
        Layout(openers=(), body=_OBJECT),
    ),
)

FUNCTIONARY = Family(
    name="functionary",
    layouts=(
        Layout(
            openers=("<function=",),
            closers=("</function>",),
            body=NamedBody(marks=(">",)),
        ),
    ),
)
