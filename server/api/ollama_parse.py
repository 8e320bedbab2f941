"""Ollama's request bodies to our vocabulary. Pure.

Only shapes are judged here. Whether the model exists, can think, or takes the options is asked
later, in Ollama's order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from server.api.body import Fields, own_options
from server.api.framing import json_bytes
from server.api.keep_alive import parse_keep_alive
from server.chat import ChatRequest, GenerateRequest, Message, Tool, ToolCall
from server.errors import BadRequestError
from server.wishes import Constraint

MOST_TOP_LOGPROBS = 20
THINK_LEVELS = ("high", "medium", "low", "max")
_THINK_FORMS = '"high", "medium", "low", "max", true, or false'


def parse_chat(fields: Fields) -> ChatRequest:
    """The body of ``/api/chat``.

    Raises:
        BadRequestError: a field has the wrong type or an impossible value.
    """
    return ChatRequest(
        messages=tuple(_message(message) for message in fields.objects("messages")),
        tools=tuple(parse_tool(tool) for tool in fields.objects("tools")),
        **_shared(fields),
    )


def parse_generate(fields: Fields) -> GenerateRequest:
    """The body of ``/api/generate``.

    Raises:
        BadRequestError: a field has the wrong type or an impossible value.
    """
    return GenerateRequest(
        prompt=fields.string("prompt"),
        system=fields.string("system") or None,
        template=fields.string("template") or None,
        suffix=fields.string("suffix"),
        raw=fields.boolean("raw", default=False),
        context=_context(fields),
        images=fields.images("images"),
        **_shared(fields),
    )


def parse_tool(fields: Fields) -> Tool:
    """A tool; every keyword of its schema is kept."""
    function = fields.object("function")
    name = function.string("name")
    if not name:
        raise BadRequestError(f"{function.path('name')}: expected string, found nothing")
    return Tool(
        name=name,
        description=function.string("description"),
        parameters=function.object("parameters").values,
        strict=function.boolean("strict", default=False),
        raw=fields.values,
    )


def parse_top_logprobs(*, wanted: bool, top: int) -> int | None:
    """How many alternatives to report; ``None`` without log-probabilities.

    Raises:
        BadRequestError: the number is out of range.
    """
    if not 0 <= top <= MOST_TOP_LOGPROBS:
        raise BadRequestError(f"top_logprobs must be between 0 and {MOST_TOP_LOGPROBS}")
    return top if wanted else None


def _shared(fields: Fields) -> dict[str, Any]:
    return {
        "model": fields.string("model"),
        "options": own_options(fields),
        "keep_alive_s": parse_keep_alive(fields.values.get("keep_alive")),
        "stream": fields.boolean("stream", default=True),
        "think": _think(fields.values.get("think")),
        "truncate": fields.boolean("truncate", default=True),
        "shift": fields.boolean("shift", default=True),
        "debug_render_only": fields.boolean("_debug_render_only", default=False),
        "top_logprobs": parse_top_logprobs(
            wanted=fields.boolean("logprobs", default=False), top=fields.integer("top_logprobs")
        ),
        **_format(fields.values.get("format")),
    }


def _format(value: Any) -> dict[str, Any]:
    """The constraint, or why it is none: Ollama looks at it after the model was found."""
    if value is None or value == "":
        return {}
    if value == "json":
        return {"constraint": Constraint(kind="json")}
    if isinstance(value, dict):
        return {"constraint": Constraint(kind="json_schema", source=json_bytes(value).decode())}
    found = json_bytes({"": value})[4:-1].decode()
    wanted = 'expected "json" or a valid JSON Schema object'
    return {"refusal": f"invalid format: {found:.200}; {wanted}"}


def _think(value: Any) -> bool | str | None:
    if value is None or isinstance(value, bool) or value in THINK_LEVELS:
        return value  # type: ignore[no-any-return]  # narrowed by the comparison
    if isinstance(value, str):
        raise BadRequestError(f'invalid think value: "{value}" (must be {_THINK_FORMS})')
    raise BadRequestError(f"think must be a boolean or string ({_THINK_FORMS})")


def _message(fields: Fields) -> Message:
    role = fields.string("role").lower()
    if not role:
        raise BadRequestError(f"{fields.path('role')}: expected string, found nothing")
    return Message(
        role=role,
        content=fields.string("content"),
        thinking=fields.string("thinking"),
        images=fields.images("images"),
        tool_calls=tuple(_tool_call(call) for call in fields.objects("tool_calls")),
        tool_name=fields.string("tool_name"),
        tool_call_id=fields.string("tool_call_id"),
    )


def _tool_call(fields: Fields) -> ToolCall:
    function = fields.object("function")
    return ToolCall(
        id=fields.string("id"),
        name=function.string("name"),
        arguments=function.object("arguments").values,
    )


def _context(fields: Fields) -> tuple[int, ...]:
    return token_ids(fields.array("context"), at="context")


def token_ids(values: Sequence[Any], *, at: str) -> tuple[int, ...]:
    """Token ids; whether the vocabulary has them is asked later.

    Raises:
        BadRequestError: one is no id.
    """
    for index, token in enumerate(values):
        if isinstance(token, bool) or not isinstance(token, int) or token < 0:
            raise BadRequestError(f"{at}[{index}]: expected token id, found {token!r:.40}")
    return tuple(values)
