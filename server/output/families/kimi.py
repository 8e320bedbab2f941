"""Kimi K2: calls between tokens; a call's id is its name and number.

Source of the format: Moonshot AI's tool calling guide for Kimi K2, and the models' templates.
"""

from __future__ import annotations

from server.output.bodies.named import NamedBody
from server.output.layout import Family, Layout

_CALL = "<|tool_call_begin|>"

KIMI = Family(
    name="kimi-k2",
    layouts=(
        Layout(
            openers=("<|tool_calls_section_begin|>",),
            closers=("<|tool_calls_section_end|>",),
            implied=(_CALL,),
            call_open=(_CALL,),
            call_close=("<|tool_call_end|>",),
            body=NamedBody(
                marks=("<|tool_call_argument_begin|>",), prefix="functions.", numbered=True
            ),
        ),
    ),
)
