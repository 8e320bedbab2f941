"""LFM2: Python calls between tokens. Apertus: JSON objects with the name as their key.

Source of the format: Liquid AI's tool use page and model cards, the Swiss AI Initiative's chat
template for Apertus.
"""

from __future__ import annotations

from dataclasses import dataclass

from server.chat import Tool
from server.output.bodies.expressions import PythonBody
from server.output.bodies.objects import ObjectBody
from server.output.lark import Lark
from server.output.layout import CallSink, Family, Layout, Tags
from server.output.source import Wait


@dataclass(frozen=True, slots=True, kw_only=True)
class _LiquidBody:
    """A list of Python calls; told to, the model writes JSON."""

    def read(self, sink: CallSink) -> Wait[None]:
        """Read one call or a list of calls; see `Body`."""
        source = sink.source
        yield from source.blanks()
        if (yield from source.begins(("{", "[{"))):
            yield from ObjectBody().read(sink)
        else:
            yield from PythonBody().read(sink)

    def write(self, lark: Lark, tool: Tool) -> str:
        """The expression of one call; see `Body`."""
        return PythonBody().write(lark, tool)


LFM2 = Family(
    name="lfm2",
    layouts=(
        Layout(
            openers=("<|tool_call_start|>",),
            closers=("<|tool_call_end|>",),
            body=_LiquidBody(),
            listed=True,
        ),
    ),
)

APERTUS = Family(
    name="apertus",
    tags=Tags(open="<|inner_prefix|>", close="<|inner_suffix|>"),
    layouts=(
        Layout(
            openers=("<|tools_prefix|>",),
            closers=("<|tools_suffix|>",),
            body=ObjectBody(keyed=True),
            listed=True,
        ),
    ),
)
