"""Whether a tool must be called, as clients say it."""

from __future__ import annotations

from typing import Any

import pytest

from server.api.body import read_object
from server.api.framing import json_bytes
from server.api.tool_choice import anthropic_choice, openai_choice
from server.chat import Tool, ToolChoice
from server.errors import BadRequestError

F, G = (Tool(name=name, description="", parameters={}) for name in "fg")
FREE, ANY = ToolChoice(), ToolChoice(demanded=True)


def openai_says(choice: Any, tools: tuple[Tool, ...] = (F, G), **more: Any) -> Any:
    return openai_choice(read_object(json_bytes({"tool_choice": choice, **more})), tools)


def anthropic_says(choice: Any, tools: tuple[Tool, ...] = (F, G)) -> Any:
    return anthropic_choice(read_object(json_bytes({"tool_choice": choice})), tools)


@pytest.mark.parametrize(
    ("choice", "tools", "words"),
    [
        ("maybe", (F,), "expected none, auto, required or an object, found maybe"),
        ("required", (), "expected tools beside it, found none"),
        ({}, (F,), "tool_choice.type: expected function or allowed_tools, found nothing"),
        ({"type": "x"}, (F,), "tool_choice.type: expected function or allowed_tools, found x"),
        ({"type": "function", "name": "h"}, (F,), 'expected the name of a tool, found "h"'),
        ({"type": "function"}, (F,), 'expected the name of a tool, found ""'),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{"name": "h"}]},
            (F,),
            'expected the name of a tool, found "h"',
        ),
        ({"type": "allowed_tools", "mode": "required", "tools": []}, (F,), "expected tools"),
    ],
)
def test_openai_choice_that_makes_no_sense_is_refused(
    choice: Any, tools: tuple[Tool, ...], words: str
) -> None:
    with pytest.raises(BadRequestError) as caught:
        openai_says(choice, tools)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, (FREE, (F, G))),
        ("auto", (FREE, (F, G))),
        ("none", (FREE, ())),
        ("required", (ANY, (F, G))),
        (
            {"type": "function", "function": {"name": "g"}},
            (ToolChoice(demanded=True, name="g"), (F, G)),
        ),
        ({"type": "function", "name": "g"}, (ToolChoice(demanded=True, name="g"), (F, G))),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"name": "g"}]}, (FREE, (G,))),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "required", "tools": [{"function": {"name": "g"}}]},
            },
            (ANY, (G,)),
        ),
    ],
)
def test_openai_choices(choice: Any, expected: Any) -> None:
    assert openai_says(choice) == expected


def test_parallel_calls_may_be_forbidden() -> None:
    choice, _ = openai_says("required", parallel_tool_calls=False)
    assert choice == ToolChoice(demanded=True, parallel=False)
    choice, _ = anthropic_says({"type": "any", "disable_parallel_tool_use": True})
    assert choice == ToolChoice(demanded=True, parallel=False)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, (FREE, (F, G))),
        ({"type": "auto"}, (FREE, (F, G))),
        ({"type": "none"}, (FREE, ())),
        ({"type": "any"}, (ANY, (F, G))),
        ({"type": "tool", "name": "f"}, (ToolChoice(demanded=True, name="f"), (F, G))),
    ],
)
def test_anthropic_choices(choice: Any, expected: Any) -> None:
    assert anthropic_says(choice) == expected


@pytest.mark.parametrize(
    ("choice", "tools", "words"),
    [
        ({"type": "x"}, (F,), "tool_choice.type: expected auto, any, tool or none, found x"),
        ({"type": "any"}, (), "expected tools beside it, found none"),
        ({"type": "tool", "name": "h"}, (F,), 'expected the name of a tool, found "h"'),
    ],
)
def test_anthropic_choice_that_makes_no_sense_is_refused(
    choice: Any, tools: tuple[Tool, ...], words: str
) -> None:
    with pytest.raises(BadRequestError) as caught:
        anthropic_says(choice, tools)
    assert words in str(caught.value)
