"""Qwen3-Coder, Qwen 3.5, Nemotron 3, Step 3.5, Seed-OSS: a tag for each argument.

Source of the format: the chat templates that the models named carry.
"""

from __future__ import annotations

from server.output.bodies.tagged import TaggedBody
from server.output.layout import Family, Layout, Tags

_FUNCTION = "<function="


def _body(end: tuple[str, ...], *, lines: bool) -> TaggedBody:
    return TaggedBody(
        name_end=">",
        key=("<parameter=", ">"),
        value_end=("</parameter>",),
        end=end,
        lines=lines,
    )


QWEN_CODER = Family(
    name="qwen-coder",
    layouts=(
        Layout(
            openers=("<tool_call>",),
            closers=("</tool_call>",),
            implied=(_FUNCTION,),
            call_open=(_FUNCTION,),
            lines=True,
            body=_body(("</function>", "</tool_call>"), lines=True),
        ),
    ),
)

SEED_OSS = Family(
    name="seed-oss",
    tags=Tags(open="<seed:think>", close="</seed:think>"),
    layouts=(
        Layout(
            openers=("<seed:tool_call>",),
            closers=("</seed:tool_call>",),
            implied=(_FUNCTION,),
            call_open=(_FUNCTION,),
            lines=True,
            body=_body(("</function>",), lines=False),
        ),
    ),
)
