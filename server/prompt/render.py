"""From a conversation to the prompt the model was trained on.

The template decides; where it cannot express something, the conversation is rewritten: a system
message becomes the beginning of the first user message, a tool's result a user message. What a
template can express is found out by rendering a few probes, once per model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from server.chat import Message, Tool
from server.errors import ServerError
from server.prompt.guard import Guard
from server.prompt.jinja import JinjaTemplate, TemplateBrokenError

KNOWN_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
"""Templates spell some roles inside control tokens, so any other role is guarded as a whole."""

_REASONING = re.compile(r"<think>|:think>|\[THINK\]|reasoning_content|<\|channel\|>")
"""Signs in a template that its model reasons before it answers."""

_S, _U, _A, _V = "probesystem", "probeuser", "probeassistant", "probevalue"


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a template can express.

    Attributes:
        system: system messages.
        parts: contents must be lists of parts, not texts.
        tools: functions the model may call.
        calls: calls in an assistant's turn.
        call_objects: arguments of calls are objects; otherwise they are JSON texts.
        results: tool messages.
        thinking: ``enable_thinking`` changes the prompt, or reasoning is shown.
        empty_tools: "no tools" must be an empty list; as a rule it is ``None``.
    """

    system: bool = True
    parts: bool = False
    tools: bool = False
    calls: bool = False
    call_objects: bool = True
    results: bool = False
    thinking: bool = False
    empty_tools: bool = False


class Renderer:
    """Prompts for one model by its Jinja template.

    Attributes:
        capabilities: what its template can express.
    """

    def __init__(self, template: JinjaTemplate, guard: Guard) -> None:
        """Take the model's template and its vocabulary's guard."""
        self._template = template
        self._guard = guard
        self.capabilities = probe(template)

    def chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        *,
        think: bool | str | None = None,
    ) -> str:
        """The prompt for the next turn; a last message of the assistant's is to be gone on with.

        Args:
            messages: the conversation.
            tools: functions the model may call.
            think: switch reasoning on or off, or name its level; ``None`` leaves it to the
                template.

        Raises:
            TemplateRefusedError: the template does not accept the messages.
            TemplateBrokenError: the template failed.
        """
        begun = ""
        if messages and messages[-1].role == "assistant" and not messages[-1].tool_calls:
            begun = self._guard.text(messages[-1].content, assistant=True)
            messages = messages[:-1]
        can = self.capabilities
        given = [self._message(message) for message in adapt(messages, can)]
        described = [self._guard.data(_tool(tool)) for tool in tools]
        nothing: list[Any] | None = [] if can.empty_tools else None
        return self._template.render(given, described or nothing, **_thinking(think)) + begun

    def _message(self, message: Message) -> dict[str, Any]:
        guard, can = self._guard, self.capabilities
        assistant = message.role == "assistant"
        content: Any = guard.text(message.content, assistant=assistant)
        if can.parts:
            content = [{"type": "text", "text": content}]
        role = message.role
        given: dict[str, Any] = {
            "role": role if role in KNOWN_ROLES else guard.foreign(role),
            "content": content,
        }
        if message.thinking:
            thinking = guard.text(message.thinking, assistant=assistant)
            given |= {"reasoning_content": thinking, "thinking": thinking}
        if message.tool_calls:
            given["tool_calls"] = [
                {
                    "id": guard.text(call.id),
                    "type": "function",
                    "function": {
                        "name": guard.text(call.name),
                        "arguments": _arguments(guard.data(call.arguments), can),
                    },
                }
                for call in message.tool_calls
            ]
        if message.tool_name:
            given |= {"name": guard.text(message.tool_name)}
            given |= {"tool_name": given["name"]}
        if message.tool_call_id:
            given["tool_call_id"] = guard.text(message.tool_call_id)
        return given


def adapt(messages: Iterable[Message], can: Capabilities) -> tuple[Message, ...]:
    """The conversation in the words a template has."""
    adapted: list[Message] = []
    system: list[str] = []
    for message in messages:
        if message.role in ("system", "developer") and not can.system:
            system.append(message.content)
        elif message.role == "user" and system:
            content = "\n\n".join([*system, message.content])
            adapted.append(replace(message, content=content))
            system = []
        elif message.role == "tool" and not can.results:
            adapted.append(replace(message, role="user"))
        else:
            adapted.append(message)
    if system:
        adapted.append(Message(role="user", content="\n\n".join(system)))
    return tuple(adapted)


def probe(template: JinjaTemplate) -> Capabilities:
    """What a template can express, found out by rendering."""
    user: dict[str, Any] = {"role": "user", "content": _U}
    listed = {"role": "user", "content": [{"type": "text", "text": _U}]}
    shown = _try(template, [user]) or _try(template, [listed])
    empty_tools = shown is None
    nothing: list[Any] | None = [] if empty_tools else None
    shown = _try(template, [user], nothing)
    parts = (shown is None or _U not in shown) and _U in (_try(template, [listed], nothing) or "")
    first = listed if parts else user
    wanted: dict[str, Any] = {"type": "object", "properties": {"key": {"type": "string"}}}
    tool = {"name": _V, "description": _S, "parameters": wanted}
    calls = {form: _try_call(template, first, form, nothing) for form in ("object", "text")}
    result = {"role": "tool", "content": _A, "name": _V, "tool_call_id": "probe0001"}
    after = [first, _call("object" if calls["object"] else "text"), result]
    system = _try(template, [{"role": "system", "content": _S}, first], nothing)
    on = _try(template, [first], nothing, enable_thinking=True, thinking=True)
    off = _try(template, [first], nothing, enable_thinking=False, thinking=False)
    return Capabilities(
        system=_S in (system or ""),
        parts=parts,
        tools=_V in (_try(template, [first], [{"type": "function", "function": tool}]) or ""),
        calls=calls["object"] or calls["text"],
        call_objects=calls["object"] or not calls["text"],
        results=_A in (_try(template, after, nothing) or ""),
        thinking=on != off or bool(_REASONING.search(template.source)),
        empty_tools=empty_tools,
    )


def _try(
    template: JinjaTemplate,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    **variables: Any,
) -> str | None:
    try:
        return template.render(messages, tools, **variables)
    except ServerError:
        return None


def _call(form: str) -> dict[str, Any]:
    arguments: Any = {"key": _V}
    if form == "text":
        arguments = json.dumps(arguments)
    function = {"name": "probename", "arguments": arguments}
    call = {"id": "probe0001", "type": "function", "function": function}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def _try_call(
    template: JinjaTemplate, first: Mapping[str, Any], form: str, nothing: list[Any] | None
) -> bool:
    """Whether a call comes out with its arguments as JSON, neither quoted twice nor as Python."""
    asked = [first, _call(form)]
    text = _try(template, [*asked, first], nothing) or _try(template, asked, nothing)
    return text is not None and _V in text and f"'{_V}'" not in text and '\\"' not in text


def _tool(tool: Tool) -> Mapping[str, Any]:
    if tool.raw:
        return tool.raw
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
    }
    return {"type": "function", "function": function}


def _arguments(arguments: Any, can: Capabilities) -> Any:
    return arguments if can.call_objects else json.dumps(arguments, ensure_ascii=False)


def _thinking(think: bool | str | None) -> dict[str, Any]:  # noqa: FBT001 - as in RequestOptions
    """The names under which templates ask about reasoning."""
    if think is None:
        return {}
    switched: dict[str, Any] = {"enable_thinking": bool(think), "thinking": bool(think)}
    if isinstance(think, str) and think:
        switched["reasoning_effort"] = think
    return switched


__all__ = ["Capabilities", "Renderer", "TemplateBrokenError", "adapt", "probe"]
