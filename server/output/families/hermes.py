"""Hermes 2 and 3, Qwen 2.5 and 3, QwQ, Granite 4, MiMo, Bielik: JSON between ``<tool_call>`` tags.

Source of the format: the function calling page of Nous Research's Hermes models, and the chat
templates that the models named carry.
"""

from __future__ import annotations

from server.output.bodies.objects import ObjectBody
from server.output.layout import Family, Layout

HERMES = Family(
    name="hermes",
    layouts=(
        Layout(
            openers=("<tool_call>",),
            closers=("</tool_call>",),
            body=ObjectBody(),
            lines=True,
        ),
    ),
)

UNKNOWN = Family(
    name="generic",
    layouts=(*HERMES.layouts, Layout(openers=(), body=ObjectBody(declared_only=True))),
)
"""For a model that takes tools and does not show how it calls them: tagged, or bare."""
