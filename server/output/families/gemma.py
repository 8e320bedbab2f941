"""Gemma: calls as ``call:name{key:value}``, and the prompted JSON of Gemma 3.

Gemma 3 has no tokens for tools. Prompted, it writes JSON, bare or in a fence.
Gemma 4 and FunctionGemma write objects with bare keys, strings between marks without escapes.

Source of the format: Google's function calling pages for Gemma 3, FunctionGemma and Gemma 4, and
the models' chat templates.
"""

from __future__ import annotations

from server.output.bodies.expressions import BraceBody, PythonBody
from server.output.bodies.objects import ObjectBody
from server.output.layout import Family, Layout, Tags

GEMMA3 = Family(
    name="gemma3",
    layouts=(
        Layout(
            openers=("```json\n",),
            closers=("```",),
            body=ObjectBody(declared_only=True),
            certain=False,
        ),
        Layout(
            openers=("```tool_call\n",),
            closers=("```",),
            body=ObjectBody(declared_only=True),
        ),
        Layout(openers=("```tool_code\n",), closers=("```",), body=PythonBody()),
        Layout(openers=(), body=ObjectBody(declared_only=True)),
    ),
)

GEMMA4 = Family(
    name="gemma4",
    tags=Tags(open="<|channel>thought", close="<channel|>"),
    layouts=(
        Layout(
            openers=("<|tool_call>",),
            closers=("<tool_call|>",),
            body=BraceBody(mark='<|"|>'),
        ),
    ),
)

FUNCTION_GEMMA = Family(
    name="functiongemma",
    layouts=(
        Layout(
            openers=("<start_function_call>",),
            closers=("<end_function_call>",),
            body=BraceBody(mark="<escape>"),
        ),
    ),
)
