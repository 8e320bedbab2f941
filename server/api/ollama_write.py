"""Our vocabulary to Ollama's response objects. Pure, but for the clock it is given.

Rules:
 * every object carries ``model`` as the client spelled it, ``created_at`` and ``done``;
 * the last one carries the reason and the metrics; a metric of zero is left out;
 * tool calls stand whole in an object of their own, numbered through the answer;
 * a fault is ``{"error": …}``; nothing follows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, assert_never

from server.answer import Rendered
from server.api.delivery import WholeAnswer, schema_check
from server.api.framing import NDJSON_TYPE, nanoseconds, ndjson_line, utc_timestamp
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

LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON has not. Source: OpenAI's API reference."""

Json = dict[str, Any]
Call = Literal["chat", "generate"]


class OllamaWriter:
    """Writes the objects of one answer."""

    content_type = NDJSON_TYPE

    def __init__(self, *, call: Call, model: str, now_ns: Callable[[], int]) -> None:
        self._call = call
        self._model = model
        self._now_ns = now_ns
        self._calls = 0

    def write(self, chunk: Chunk) -> Iterable[bytes]:
        """The NDJSON records of one chunk."""
        if isinstance(chunk, StartChunk | ToolCallStartChunk | ToolCallDeltaChunk):
            return ()
        return (ndjson_line(self.record(chunk)),)

    def record(
        self, chunk: TextChunk | ThinkingChunk | ToolCallChunk | FinishChunk | FaultChunk
    ) -> Json:
        """The object of one chunk."""
        match chunk:
            case TextChunk():
                return self._delta(text=chunk.text, logprobs=chunk.logprobs)
            case ThinkingChunk():
                return self._delta(thinking=chunk.text, logprobs=chunk.logprobs)
            case ToolCallChunk():
                return self._delta(calls=(chunk.call,))
            case FinishChunk():
                return self._delta() | _ending(chunk)
            case FaultChunk():
                return {"error": chunk.message}
            case _:
                assert_never(chunk)

    def whole(self, answer: WholeAnswer) -> Json:
        """The one object of an answer that is not streamed."""
        return self._delta(
            text=answer.text,
            thinking=answer.thinking,
            calls=answer.calls,
            logprobs=answer.logprobs,
        ) | _ending(answer.finish)

    def rendered(self, prompt: Rendered, image_count: int) -> Json:
        """The answer to ``_debug_render_only``; ``output_format`` is ours."""
        info: Json = {"rendered_template": prompt.text, "output_format": prompt.output_format}
        if image_count:
            info["image_count"] = image_count
        return self._delta() | {"_debug_info": info}

    def _delta(
        self,
        *,
        text: str = "",
        thinking: str = "",
        calls: tuple[ToolCall, ...] = (),
        logprobs: tuple[TokenLogprob, ...] = (),
    ) -> Json:
        record: Json = {"model": self._model, "created_at": utc_timestamp(self._now_ns())}
        inner: Json = {"role": "assistant", "content": text}
        if self._call == "generate":
            inner = {"response": text}
        if thinking:
            inner["thinking"] = thinking
        if calls:
            inner["tool_calls"] = [self._tool_call(call) for call in calls]
        record |= inner if self._call == "generate" else {"message": inner}
        record["done"] = False
        if logprobs:
            record["logprobs"] = [logprob_record(entry) for entry in logprobs]
        return record

    def _tool_call(self, call: ToolCall) -> Json:
        index, self._calls = self._calls, self._calls + 1
        return {
            "id": call.id,
            "function": {"index": index, "name": call.name, "arguments": dict(call.arguments)},
        }


def logprob_record(entry: TokenLogprob) -> Json:
    """One token with its log-probability, and its alternatives if there are any."""
    record = _logprob(entry.token, entry.token_bytes, entry.logprob)
    if entry.top:
        record["top_logprobs"] = [_logprob(*alternative) for alternative in entry.top]
    return record


def _logprob(token: str, token_bytes: bytes, logprob: float) -> Json:
    return {"token": token, "logprob": max(logprob, LEAST_LOGPROB), "bytes": list(token_bytes)}


def _ending(chunk: FinishChunk) -> Json:
    ending: Json = {"done": True, "done_reason": chunk.reason.value}
    if chunk.context:
        ending["context"] = list(chunk.context)
    if chunk.reason in {FinishReason.LOAD, FinishReason.UNLOAD}:
        return ending
    return ending | _metrics(chunk.usage) | schema_check(chunk)


def _metrics(usage: Usage) -> Json:
    metrics = {
        "total_duration": nanoseconds(usage.total_s),
        "load_duration": nanoseconds(usage.load_s),
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_cached_count": usage.cached_tokens,  # ours, not Ollama's
        "prompt_eval_duration": nanoseconds(usage.prompt_s),
        "eval_count": usage.completion_tokens,
        "eval_duration": nanoseconds(usage.eval_s),
        "draft_count": usage.drafted_tokens,  # ours
        "draft_accepted_count": usage.draft_tokens_accepted,  # ours
    }
    return {name: value for name, value in metrics.items() if value}
