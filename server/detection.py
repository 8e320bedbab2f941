"""How a model writes its output: its template is made to write a call and a thought.

What is known for certain goes before what is seen: the operator's word, then the parser that the
model's own configuration names, as models of Ollama's library do.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from server.chat import Message, Tool, ToolCall
from server.errors import ServerError
from server.output import detect
from server.output.detect import Detected, Evidence
from server.output.families import FAMILIES
from server.output.families.hermes import UNKNOWN
from server.output.layout import Tags
from server.prompt.choice import Choice
from server.prompt.gotemplate.messages import PromptInput
from server.prompt.gotemplate.prompt import PromptTemplate
from server.prompt.gotemplate.template import Limits, TemplateError
from server.prompt.guard import Guard
from server.prompt.jinja import JinjaTemplate
from server.prompt.render import Renderer

Say = Callable[[tuple[Message, ...]], str]
"""Renders a conversation; empty where the template cannot."""

OLLAMA_PARSERS: Mapping[str, str] = MappingProxyType(
    {
        "qwen3": "hermes",
        "qwen3-thinking": "hermes",
        "qwen3-vl-instruct": "hermes",
        "qwen3-vl-thinking": "hermes",
        "olmo3": "plain",
        "olmo3-think": "plain",
        "qwen3-coder": "qwen-coder",
        "qwen3.5": "qwen-coder",
        "nemotron-3-nano": "qwen-coder",
        "nemotron-3.5-nano": "qwen-coder",
        "ministral": "mistral",
        "passthrough": "plain",
        "harmony": "harmony",
        "deepseek3": "deepseek",
        "functiongemma": "functiongemma",
        "gemma4": "gemma4",
        "gemma4-no-thinking": "gemma4",
        "glm-4.7": "glm4",
        "lfm2": "lfm2",
        "lfm2-thinking": "lfm2",
        "cohere": "command-r7b",
    }
)
"""Ollama's names of built-in parsers (August 2026) that read one of our families."""

_USER, _AGAIN = Message(role="user", content="probeuser"), Message(role="user", content="probemore")
_CALL = ToolCall(
    id=detect.CALL_ID,
    name=detect.NAME,
    arguments={detect.KEY: detect.VALUE, detect.NUMBER_KEY: detect.NUMBER},
)
_ASKED = Message(role="assistant", tool_calls=(_CALL,))
_TOLD = Message(
    role="tool", content=detect.RESULT, tool_name=detect.NAME, tool_call_id=detect.CALL_ID
)
_TOOLS = (
    Tool(
        name=detect.NAME,
        description="probedescription",
        parameters={
            "type": "object",
            "properties": {
                detect.KEY: {"type": "string", "description": "probestring"},
                detect.NUMBER_KEY: {"type": "integer", "description": "probeinteger"},
            },
            "required": [detect.KEY],
        },
    ),
)
_LIMITS = Limits(steps=100_000)
"""As in `server.prompt.choice`, and for its reason."""


def detect_output(choice: Choice, *, override: str = "", parser: str = "") -> Detected:
    """How a model writes.

    Args:
        choice: the template its prompts are made with.
        override: the family the operator names; empty for none.
        parser: the parser of Ollama's that the model's configuration names; empty for none.
    """
    evidence = _evidence(choice)
    name, by = override, "configuration"
    if not name:
        name, by = OLLAMA_PARSERS.get(parser, ""), "parser"
    if name and (name in FAMILIES or name == detect.PLAIN.name):
        found = detect.named(name, evidence, by=by)
    else:
        found = detect.detect(evidence)
        if found.by == "nothing" and "tools" in choice.capabilities:
            found = replace(found, family=UNKNOWN)
    shown = choice.go.thinking_tags if choice.go is not None else None
    if shown is not None and not found.family.harmony:
        return replace(found, tags=Tags(open=shown[0], close=shown[1]))
    return found


def _evidence(choice: Choice) -> Evidence:
    say = _speaker(choice)
    plain = say((_USER, Message(role="assistant", content=detect.ANSWER), _AGAIN))
    called = ""
    for behind in ((_AGAIN,), (_TOLD,), (_TOLD, _AGAIN)):
        called = say((_USER, _ASKED, *behind))
        if detect.NAME in called.partition(_USER.content)[2]:
            break
        called = ""
    thought = ""
    for behind in (
        (Message(role="assistant", thinking=detect.THOUGHT, content=detect.ANSWER), _AGAIN),
        (Message(role="assistant", thinking=detect.THOUGHT, tool_calls=(_CALL,)), _TOLD),
    ):
        thought = say((_USER, *behind))
        if detect.THOUGHT in thought:
            break
    return Evidence(source=choice.text, plain=plain, called=called, thought=thought)


def _speaker(choice: Choice) -> Say:
    """How to render with the model's template."""
    if choice.fault:
        return lambda _: ""
    if choice.go is not None:
        go = choice.go
        return lambda messages: _say_go(go, choice, messages)
    renderer = Renderer(JinjaTemplate(choice.text), Guard(()))

    def say(messages: tuple[Message, ...]) -> str:
        if any(each.tool_calls for each in messages) and not renderer.capabilities.calls:
            return ""  # they would be spelled out
        try:
            return renderer.chat(messages, _TOOLS, think=True)
        except ServerError:
            return ""

    return say


def _say_go(go: PromptTemplate, choice: Choice, messages: tuple[Message, ...]) -> str:
    given = PromptInput(messages=messages, tools=_TOOLS, think=True, style=choice.style)
    try:
        return go.render(given, today=dt.date(2000, 1, 1), limits=_LIMITS)
    except TemplateError:
        return ""
