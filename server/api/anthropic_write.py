"""Our vocabulary to Anthropic's message objects and events. Pure.

Rules:
 * the events come in Anthropic's order: ``message_start``, ``ping``, for each block
   ``content_block_start``, its deltas and ``content_block_stop``, then ``message_delta`` and
   ``message_stop``; only one block is open at a time;
 * an answer has at least one block;
 * the counts of ``message_delta`` replace those of ``message_start``; cached tokens are not part
   of ``input_tokens``;
 * a fault is an ``error`` event; nothing follows it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from typing import Any, Literal, assert_never

from server.api.delivery import WholeAnswer, schema_check
from server.api.framing import SSE_TYPE, json_bytes, named_event
from server.chat import JsonObject
from server.chunks import (
    Chunk,
    FaultChunk,
    FinishChunk,
    FinishReason,
    StartChunk,
    TextChunk,
    ThinkingChunk,
    ToolCallChunk,
    ToolCallDeltaChunk,
    ToolCallStartChunk,
    Usage,
)

Json = dict[str, Any]
Block = Literal["text", "thinking", "tool_use"]
CallChunk = ToolCallStartChunk | ToolCallDeltaChunk | ToolCallChunk

_ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}
_FIRST_SERVER_ERROR = 500


def error_body(message: str, status: int) -> Json:
    """Anthropic's error envelope. Source: Anthropic's API reference, "Errors"."""
    other = "api_error" if status >= _FIRST_SERVER_ERROR else "invalid_request_error"
    return {
        "type": "error",
        "error": {"type": _ERROR_TYPES.get(status, other), "message": message},
        "request_id": f"req_{secrets.token_hex(12)}",
    }


class AnthropicWriter:
    """Writes the objects of one message."""

    content_type = SSE_TYPE

    def __init__(self, *, id: str, model: str) -> None:  # noqa: A002 - the field's name
        self._id = id
        self._model = model
        self._open: Block | None = None
        self._index = -1
        self._called = False

    def write(self, chunk: Chunk) -> Iterable[bytes]:
        """The events of one chunk."""
        for event in self._events(chunk):
            yield named_event(event["type"], event)

    def whole(self, answer: WholeAnswer) -> Json:
        """The one object of an answer that is not streamed."""
        content: list[Json] = []
        if answer.thinking:
            content.append(_opening("thinking") | {"thinking": answer.thinking})
        if answer.text or not answer.calls:
            content.append(_opening("text") | {"text": answer.text})
        content.extend(_tool_use(call.id, call.name, call.arguments) for call in answer.calls)
        self._called = bool(answer.calls)
        return self._message(_usage(answer.finish.usage)) | {
            "content": content,
            "stop_reason": self._stop_reason(answer.finish.reason),
            **schema_check(answer.finish),
        }

    def _events(self, chunk: Chunk) -> Iterator[Json]:
        match chunk:
            case StartChunk():
                usage = _usage(Usage(prompt_tokens=chunk.prompt_tokens))
                yield {"type": "message_start", "message": self._message(usage)}
                yield {"type": "ping"}
            case TextChunk():
                if chunk.text:
                    yield from self._into("text")
                    yield self._delta({"type": "text_delta", "text": chunk.text})
            case ThinkingChunk():
                if chunk.text:
                    yield from self._into("thinking")
                    yield self._delta({"type": "thinking_delta", "thinking": chunk.text})
            case ToolCallStartChunk() | ToolCallDeltaChunk() | ToolCallChunk():
                yield from self._call_events(chunk)
            case FinishChunk():
                yield from self._end(chunk)
            case FaultChunk():
                yield error_body(chunk.message, chunk.status)
            case _:
                assert_never(chunk)

    def _into(self, kind: Literal["text", "thinking"]) -> Iterator[Json]:
        """Be inside a block of this kind."""
        if self._open == kind:
            return
        yield from self._close()
        yield self._start(_opening(kind))
        self._open = kind

    def _close(self) -> Iterator[Json]:
        if self._open is not None:
            yield {"type": "content_block_stop", "index": self._index}
        self._open = None

    def _start(self, block: Json) -> Json:
        self._index += 1
        return {"type": "content_block_start", "index": self._index, "content_block": block}

    def _delta(self, delta: Json) -> Json:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    def _call_events(self, chunk: CallChunk) -> Iterator[Json]:
        """A call that breaks off leaves its block to be closed by what follows."""
        match chunk:
            case ToolCallStartChunk():
                yield from self._begin_call(chunk.id, chunk.name)
            case ToolCallDeltaChunk():
                yield self._arguments(chunk.arguments)
            case ToolCallChunk():
                self._called = True
                if not chunk.streamed:
                    yield from self._begin_call(chunk.call.id, chunk.call.name)
                    yield self._arguments(json_bytes(chunk.call.arguments).decode())
                yield from self._close()

    def _begin_call(self, id: str, name: str) -> Iterator[Json]:  # noqa: A002 - the field's name
        yield from self._close()
        yield self._start(_tool_use(id, name, {}))
        self._open = "tool_use"

    def _arguments(self, text: str) -> Json:
        return self._delta({"type": "input_json_delta", "partial_json": text})

    def _end(self, finish: FinishChunk) -> Iterator[Json]:
        if self._index < 0:
            yield from self._into("text")
        yield from self._close()
        yield {
            "type": "message_delta",
            "delta": {"stop_reason": self._stop_reason(finish.reason), "stop_sequence": None},
            "usage": _usage(finish.usage),
            **schema_check(finish),
        }
        yield {"type": "message_stop"}

    def _message(self, usage: Json) -> Json:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }

    def _stop_reason(self, reason: FinishReason) -> str:
        if reason in {FinishReason.LENGTH, FinishReason.TIMEOUT}:
            return "max_tokens"
        return "tool_use" if self._called else "end_turn"


def _opening(kind: Literal["text", "thinking"]) -> Json:
    if kind == "thinking":
        return {"type": "thinking", "thinking": "", "signature": ""}
    return {"type": "text", "text": ""}


def _tool_use(id: str, name: str, arguments: JsonObject) -> Json:  # noqa: A002 - the field's name
    return {"type": "tool_use", "id": id, "name": name, "input": dict(arguments)}


def _usage(usage: Usage) -> Json:
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }
