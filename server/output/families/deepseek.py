"""DeepSeek R1, V3 and V3.1: calls between tokens; V3.2 and V4: a tag for each argument.

R1 and V3 write ``function``, the name, and the arguments in a fence; V3.1 only name and
arguments. Some models leave out the token that begins all calls.

Source of the format: the chat templates that DeepSeek's models carry, and the encoding that comes
with V3.2.
"""

from __future__ import annotations

from dataclasses import dataclass

from server.chat import Tool
from server.output.bodies.named import read_arguments, read_name
from server.output.bodies.tagged import TaggedBody
from server.output.lark import Lark
from server.output.layout import CallSink, Family, Layout
from server.output.source import Wait

_CALL = "<｜tool▁call▁begin｜>"
_SEPARATOR = "<｜tool▁sep｜>"
_FENCE = ("```json", "```")
_DSML = "｜DSML｜"


@dataclass(frozen=True, slots=True, kw_only=True)
class _DeepSeekBody:
    """``NAME sep {…}``, or ``function sep NAME`` and the arguments in a fence."""

    def read(self, sink: CallSink) -> Wait[None]:
        """Read one call; see `Body`."""
        source = sink.source
        name, _ = yield from read_name(source, (_SEPARATOR,))
        yield from source.blanks()
        if (yield from source.peek()) != "{":
            name, _ = yield from read_name(source, ("\n",))
        yield from read_arguments(sink, name, fence=_FENCE)

    def write(self, lark: Lark, tool: Tool) -> str:
        """One call in either form; see `Body`."""
        separator, arguments = lark.mark(_SEPARATOR), lark.arguments(tool)
        short = f"{lark.text(tool.name)} {separator} {arguments}"
        opening = lark.text(f"{tool.name}\n{_FENCE[0]}\n")
        closing = lark.text(f"\n{_FENCE[1]}")
        long = f"{lark.text('function')} {separator} {opening} {arguments} {closing}"
        return lark.choice([short, long])


DEEPSEEK = Family(
    name="deepseek",
    layouts=(
        Layout(
            openers=("<｜tool▁calls▁begin｜>", "<｜tool_calls_begin｜>", "<｜tool▁calls｜>"),
            closers=("<｜tool▁calls▁end｜>", "<｜tool_calls_end｜>"),
            implied=(_CALL,),
            call_open=(_CALL,),
            call_close=("<｜tool▁call▁end｜>",),
            body=_DeepSeekBody(),
        ),
    ),
)

DEEPSEEK_DSML = Family(
    name="deepseek-dsml",
    layouts=(
        Layout(
            openers=(f"<{_DSML}function_calls>", f"<{_DSML}tool_calls>"),
            closers=(f"</{_DSML}function_calls>", f"</{_DSML}tool_calls>"),
            lines=True,
            call_open=(f'<{_DSML}invoke name="',),
            body=TaggedBody(
                name_end='">',
                key=(f'<{_DSML}parameter name="', '"'),
                string_mark=('string="', '"'),
                value=">",
                value_end=(f"</{_DSML}parameter>",),
                end=(f"</{_DSML}invoke>",),
            ),
        ),
    ),
)
