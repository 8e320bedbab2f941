"""A conversation as the data of a Go template, as Ollama lays it out. Pure.

Texts are taken as they are: what stands for images (``[img-0]``) is in the contents already.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from server.chat import Message, Tool
from server.prompt.gotemplate.json import GO_FIELDS, plain_json
from server.prompt.gotemplate.tools import Style, calls_value, tools_value, written_calls
from server.prompt.gotemplate.values import Slice, Struct, Value, from_python

DEFAULT_LEVEL = "medium"
"""What ``think: true`` means to a template that asks for a level."""

_GAP = "\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptInput:
    """What a prompt is made of.

    Attributes:
        messages: the conversation; those of the system among them.
        tools: functions the model may call.
        prompt: text before the gap, to be filled in; used only together with ``suffix``.
        suffix: text behind the gap.
        think: ``None`` where the client did not say; a level is a non-empty string.
        style: how tools and arguments are written.
    """

    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()
    prompt: str = ""
    suffix: str = ""
    think: bool | str | None = None
    style: Style = Style.OLLAMA


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What a template without ``.Messages`` is filled with, once per turn."""

    system: str = ""
    prompt: str = ""
    response: str = ""


def chat_values(given: PromptInput) -> Mapping[str, Value]:
    """The data of a template that goes through ``.Messages`` itself.

    Raises:
        TemplateError: tools or arguments are nested too deep, or are not JSON-like.
    """
    system, messages = collate(given.messages)
    return {
        "System": from_python(system),
        "Messages": Slice(
            items=tuple(_message(message, given.style) for message in messages),
            type_name="[]*api.Message",
            nil=not messages,
        ),
        "Tools": tools_value(given.tools, given.style),
        "Response": "",
        **_thinking(think=given.think),
    }


def insert_values(given: PromptInput) -> Mapping[str, Value]:
    """The data for a text between two others."""
    return {
        "Prompt": from_python(given.prompt),
        "Suffix": from_python(given.suffix),
        "Response": "",
        **_thinking(think=given.think),
    }


def turn_values(turn: Turn, *, think: bool | str | None) -> Mapping[str, Value]:
    """The data for one turn."""
    return {
        "System": from_python(turn.system),
        "Prompt": from_python(turn.prompt),
        "Response": from_python(turn.response),
        **_thinking(think=think),
    }


def turns_of(messages: Sequence[Message]) -> tuple[Turn, ...]:
    """A conversation as turns; the last one is the one to be answered.

    A system message begins a turn if a prompt or a response is pending, a prompt if a response
    is. Messages in other roles are left out: such templates have no place for them.
    """
    _, collated = collate(messages)
    turns: list[Turn] = []
    turn = Turn()
    for message in collated:
        pending = {
            "system": bool(turn.prompt or turn.response),
            "user": bool(turn.response),
        }
        if pending.get(message.role):
            turns.append(turn)
            turn = Turn()
        match message.role:
            case "system":
                turn = replace(turn, system=message.content)
            case "user":
                turn = replace(turn, prompt=message.content)
            case "assistant":
                turn = replace(turn, response=message.content)
    return (*turns, turn)


def collate(messages: Sequence[Message]) -> tuple[str, tuple[Message, ...]]:
    """The system's texts joined, and the messages with neighbours of one role merged.

    Tool messages are never merged. What is merged keeps all calls and images; Ollama keeps those
    of the first message only.
    """
    collated: list[Message] = []
    for message in messages:
        if collated and collated[-1].role == message.role != "tool":
            collated[-1] = _merge(collated[-1], message)
        else:
            collated.append(message)
    system = _GAP.join(message.content for message in messages if message.role == "system")
    return system, tuple(collated)


def _merge(first: Message, second: Message) -> Message:
    thinking = _GAP.join(text for text in (first.thinking, second.thinking) if text)
    return replace(
        first,
        content=first.content + _GAP + second.content,
        thinking=thinking,
        images=first.images + second.images,
        tool_calls=first.tool_calls + second.tool_calls,
    )


def _thinking(*, think: bool | str | None) -> dict[str, Value]:
    level = think if isinstance(think, str) else DEFAULT_LEVEL if think else ""
    return {
        "Think": bool(think),
        "ThinkLevel": from_python(level),
        "IsThinkSet": think is not None,
    }


def _message(message: Message, style: Style) -> Struct:
    # A template can count images and go through them; their bytes are no text.
    image = Struct(type_name="api.ImageData", fields={})
    return Struct(
        type_name="api.Message",
        fields={
            "Role": from_python(message.role),
            "Content": from_python(message.content),
            "Thinking": from_python(message.thinking),
            "Images": Slice(
                items=(image,) * len(message.images),
                type_name="[]api.ImageData",
                nil=not message.images,
            ),
            "ToolCalls": calls_value(message.tool_calls, style),
            "ToolName": from_python(message.tool_name),
            "ToolCallID": from_python(message.tool_call_id),
        },
        json=functools.cache(lambda: plain_json(_written(message), GO_FIELDS)),
    )


def _written(message: Message) -> dict[str, Any]:
    """A message as JSON, without its images."""
    optional = {
        "thinking": message.thinking,
        "tool_calls": written_calls(message.tool_calls),
        "tool_name": message.tool_name,
        "tool_call_id": message.tool_call_id,
    }
    return {
        "role": message.role,
        "content": message.content,
        **{key: value for key, value in optional.items() if value},
    }
