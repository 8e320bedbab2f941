"""Prompts from a Go template, with the client's words kept apart from control tokens. Pure."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

from server.chat import Message, Tool, ToolCall
from server.prompt.gotemplate.messages import PromptInput
from server.prompt.gotemplate.prompt import PromptTemplate
from server.prompt.guard import Guard
from server.prompt.render import KNOWN_ROLES


def render_guarded(
    template: PromptTemplate, given: PromptInput, guard: Guard, *, today: dt.date
) -> str:
    """The prompt, with marks where a client wrote the text of a control token.

    Raises:
        TemplateError: the template does not fit the data, or uses more than its budget.
    """
    return template.render(guarded(given, guard), today=today)


def guarded(given: PromptInput, guard: Guard) -> PromptInput:
    """The same with marks in every text of the client's."""
    return replace(
        given,
        messages=tuple(_message(message, guard) for message in given.messages),
        tools=tuple(_tool(tool, guard) for tool in given.tools),
        prompt=guard.text(given.prompt),
        suffix=guard.text(given.suffix),
    )


def _message(message: Message, guard: Guard) -> Message:
    assistant = message.role == "assistant"
    known = message.role in KNOWN_ROLES
    return replace(
        message,
        role=message.role if known else guard.foreign(message.role),
        content=guard.text(message.content, assistant=assistant),
        thinking=guard.text(message.thinking, assistant=assistant),
        tool_calls=tuple(_call(call, guard) for call in message.tool_calls),
        tool_name=guard.text(message.tool_name),
        tool_call_id=guard.text(message.tool_call_id),
    )


def _call(call: ToolCall, guard: Guard) -> ToolCall:
    return ToolCall(
        id=guard.text(call.id),
        name=guard.text(call.name),
        arguments=guard.data(call.arguments),
    )


def _tool(tool: Tool, guard: Guard) -> Tool:
    return replace(
        tool,
        name=guard.text(tool.name),
        description=guard.text(tool.description),
        parameters=guard.data(tool.parameters),
        raw=guard.data(tool.raw),
    )
