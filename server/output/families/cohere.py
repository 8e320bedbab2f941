"""Command R7B, Command A: a JSON list between ``<|START_ACTION|>`` tokens; Command R+: in a fence.

Source of the format: Cohere's pages on the prompt formats of Command R, R7B and A, and the
models' chat templates.
"""

from __future__ import annotations

from server.output.bodies.objects import ObjectBody
from server.output.layout import Family, Layout, Tags

_BODY = ObjectBody(names=("tool_name", "name"), arguments=("parameters", "arguments"))

COMMAND = Family(
    name="command-r7b",
    tags=Tags(open="<|START_THINKING|>", close="<|END_THINKING|>"),
    frames=(
        "<|START_RESPONSE|>",
        "<|END_RESPONSE|>",
        "<|START_TEXT|>",
        "<|END_TEXT|>",
    ),
    layouts=(
        Layout(
            openers=("<|START_ACTION|>",),
            closers=("<|END_ACTION|>",),
            body=_BODY,
            listed=True,
        ),
    ),
)

COMMAND_R = Family(
    name="command-r",
    layouts=(
        Layout(
            openers=("Action: ```json\n", "Action:```json\n", "Action:\n```json\n"),
            closers=("```",),
            body=_BODY,
            listed=True,
        ),
    ),
)
