"""OpenAI's Responses bodies to our vocabulary. Pure.

Rules:
 * nothing is stored: what refers to an earlier response is refused, and the whole conversation
   comes with each request;
 * reasoning, text and calls of the assistant that follow each other are one turn;
 * tools that OpenAI's servers would run are refused: nothing here searches the web.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from server.api.body import Fields
from server.api.keep_alive import parse_keep_alive
from server.api.ollama_parse import parse_top_logprobs
from server.api.openai_parse import (
    grammar_constraint,
    image_bytes,
    parse_effort,
    sampling_options,
    schema_constraint,
)
from server.api.tool_choice import openai_choice
from server.chat import ChatRequest, JsonObject, Message, Tool, ToolCall
from server.errors import BadRequestError, ForbiddenError
from server.wishes import Constraint

NOTHING_STORED = "nothing is stored here, so the whole conversation must come as input"
WEB_SEARCH_REFUSED = "ollama cloud is disabled: web search is unavailable"
_WITH_LOGPROBS = "message.output_text.logprobs"
_ECHOED = ("instructions", "max_output_tokens", "metadata", "temperature", "top_p", "user")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseCall:
    """A parsed body.

    Attributes:
        request: what to answer.
        echo: the fields of the body that the response object repeats.
    """

    request: ChatRequest
    echo: JsonObject


def parse_response(fields: Fields) -> ResponseCall:
    """The body of ``/v1/responses``.

    Raises:
        BadRequestError: a field has the wrong type, an impossible value, or needs a store.
        ForbiddenError: a tool is asked for that would leave this machine.
    """
    _refuse_state(fields)
    messages = tuple(_turns(fields))
    if not messages:
        raise BadRequestError("input is required")
    instructions = fields.string("instructions")
    if instructions:
        messages = (Message(role="system", content=instructions), *messages)
    tools = tuple(_tools(fields.objects("tools"), prefix=""))
    choice, tools = openai_choice(fields, tools)
    request = ChatRequest(
        model=fields.string("model"),
        messages=messages,
        tools=tools,
        tool_choice=choice,
        options=sampling_options(fields, token_limits=("max_output_tokens",)),
        keep_alive_s=parse_keep_alive(fields.values.get("keep_alive")),
        stream=fields.boolean("stream", default=False),
        constraint=_constraint(fields.object("text").object("format")),
        think=parse_effort(fields.object("reasoning").string("effort")),
        truncate=_truncation(fields) == "auto",
        top_logprobs=parse_top_logprobs(
            wanted=_WITH_LOGPROBS in fields.array("include"), top=fields.integer("top_logprobs")
        ),
    )
    return ResponseCall(request=request, echo=_echo(fields))


def _refuse_state(fields: Fields) -> None:
    for name in ("previous_response_id", "conversation"):
        if fields.has(name):
            raise BadRequestError(f"{name} is not supported: {NOTHING_STORED}")
    if fields.boolean("background", default=False):
        raise BadRequestError("background is not supported: nothing is stored here")
    if fields.has("prompt"):
        raise BadRequestError("prompt is not supported: there are no stored prompts here")


def _truncation(fields: Fields) -> str:
    truncation = fields.string("truncation", "auto")
    if truncation not in {"auto", "disabled"}:
        raise BadRequestError(f"truncation: expected auto or disabled, found {truncation}")
    return truncation


def _echo(fields: Fields) -> JsonObject:
    """What the client sent, and what counts where it sent nothing."""
    reasoning = fields.object("reasoning")
    return {
        **{name: fields.values.get(name) for name in _ECHOED},
        "metadata": fields.object("metadata").values,
        "parallel_tool_calls": fields.boolean("parallel_tool_calls", default=True),
        "reasoning": {
            "effort": reasoning.string("effort") or None,
            "summary": reasoning.values.get("summary"),
        },
        "text": fields.values.get("text") or {"format": {"type": "text"}},
        "tool_choice": fields.values.get("tool_choice") or "auto",
        "tools": list(fields.array("tools")),
        "top_logprobs": fields.integer("top_logprobs"),
        "truncation": _truncation(fields),
    }


def _constraint(wanted: Fields) -> Constraint | None:
    match wanted.string("type"):
        case "json_object":
            return Constraint(kind="json")
        case "json_schema":
            return schema_constraint(wanted)
        case "grammar" | "regex":
            return grammar_constraint(wanted)
        case "" | "text":
            return None
        case other:
            expected = "text, json_object, json_schema, grammar or regex"
            raise BadRequestError(f"{wanted.path('type')}: expected {expected}, found {other}")


def _tools(tools: tuple[Fields, ...], *, prefix: str) -> Iterator[Tool]:
    """Functions; those of a namespace carry its name in front."""
    for tool in tools:
        kind = tool.string("type")
        if kind == "namespace" and not prefix:
            yield from _tools(tool.objects("tools"), prefix=tool.string("name") + ".")
        elif kind.startswith("web_search"):
            raise ForbiddenError(WEB_SEARCH_REFUSED)
        elif kind != "function":
            found = kind or "nothing"
            raise BadRequestError(f"{tool.path('type')}: expected function, found {found}")
        else:
            yield _function(tool, prefix=prefix)


def _function(tool: Fields, *, prefix: str) -> Tool:
    """A tool in the form templates know; every keyword of its schema is kept."""
    if not tool.string("name"):
        raise BadRequestError(f"{tool.path('name')}: expected string, found nothing")
    name, description = prefix + tool.string("name"), tool.string("description")
    parameters = tool.object("parameters").values
    function = {"name": name, "description": description, "parameters": parameters}
    return Tool(
        name=name,
        description=description,
        parameters=parameters,
        strict=tool.boolean("strict", default=False),
        raw={"type": "function", "function": function},
    )


@dataclass(slots=True)
class _Conversation:
    """Turns as they grow out of items."""

    turns: list[Message] = field(default_factory=list)
    said: Message | None = None
    called: dict[str, str] = field(default_factory=dict)

    def assistant(self, part: Message) -> None:
        """Add to the assistant's turn, or begin another where this cannot follow."""
        said = self.said
        after_text = said is not None and bool(said.content or said.tool_calls)
        if said is None or (after_text and not part.tool_calls):
            self.end()
            self.said = part
            return
        self.said = replace(
            said,
            content=said.content or part.content,
            thinking=said.thinking or part.thinking,
            images=said.images + part.images,
            tool_calls=said.tool_calls + part.tool_calls,
        )

    def other(self, turn: Message) -> None:
        """Add a turn of somebody else."""
        self.end()
        self.turns.append(turn)

    def end(self) -> None:
        """The assistant's turn is over."""
        if self.said is not None:
            self.turns.append(self.said)
        self.said = None


def _turns(fields: Fields) -> list[Message]:
    """The conversation in ``input``."""
    if not isinstance(fields.values.get("input"), list):
        text = fields.string("input")
        return [Message(role="user", content=text)] if text else []
    conversation = _Conversation()
    for item in fields.objects("input"):
        _take(item, conversation)
    conversation.end()
    return conversation.turns


def _take(item: Fields, conversation: _Conversation) -> None:
    kind = item.string("type")
    if not kind and not item.string("role"):
        raise BadRequestError("input item missing required 'type' field")
    match kind:
        case "" | "message":
            _take_message(item, conversation)
        case "function_call":
            call = _call(item)
            conversation.called[call.id] = call.name
            conversation.assistant(Message(role="assistant", tool_calls=(call,)))
        case "function_call_output":
            conversation.other(_result(item, conversation.called))
        case "reasoning":
            conversation.assistant(Message(role="assistant", thinking=_reasoning(item)))
        case "web_search_call":
            pass
        case "item_reference":
            raise BadRequestError(f"item_reference is not supported: {NOTHING_STORED}")
        case _:
            raise BadRequestError(f'unknown input item type: "{kind}"')


def _take_message(item: Fields, conversation: _Conversation) -> None:
    role = item.string("role").lower()
    if not role:
        raise BadRequestError(f"{item.path('role')}: expected string, found nothing")
    text, images = _content(item, "content")
    turn = Message(role="system" if role == "developer" else role, content=text, images=images)
    if turn.role == "assistant":
        conversation.assistant(turn)
    else:
        conversation.other(turn)


def _call(item: Fields) -> ToolCall:
    try:
        arguments: Any = json.loads(item.string("arguments") or "{}")
    except (ValueError, RecursionError) as error:
        raise BadRequestError("invalid tool call arguments") from error
    if not isinstance(arguments, dict):
        raise BadRequestError("invalid tool call arguments")
    return ToolCall(id=item.string("call_id"), name=item.string("name"), arguments=arguments)


def _result(item: Fields, called: Mapping[str, str]) -> Message:
    text, images = _content(item, "output")
    call_id = item.string("call_id")
    return Message(
        role="tool",
        content=text,
        images=images,
        tool_name=called.get(call_id, ""),
        tool_call_id=call_id,
    )


def _reasoning(item: Fields) -> str:
    """What we gave out as ``encrypted_content`` is plain text; else what can be read of it."""
    plain = item.string("encrypted_content")
    parts = (*item.objects("content"), *item.objects("summary"))
    return plain or "\n\n".join(part.string("text") for part in parts)


def _content(item: Fields, name: str) -> tuple[str, tuple[bytes, ...]]:
    """A text, or the texts of parts with a blank line between them, and images."""
    if not isinstance(item.values.get(name), list):
        return item.string(name), ()
    texts: list[str] = []
    images: list[bytes] = []
    for part in item.objects(name):
        match part.string("type"):
            case "input_text" | "output_text" | "text":
                texts.append(part.string("text"))
            case "refusal":
                texts.append(part.string("refusal"))
            case "input_image":
                images.append(image_bytes(part))
            case "input_file":
                raise BadRequestError("file inputs are not currently supported")
            case other:
                raise BadRequestError(f"unknown content type: {other}")
    return "\n\n".join(texts), tuple(images)
