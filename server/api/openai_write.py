"""Our vocabulary to OpenAI's chat completion objects and events. Pure.

Rules:
 * all chunks share ``id`` and ``created``; the first delta of a choice names the role;
 * a finish chunk has an empty delta; usage, where asked for, follows the last of them in a chunk
   without choices, and counts the prompt once;
 * a tool call begins with its index, id and name; its arguments follow in pieces;
 * a fault is an event with an ``error`` object;
 * whatever happened, ``data: [DONE]`` is the last event.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, assert_never

from server.api.delivery import WholeAnswer, schema_check
from server.api.framing import SSE_DONE, SSE_TYPE, json_bytes, sse_event
from server.api.ollama_write import logprob_record
from server.chat import ToolCall
from server.chunks import (
    Chunk,
    FaultChunk,
    FinishChunk,
    FinishReason,
    StartChunk,
    TextChunk,
    ThinkingChunk,
    TokenLogprob,
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
    """Writes the objects of one chat completion, which may have several choices."""

    content_type = SSE_TYPE

    def __init__(
        self,
        *,
        id: str,  # noqa: A002 - the field's name
        model: str,
        created_s: int,
        n: int = 1,
        include_usage: bool = False,
    ) -> None:
        """``n`` is how many choices there are."""
        self._head = {"id": id, "created": created_s, "model": model}
        self._include_usage = include_usage
        self._choices = [_Choice(index) for index in range(n)]
        self._usages: dict[int, Usage] = {}

    def write(self, index: int, chunk: Chunk) -> Iterable[bytes]:
        """The events of one chunk of one choice."""
        if isinstance(chunk, FinishChunk):
            self._usages[index] = chunk.usage
        for choice in self._choices[index].write(chunk):
            yield sse_event(self._stream_head() | {"choices": [choice]})

    def end(self) -> Iterable[bytes]:
        """Usage, if it is wanted, and the end."""
        if self._include_usage:
            yield sse_event(self._stream_head() | {"choices": [], "usage": self._usage()})
        yield SSE_DONE

    def fault(self, fault: FaultChunk) -> Iterable[bytes]:
        """The error, and the end."""
        yield sse_event(error_body(fault.message, fault.status))
        yield SSE_DONE

    def whole(self, answers: Sequence[WholeAnswer]) -> Json:
        """The one object of a response that is not streamed."""
        self._usages = {index: answer.finish.usage for index, answer in enumerate(answers)}
        pairs = zip(self._choices, answers, strict=True)
        return {
            **self._head,
            "object": "chat.completion",
            "system_fingerprint": FINGERPRINT,
            "choices": [choice.whole(answer) for choice, answer in pairs],
            "usage": self._usage(),
        }

    def _usage(self) -> Json:
        """All answers, and their prompt once: as the one saw it that computed it."""
        usages = self._usages.values()
        return usage_body(
            Usage(
                prompt_tokens=max(usage.prompt_tokens for usage in usages),
                cached_tokens=min(usage.cached_tokens for usage in usages),
                completion_tokens=sum(usage.completion_tokens for usage in usages),
                reasoning_tokens=sum(usage.reasoning_tokens for usage in usages),
            )
        )

    def _stream_head(self) -> Json:
        return {
            **self._head,
            "object": "chat.completion.chunk",
            "system_fingerprint": FINGERPRINT,
        }


class _Choice:
    """One answer's part of the objects."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._first = True
        self._begun = 0
        self._calls = 0

    def write(self, chunk: Chunk) -> Iterable[Json]:
        """The choice in each event of a chunk; faults are the writer's."""
        match chunk:
            case StartChunk() | FaultChunk():
                return
            case TextChunk():
                yield self._delta({"content": chunk.text}, logprobs=chunk.logprobs)
            case ThinkingChunk():
                delta = {"content": "", "reasoning": chunk.text}
                yield self._delta(delta, logprobs=chunk.logprobs)
            case ToolCallStartChunk() | ToolCallDeltaChunk() | ToolCallChunk():
                yield from self._call_deltas(chunk)
            case FinishChunk():
                if self._first:
                    yield self._delta({"content": ""})
                ended = self._delta({}, finish=self._finish(chunk.reason))
                yield ended | schema_check(chunk)
            case _:
                assert_never(chunk)

    def whole(self, answer: WholeAnswer) -> Json:
        """The choice of an answer that is not streamed."""
        message: Json = {"role": "assistant", "content": answer.text, "refusal": None}
        if answer.thinking:
            message["reasoning"] = answer.thinking
        if answer.calls:
            message["tool_calls"] = [self._whole_call(call) for call in answer.calls]
            self._calls = len(answer.calls)
        choice: Json = {
            "index": self._index,
            "message": message,
            "finish_reason": self._finish(answer.finish.reason),
        }
        if answer.logprobs:
            choice["logprobs"] = _logprobs(answer.logprobs)
        return choice | schema_check(answer.finish)

    def _call_deltas(
        self, chunk: ToolCallStartChunk | ToolCallDeltaChunk | ToolCallChunk
    ) -> Iterable[Json]:
        match chunk:
            case ToolCallStartChunk():
                begun = self._tool_call(chunk.id, chunk.name, "")
                yield self._delta({"content": "", "tool_calls": [begun]})
            case ToolCallDeltaChunk():
                more = {"index": self._begun - 1, "function": {"arguments": chunk.arguments}}
                yield self._delta({"tool_calls": [more]})
            case ToolCallChunk():
                self._calls += 1
                if not chunk.streamed:
                    yield self._delta({"content": "", "tool_calls": [self._whole_call(chunk.call)]})

    def _delta(
        self, delta: Json, *, finish: str | None = None, logprobs: Iterable[TokenLogprob] = ()
    ) -> Json:
        if self._first:
            delta = {"role": "assistant", **delta}
            self._first = False
        choice: Json = {"index": self._index, "delta": delta, "finish_reason": finish}
        entries = tuple(logprobs)
        if entries:
            choice["logprobs"] = _logprobs(entries)
        return choice

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
