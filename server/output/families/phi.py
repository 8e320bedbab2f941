"""Phi-4-mini: a JSON list between ``<|tool_call|>`` tokens. Phi-4-reasoning only thinks.

Source of the format: Microsoft's model cards for Phi-4-mini-instruct and Phi-4-reasoning.
"""

from __future__ import annotations

from server.output.bodies.objects import ObjectBody
from server.output.layout import Family, Layout

PHI4 = Family(
    name="phi4",
    layouts=(
        Layout(
            openers=("<|tool_call|>",),
            closers=("<|/tool_call|>",),
            body=ObjectBody(),
            listed=True,
        ),
    ),
)
