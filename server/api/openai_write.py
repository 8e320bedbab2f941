"""Our vocabulary to OpenAI's chat completion objects and events. Pure.

Rules:
 * all chunks of an answer share ``id`` and ``created``; the first delta names the role;
 * a finish chunk has an empty delta; usage, where asked for, follows in a chunk without choices;
 * a tool call begins with its index, id and name; its arguments follow in pieces;
 * a fault is an event with an ``error`` object;
 * whatever happened, ``data: [DONE]`` is the last event.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, assert_never

from server.api.delivery import WholeAnswer
from server.api.framing import SSE_DONE, SSE_TYPE, json_bytes, sse_event
from server.api.ollama_write import logprob_record
from server.chat import (
    Chunk,
    FaultChunk,
    FinishChunk,
    FinishReason,
    StartChunk,
    TextChunk,
    ThinkingChunk,
    TokenLogprob,
    ToolCall,
    ToolCallChunk,
    ToolCallDeltaChunk,
    ToolCallStartChunk,
    Usage,
)

Json = dict[str, Any]

FINGERPRINT = "fp_ollama"
"""What Ollama answers; clients only compare it with itself."""

_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "invalid_request_error",
}


def error_body(message: str, status: int) -> Json:
    """OpenAI's error envelope."""
    kind = _ERROR_TYPES.get(status, "api_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


class OpenAiWriter:
    """Writes the objects of one chat completion."""

    content_type = SSE_TYPE

    def __init__(self, *, id: str, model: str, created_s: int, include_usage: bool = False) -> None:  # noqa: A002 - the field's name
        self._head = {"id": id, "created": created_s, "model": model}
        self._include_usage = include_usage
        self._first = True
        self._begun = 0
        self._calls = 0

    def write(self, chunk: Chunk) -> Iterable[bytes]:
        """The events of one chunk; the end of the answer brings ``[DONE]`` with it."""
        match chunk:
            case StartChunk():
                return
            case TextChunk():
                yield self._event({"content": chunk.text}, logprobs=chunk.logprobs)
            case ThinkingChunk():
                delta = {"content": "", "reasoning": chunk.text}
                yield self._event(delta, logprobs=chunk.logprobs)
            case ToolCallStartChunk() | ToolCallDeltaChunk() | ToolCallChunk():
                yield from self._call_events(chunk)
            case FinishChunk():
                if self._first:
                    yield self._event({"content": ""})
                yield self._event({}, finish=self._finish(chunk.reason))
                if self._include_usage:
                    yield sse_event(
                        self._stream_head() | {"choices": [], "usage": usage_body(chunk.usage)}
                    )
                yield SSE_DONE
            case FaultChunk():
                yield sse_event(error_body(chunk.message, chunk.status))
                yield SSE_DONE
            case _:
                assert_never(chunk)

    def whole(self, answer: WholeAnswer) -> Json:
        """The one object of an answer that is not streamed."""
        message: Json = {"role": "assistant", "content": answer.text, "refusal": None}
        if answer.thinking:
            message["reasoning"] = answer.thinking
        if answer.calls:
            message["tool_calls"] = [self._whole_call(call) for call in answer.calls]
            self._calls = len(answer.calls)
        choice: Json = {
            "index": 0,
            "message": message,
            "finish_reason": self._finish(answer.finish.reason),
        }
        if answer.logprobs:
            choice["logprobs"] = _logprobs(answer.logprobs)
        return {
            **self._head,
            "object": "chat.completion",
            "system_fingerprint": FINGERPRINT,
            "choices": [choice],
            "usage": usage_body(answer.finish.usage),
        }

    def _call_events(
        self, chunk: ToolCallStartChunk | ToolCallDeltaChunk | ToolCallChunk
    ) -> Iterable[bytes]:
        match chunk:
            case ToolCallStartChunk():
                begun = self._tool_call(chunk.id, chunk.name, "")
                yield self._event({"content": "", "tool_calls": [begun]})
            case ToolCallDeltaChunk():
                more = {"index": self._begun - 1, "function": {"arguments": chunk.arguments}}
                yield self._event({"tool_calls": [more]})
            case ToolCallChunk():
                self._calls += 1
                if not chunk.streamed:
                    yield self._event({"content": "", "tool_calls": [self._whole_call(chunk.call)]})

    def _event(
        self, delta: Json, *, finish: str | None = None, logprobs: Iterable[TokenLogprob] = ()
    ) -> bytes:
        if self._first:
            delta = {"role": "assistant", **delta}
            self._first = False
        choice: Json = {"index": 0, "delta": delta, "finish_reason": finish}
        entries = tuple(logprobs)
        if entries:
            choice["logprobs"] = _logprobs(entries)
        return sse_event(self._stream_head() | {"choices": [choice]})

    def _stream_head(self) -> Json:
        return {
            **self._head,
            "object": "chat.completion.chunk",
            "system_fingerprint": FINGERPRINT,
        }

    def _whole_call(self, call: ToolCall) -> Json:
        return self._tool_call(call.id, call.name, json_bytes(call.arguments).decode())

    def _tool_call(self, id: str, name: str, arguments: str) -> Json:  # noqa: A002 - the field's name
        index, self._begun = self._begun, self._begun + 1
        return {
            "id": id,
            "index": index,
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }

    def _finish(self, reason: FinishReason) -> str:
        if reason in {FinishReason.LENGTH, FinishReason.TIMEOUT}:
            return "length"
        return "tool_calls" if self._calls else "stop"


def _logprobs(entries: Iterable[TokenLogprob]) -> Json:
    return {"content": [{"top_logprobs": [], **logprob_record(entry)} for entry in entries]}


def usage_body(usage: Usage) -> Json:
    """What an answer cost, in OpenAI's words."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }
