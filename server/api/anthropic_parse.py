"""Anthropic's message bodies to our vocabulary. Pure.

Rules:
 * a model thinks only when it is asked to, because clients that do not ask read the first block
   as text; asked of a model that cannot, the wish is dropped without a word, as in Ollama;
 * an assistant's message at the end begins the answer, which is told without it;
 * results of tools become turns of their own, before what else their message says;
 * tools that Anthropic's servers would run are refused: nothing here searches the web.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from server.api.body import Fields, decode_base64, type_name
from server.api.framing import json_bytes
from server.api.keep_alive import parse_keep_alive
from server.api.tool_choice import anthropic_choice
from server.chat import ChatRequest, JsonObject, Message, Tool, ToolCall
from server.errors import BadRequestError, ForbiddenError
from server.wishes import Constraint

_EFFORT: Mapping[str, str] = {
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "max",
    "max": "max",
}
_PASSED_ON = ("temperature", "top_p", "top_k")
_IGNORED_BLOCKS = frozenset({"redacted_thinking", "server_tool_use", "web_search_tool_result"})
"""Parts of earlier answers that only Anthropic's servers can read."""

WEB_SEARCH_REFUSED = "ollama cloud is disabled: web search is unavailable"


def parse_messages(fields: Fields) -> ChatRequest:
    """The body of ``/v1/messages``; its missing fields are refused in Ollama's order.

    Raises:
        BadRequestError: a field is missing, has the wrong type or an impossible value.
        ForbiddenError: a tool is asked for that would leave this machine.
    """
    if not fields.string("model"):
        raise BadRequestError("model is required")
    if fields.integer("max_tokens") <= 0:
        raise BadRequestError("max_tokens is required and must be positive")
    return _request(fields)


def parse_count(fields: Fields) -> ChatRequest:
    """The body of ``/v1/messages/count_tokens``, which has no ``max_tokens``. Raises likewise."""
    if not fields.string("model"):
        raise BadRequestError("model is required")
    return _request(fields)


def _request(fields: Fields) -> ChatRequest:
    messages = _messages(fields)
    if not messages:
        raise BadRequestError("messages is required")
    think = _think(fields)
    continued = _is_begun(messages, think=think)
    system = _texts(fields, "system")
    if system:
        messages = (Message(role="system", content=system), *messages)
    tools = tuple(_tool(tool) for tool in fields.objects("tools"))
    choice, tools = anthropic_choice(fields, tools)
    return ChatRequest(
        model=fields.string("model"),
        messages=messages,
        tools=tools,
        tool_choice=choice,
        options=_options(fields),
        keep_alive_s=parse_keep_alive(fields.values.get("keep_alive")),
        stream=fields.boolean("stream", default=False),
        constraint=_format(fields),
        think=think,
        think_if_able=True,
        continued=continued,
        announced=True,
    )


def _is_begun(messages: tuple[Message, ...], *, think: bool | str) -> bool:
    """Whether the last message is the beginning of the answer.

    Raises:
        BadRequestError: it is, and cannot be gone on with.
    """
    last = messages[-1]
    if last.role != "assistant" or last.tool_calls or not last.content:
        return False
    if last.content != last.content.rstrip():
        raise BadRequestError(
            "messages: final assistant content cannot end with trailing whitespace"
        )
    if all(message.role in {"system", "assistant"} for message in messages):
        raise BadRequestError("messages: expected a user's before one that begins the answer")
    if think:
        raise BadRequestError(
            "messages: expected no assistant's at the end where the model is to think first"
        )
    return True


def _options(fields: Fields) -> JsonObject:
    """Native options: those sent as ``options``, then Anthropic's own names over them."""
    options = dict(fields.object("options").values)
    options |= {name: fields.values[name] for name in _PASSED_ON if fields.has(name)}
    if fields.has("max_tokens"):
        options["num_predict"] = fields.integer("max_tokens")
    if fields.has("stop_sequences"):
        options["stop"] = list(fields.array("stop_sequences"))
    return options


def _think(fields: Fields) -> bool | str:
    effort = fields.object("output_config").string("effort")
    if effort and effort not in _EFFORT:
        expected = ", ".join(_EFFORT)
        raise BadRequestError(f"output_config.effort: expected one of {expected}, found {effort}")
    kind = fields.object("thinking").string("type")
    match kind:
        case "disabled":
            return False
        case "enabled" | "adaptive":
            return _EFFORT[effort] if effort else True
        case "":
            return _EFFORT[effort] if effort else False
        case _:
            raise BadRequestError(
                f"thinking.type: expected enabled, disabled or adaptive, found {kind}"
            )


def _format(fields: Fields) -> Constraint | None:
    """The schema of ``output_config.format``; ``output_format`` is its older name."""
    wanted = fields.object("output_config").object("format")
    wanted = wanted if wanted.values else fields.object("output_format")
    if not wanted.values:
        return None
    if wanted.string("type") != "json_schema":
        raise BadRequestError(f"{wanted.path('type')}: expected json_schema, found something else")
    schema = wanted.object("schema").values
    return Constraint(kind="json_schema", source=json_bytes(schema).decode())


def _tool(fields: Fields) -> Tool:
    """A tool in the form templates know; every keyword of its schema is kept."""
    kind = fields.string("type", "custom")
    if kind.startswith(("web_search", "web_fetch")):
        raise ForbiddenError(WEB_SEARCH_REFUSED)
    if kind != "custom":
        raise BadRequestError(f"{fields.path('type')}: expected custom, found {kind}")
    name = fields.string("name")
    if not name:
        raise BadRequestError(f"{fields.path('name')}: expected string, found nothing")
    description = fields.string("description")
    parameters = fields.object("input_schema").values
    function = {"name": name, "description": description, "parameters": parameters}
    return Tool(
        name=name,
        description=description,
        parameters=parameters,
        strict=fields.boolean("strict", default=False),
        raw={"type": "function", "function": function},
    )


def _messages(fields: Fields) -> tuple[Message, ...]:
    called: dict[str, str] = {}
    messages: list[Message] = []
    for message in fields.objects("messages"):
        role = message.string("role")
        if role not in {"user", "assistant", "system"}:
            expected = "user or assistant"
            raise BadRequestError(f"{message.path('role')}: expected {expected}, found {role!r}")
        content = _content(message, called)
        messages.extend(content.results)
        if content.says_something or not content.results:
            messages.append(content.message(role))
    return tuple(messages)


@dataclass(slots=True)
class _Content:
    """What the blocks of one message hold."""

    texts: list[str] = field(default_factory=list)
    thinking: list[str] = field(default_factory=list)
    images: list[bytes] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    results: list[Message] = field(default_factory=list)

    @property
    def says_something(self) -> bool:
        return bool(self.texts or self.thinking or self.images or self.calls)

    def message(self, role: str) -> Message:
        return Message(
            role=role,
            content="\n\n".join(self.texts),
            thinking="\n\n".join(self.thinking),
            images=tuple(self.images),
            tool_calls=tuple(self.calls),
        )


def _content(message: Fields, called: dict[str, str], *, in_result: bool = False) -> _Content:
    """Read a message's content, or a result's; ``called`` keeps the names of the calls so far."""
    content = _Content()
    if isinstance(message.values.get("content"), str):
        content.texts.append(message.string("content"))
        return content
    for block in message.objects("content"):
        match block.string("type"):
            case "text":
                content.texts.append(block.string("text"))
            case "thinking":
                content.thinking.append(block.string("thinking"))
            case "image":
                content.images.append(_image(block))
            case "document":
                content.texts.append(_document(block))
            case "tool_use":
                content.calls.append(_call(block))
                called[block.string("id")] = block.string("name")
            case "tool_result" if not in_result:
                content.results.append(_result(block, called))
            case other if other not in _IGNORED_BLOCKS:
                raise BadRequestError(f"unknown content block type: {other}")
    return content


def _call(block: Fields) -> ToolCall:
    return ToolCall(
        id=block.string("id"), name=block.string("name"), arguments=block.object("input").values
    )


def _result(block: Fields, called: Mapping[str, str]) -> Message:
    inner = _content(block, {}, in_result=True)
    call_id = block.string("tool_use_id")
    return Message(
        role="tool",
        content="\n\n".join(inner.texts),
        images=tuple(inner.images),
        tool_name=called.get(call_id, ""),
        tool_call_id=call_id,
    )


def _image(block: Fields) -> bytes:
    source = block.object("source")
    kind = source.string("type")
    if kind != "base64":
        raise BadRequestError(
            f"invalid image source type: {kind}. Only base64 images are supported."
        )
    return decode_base64(source.values.get("data"), at=source.path("data"))


def _document(block: Fields) -> str:
    source = block.object("source")
    if source.string("type") != "text":
        found = source.string("type") or "nothing"
        raise BadRequestError(f"{source.path('type')}: expected text, found {found}")
    return source.string("data")


def _texts(fields: Fields, name: str) -> str:
    """A text, or an array of text blocks with a blank line between them."""
    value: Any = fields.values.get(name)
    if not isinstance(value, list):
        return fields.string(name)
    texts = []
    for block in fields.objects(name):
        if block.string("type") != "text":
            found = block.string("type") or type_name(block.values.get("type"))
            raise BadRequestError(f"{block.path('type')}: expected text, found {found}")
        texts.append(block.string("text"))
    return "\n\n".join(texts)
