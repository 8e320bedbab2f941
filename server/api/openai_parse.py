"""OpenAI's chat completion bodies to our vocabulary. Pure.

Temperature and top_p come from the model when the request has none (Ollama puts 1.0 over what the
model's author chose).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from server.api.body import Fields, decode_base64, own_options
from server.api.framing import json_bytes
from server.api.keep_alive import parse_keep_alive
from server.api.ollama_parse import parse_tool, parse_top_logprobs
from server.api.tool_choice import openai_choice
from server.chat import ChatRequest, JsonObject, Message, RequestOptions, ToolCall
from server.errors import BadRequestError
from server.wishes import Constraint, ConstraintKind

_EFFORT: Mapping[str, bool | str] = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "max": "max",
    "xhigh": "max",
    "ultra": "max",
}
_EFFORT_NAMES = '"high", "medium", "low", "max", or "none"'
_IMAGE = re.compile(r"data:(?:image/(?:jpeg|jpg|png|webp))?;base64,")
_SYNTAXES: Mapping[str, ConstraintKind] = {"gbnf": "gbnf", "lark": "lark", "regex": "regex"}
MOST_BIAS = 100
"""Of a token, up or down. Source: OpenAI's API reference, ``logit_bias``."""

_PASSED_ON = ("temperature", "top_p", "seed", "frequency_penalty", "presence_penalty", "logit_bias")


MOST_ANSWERS = 128
"""Answers to one prompt, as OpenAI has it."""

Request = TypeVar("Request", bound=RequestOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatCompletion:
    """A parsed body.

    Attributes:
        requests: one for each answer; they differ in their seeds at most.
        include_usage: the stream ends with a usage chunk.
    """

    requests: tuple[ChatRequest, ...]
    include_usage: bool

    @property
    def request(self) -> ChatRequest:
        """What all answers have in common."""
        return self.requests[0]


def parse_chat_completion(fields: Fields) -> ChatCompletion:
    """The body of ``/v1/chat/completions``.

    Raises:
        BadRequestError: a field has the wrong type or an impossible value.
    """
    messages = _messages(fields)
    if not messages:
        raise BadRequestError("[] is too short - 'messages'")
    tools = tuple(parse_tool(tool) for tool in fields.objects("tools"))
    choice, tools = openai_choice(fields, tools)
    request = ChatRequest(
        model=fields.string("model"),
        messages=messages,
        tools=tools,
        tool_choice=choice,
        options=_options(fields),
        keep_alive_s=parse_keep_alive(fields.values.get("keep_alive")),
        stream=fields.boolean("stream", default=False),
        constraint=_response_format(fields.object("response_format")),
        think=_think(fields),
        top_logprobs=parse_top_logprobs(
            wanted=fields.boolean("logprobs", default=False), top=fields.integer("top_logprobs")
        ),
    )
    usage = fields.object("stream_options").boolean("include_usage", default=False)
    requests = tuple(repeated(request, answer_count(fields, "n", 1)))
    return ChatCompletion(requests=requests, include_usage=usage)


def answer_count(fields: Fields, name: str, default: int) -> int:
    """How many answers to make.

    Raises:
        BadRequestError: too many, or none.
    """
    count = fields.integer(name, default)
    if not 1 <= count <= MOST_ANSWERS:
        raise BadRequestError(f"{name}: expected 1 to {MOST_ANSWERS}, found {count}")
    return count


def repeated(request: Request, times: int) -> Iterator[Request]:
    """The same request with seeds that follow each other, where it has one."""
    seed = request.options.get("seed")
    counted = isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0
    for time in range(times):
        own = {"seed": seed + time} if counted and isinstance(seed, int) else {}
        yield replace(request, options={**request.options, **own})


def sampling_options(fields: Fields, *, token_limits: Sequence[str]) -> dict[str, Any]:
    """Native options: those sent as ``options``, then OpenAI's own names over them.

    Args:
        fields: the body.
        token_limits: names of the limit of generated tokens; the last one that is there counts.
    """
    options = dict(own_options(fields))
    for name in _PASSED_ON:
        if fields.has(name):
            options[name] = fields.values[name]
    _check_bias(fields)
    for name in token_limits:
        if fields.has(name):
            options["num_predict"] = fields.integer(name)
    return options


def _check_bias(fields: Fields) -> None:
    """OpenAI's range; what is no number at all is refused with the other options."""
    for token, bias in fields.object("logit_bias").values.items():
        if isinstance(bias, int | float) and not -MOST_BIAS <= bias <= MOST_BIAS:
            at = f"{fields.path('logit_bias')}[{token:.20}]"
            raise BadRequestError(f"{at}: expected -{MOST_BIAS} to {MOST_BIAS}, found {bias!r:.20}")


def _options(fields: Fields) -> JsonObject:
    options = sampling_options(fields, token_limits=("max_tokens", "max_completion_tokens"))
    stop = fields.values.get("stop")
    if isinstance(stop, str):
        options["stop"] = [stop]
    elif stop is not None:
        options["stop"] = [text for text in fields.array("stop") if isinstance(text, str)]
    return options


def _think(fields: Fields) -> bool | str | None:
    effort = fields.object("reasoning").string("effort") or fields.string("reasoning_effort")
    return parse_effort(effort)


def parse_effort(effort: str) -> bool | str | None:
    """OpenAI's reasoning effort as ``think``; an empty text leaves it to the model.

    Raises:
        BadRequestError: there is no such effort.
    """
    if not effort:
        return None
    if effort not in _EFFORT:
        raise BadRequestError(f'invalid reasoning value: "{effort}" (must be {_EFFORT_NAMES})')
    return _EFFORT[effort]


def _response_format(fields: Fields) -> Constraint | None:
    match fields.string("type"):
        case "json_object":
            return Constraint(kind="json")
        case "json_schema":
            return schema_constraint(fields.object("json_schema"))
        case "grammar" | "regex":
            return grammar_constraint(fields)
        case _:
            return None


def schema_constraint(fields: Fields) -> Constraint:
    """The object that holds ``schema`` and ``strict``."""
    source = json_bytes(fields.object("schema").values).decode()
    strict = fields.boolean("strict", default=False)
    return Constraint(kind="json_schema", source=source, strict=strict)


def grammar_constraint(fields: Fields) -> Constraint:
    """``{"type": "grammar", "syntax", "definition"}``, or ``{"type": "regex", "pattern"}``.

    The first has OpenAI's words for the grammars of custom tools; ours is ``gbnf``. ``grammar`` in
    place of ``definition`` is GBNF, as other servers have it.

    Raises:
        BadRequestError: the syntax is none of these, or there is no text.
    """
    syntax, name = "regex", "pattern"
    if fields.string("type") == "grammar":
        name = "grammar" if fields.has("grammar") else "definition"
        syntax = "gbnf" if fields.has("grammar") else fields.string("syntax", "gbnf")
    kind = _SYNTAXES.get(syntax)
    if kind is None:
        at = fields.path("syntax")
        raise BadRequestError(f"{at}: expected gbnf, lark or regex, found {syntax:.40}")
    source = fields.string(name)
    if not source:
        raise BadRequestError(f"{fields.path(name)}: expected a text, found nothing")
    return Constraint(kind=kind, source=source)


def _messages(fields: Fields) -> tuple[Message, ...]:
    called: dict[str, str] = {}
    messages: list[Message] = []
    for message in fields.objects("messages"):
        calls = tuple(_tool_call(call) for call in message.objects("tool_calls"))
        called |= {call.id: call.name for call in calls}
        messages.append(_message(message, calls, called))
    return tuple(messages)


def _message(fields: Fields, calls: tuple[ToolCall, ...], called: Mapping[str, str]) -> Message:
    role = fields.string("role").lower()
    if not role:
        raise BadRequestError(f"{fields.path('role')}: expected string, found nothing")
    call_id = fields.string("tool_call_id")
    tool_name = (fields.string("name") or called.get(call_id, "")) if role == "tool" else ""
    content = fields.values.get("content")
    if content is None and not calls:
        raise BadRequestError("invalid message content type: <nil>")
    text, images = _parts(fields) if isinstance(content, list) else (fields.string("content"), ())
    return Message(
        role="system" if role == "developer" else role,
        content=text,
        thinking=fields.string("reasoning"),
        images=images,
        tool_calls=calls,
        tool_name=tool_name,
        tool_call_id=call_id,
    )


def _parts(fields: Fields) -> tuple[str, tuple[bytes, ...]]:
    """The texts of a content array, a blank line between them as in Ollama, and its images."""
    texts, images = [], []
    for part in fields.objects("content"):
        match part.string("type"):
            case "text":
                texts.append(part.string("text"))
            case "refusal":
                texts.append(part.string("refusal"))
            case "image_url":
                images.append(image_bytes(part))
            case _:
                raise BadRequestError("invalid message format")
    return "\n\n".join(texts), tuple(images)


def image_bytes(part: Fields) -> bytes:
    """The file in a content part's ``image_url``, which must be a data URL.

    Raises:
        BadRequestError: it is an address, or no image.
    """
    value = part.values.get("image_url")
    url = value if isinstance(value, str) else part.object("image_url").string("url")
    if url.startswith(("http://", "https://")):
        raise BadRequestError(
            "image URLs are not currently supported, please use base64 encoded data instead"
        )
    match = _IMAGE.match(url)
    if match is None:
        raise BadRequestError("invalid image input")
    return decode_base64(url[match.end() :], at=part.path("image_url"))


def _tool_call(fields: Fields) -> ToolCall:
    function = fields.object("function")
    try:
        arguments: Any = json.loads(function.string("arguments"))
    except (ValueError, RecursionError) as error:
        raise BadRequestError("invalid tool call arguments") from error
    if not isinstance(arguments, dict):
        raise BadRequestError("invalid tool call arguments")
    return ToolCall(id=fields.string("id"), name=function.string("name"), arguments=arguments)
