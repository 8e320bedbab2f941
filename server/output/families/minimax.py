"""MiniMax M2, MiniCPM 5: XML with the names as attributes. MiniMax M1: JSON, one call a line.

Source of the format: the chat templates that the models named carry.
"""

from __future__ import annotations

from server.output.bodies.objects import ObjectBody
from server.output.bodies.tagged import TaggedBody
from server.output.layout import Family, Layout

MINIMAX_M2 = Family(
    name="minimax-m2",
    layouts=(
        Layout(
            openers=("<minimax:tool_call>",),
            closers=("</minimax:tool_call>",),
            lines=True,
            call_open=('<invoke name="',),
            body=TaggedBody(
                name_end='">',
                key=('<parameter name="', '">'),
                value_end=("</parameter>",),
                end=("</invoke>",),
            ),
        ),
    ),
)

MINICPM = Family(
    name="minicpm5",
    layouts=(
        Layout(
            openers=('<function name="',),
            body=TaggedBody(
                name_end='">',
                key=('<param name="', '">'),
                value_end=("</param>",),
                end=("</function>",),
            ),
        ),
    ),
)

MINIMAX_M1 = Family(
    name="minimax-m1",
    layouts=(
        Layout(
            openers=("<tool_calls>",), closers=("</tool_calls>",), body=ObjectBody(), lines=True
        ),
    ),
)
