"""Whether a model must call a tool, in OpenAI's and Anthropic's words. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from server.api.body import Fields
from server.chat import Tool, ToolChoice
from server.errors import BadRequestError

Choice = tuple[ToolChoice, tuple[Tool, ...]]
"""The choice, and the tools that it leaves."""


def openai_choice(fields: Fields, tools: tuple[Tool, ...]) -> Choice:
    """``tool_choice`` and ``parallel_tool_calls`` of chat completions and of responses.

    Raises:
        BadRequestError: it is none of the forms, or names a tool that is not there.
    """
    free = ToolChoice(parallel=fields.boolean("parallel_tool_calls", default=True))
    demanded = replace(free, demanded=True)
    chosen = fields.values.get("tool_choice")
    if chosen is None or chosen == "auto":
        return free, tools
    if chosen == "none":
        return ToolChoice(), ()
    if chosen == "required":
        return _checked(demanded, tools)
    if isinstance(chosen, str):
        expected = "none, auto, required or an object"
        raise BadRequestError(f"tool_choice: expected {expected}, found {chosen}")
    wanted = fields.object("tool_choice")
    match wanted.string("type"):
        case "function":
            return _named(replace(demanded, name=_name(wanted)), tools)
        case "allowed_tools":
            listed = wanted.object("allowed_tools") if wanted.has("allowed_tools") else wanted
            names = [_name(each) for each in listed.objects("tools")]
            for name in names:
                _check_name(name, tools)
            left = tuple(tool for tool in tools if tool.name in names)
            return _checked(demanded if listed.string("mode") == "required" else free, left)
        case kind:
            expected = "function or allowed_tools"
            raise BadRequestError(
                f"tool_choice.type: expected {expected}, found {kind or 'nothing'}"
            )


def anthropic_choice(fields: Fields, tools: tuple[Tool, ...]) -> Choice:
    """``tool_choice`` of messages. Raises as `openai_choice`."""
    choice = fields.object("tool_choice")
    parallel = not choice.boolean("disable_parallel_tool_use", default=False)
    match choice.string("type"):
        case "" | "auto":
            return ToolChoice(parallel=parallel), tools
        case "none":
            return ToolChoice(), ()
        case "any":
            return _checked(ToolChoice(demanded=True, parallel=parallel), tools)
        case "tool":
            return _named(ToolChoice(demanded=True, name=choice.string("name")), tools)
        case kind:
            expected = "auto, any, tool or none"
            raise BadRequestError(f"tool_choice.type: expected {expected}, found {kind}")


def _name(fields: Fields) -> str:
    return fields.object("function").string("name") or fields.string("name")


def _checked(choice: ToolChoice, tools: tuple[Tool, ...]) -> Choice:
    if choice.demanded and not tools:
        raise BadRequestError("tool_choice: expected tools beside it, found none")
    return choice, tools


def _named(choice: ToolChoice, tools: tuple[Tool, ...]) -> Choice:
    _check_name(choice.name, tools)
    return _checked(choice, tools)


def _check_name(name: str, tools: Collection[Tool]) -> None:
    if all(tool.name != name for tool in tools):
        raise BadRequestError(f'tool_choice: expected the name of a tool, found "{name}"')
