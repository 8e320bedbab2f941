"""Granite 3.x: ``<|tool_call|>`` and a JSON list; its answers may stand in ``<response>``.

Granite 4 writes as Hermes does, see `server.output.families.hermes`.

Source of the format: IBM's prompt engineering guide for Granite 3.x, and the models' templates.
"""

from __future__ import annotations

from server.output.bodies.objects import ObjectBody
from server.output.layout import Family, Layout

GRANITE3 = Family(
    name="granite3",
    frames=("<response>", "</response>"),
    layouts=(
        Layout(openers=("<|tool_call|>",), body=ObjectBody(), listed=True),
        Layout(openers=("<tool_call>",), closers=("</tool_call>",), body=ObjectBody()),
    ),
)
