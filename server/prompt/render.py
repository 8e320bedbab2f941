"""From a conversation to the prompt the model was trained on.

The template decides; where it cannot express something, the conversation is rewritten, see
`server.prompt.adapt`. What it can express is found out in `server.prompt.abilities`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from server.chat import Message, Tool
from server.prompt.abilities import Capabilities, probe
from server.prompt.adapt import adapt
from server.prompt.guard import Guard
from server.prompt.jinja import JinjaTemplate

KNOWN_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
"""Templates spell some roles inside control tokens, so any other role is guarded as a whole."""


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
        if can.null_content and message.tool_calls and not content:
            content = None
        elif can.parts:
            content = [{"type": "text", "text": content}]
        role = message.role if message.role in KNOWN_ROLES else guard.foreign(message.role)
        given: dict[str, Any] = {
            "role": can.result_role if role == "tool" else role,
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
