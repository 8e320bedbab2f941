"""Our vocabulary to OpenAI's response objects and events. Pure, but for the ids it draws.

Rules:
 * every event has its ``type`` and a ``sequence_number`` that counts from 0;
 * ``response.created`` and ``response.in_progress`` come first; then each item of the output is
   added, told in pieces, and done; one item is open at a time;
 * the last event is ``response.completed``, ``response.incomplete`` when the answer was cut, or
   ``response.failed``, and carries the whole response;
 * a call that breaks off is told as incomplete and is no part of the response.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, assert_never

from server.api.delivery import WholeAnswer, schema_check
from server.api.framing import SSE_TYPE, json_bytes, named_event
from server.api.ollama_write import logprob_record
from server.chat import JsonObject, ToolCall
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
Event = tuple[str, Json]
Kind = Literal["reasoning", "message", "function_call"]
_PREFIXES: dict[Kind, str] = {"reasoning": "rs", "message": "msg", "function_call": "fc"}
_CUT = frozenset({FinishReason.LENGTH, FinishReason.TIMEOUT})


@dataclass(slots=True, kw_only=True)
class _Item:
    """An item of the output that grows.

    Attributes:
        text: the text of a message or a reasoning, the arguments of a call.
    """

    kind: Kind
    id: str
    text: str = ""
    call_id: str = ""
    name: str = ""
    logprobs: list[Json] = field(default_factory=list)

    def body(self, status: str) -> Json:
        """The item as it is in a response."""
        head: Json = {"id": self.id, "type": self.kind}
        match self.kind:
            case "reasoning":
                summary = [self.part()] if self.text else []
                return head | {"summary": summary, "encrypted_content": self.text or None}
            case "message":
                content = [] if status == "in_progress" else [self.part()]
                return head | {"status": status, "role": "assistant", "content": content}
            case "function_call":
                called = {"call_id": self.call_id, "name": self.name, "arguments": self.text}
                return head | {"status": status} | called
            case _:
                assert_never(self.kind)

    def part(self) -> Json:
        """What a message or a reasoning consists of."""
        if self.kind == "reasoning":
            return {"type": "summary_text", "text": self.text}
        return {
            "type": "output_text",
            "text": self.text,
            "annotations": [],
            "logprobs": list(self.logprobs),
        }


class ResponsesWriter:
    """Writes the objects of one response."""

    content_type = SSE_TYPE

    def __init__(self, *, model: str, echo: JsonObject, now_s: Callable[[], int]) -> None:
        """Begin a response.

        Args:
            model: the name as the client spelled it.
            echo: fields of the request that the response repeats.
            now_s: wall time in seconds since the epoch.
        """
        self._now_s = now_s
        self._head: Json = {"id": _new_id("resp"), "object": "response", "created_at": now_s()}
        self._echo = {"model": model, **echo}
        self._sequence = 0
        self._output: list[Json] = []
        self._index = -1
        self._open: _Item | None = None

    def write(self, chunk: Chunk) -> Iterable[bytes]:
        """The events of one chunk."""
        for name, event in self._events(chunk):
            numbered = {"type": name, "sequence_number": self._sequence, **event}
            self._sequence += 1
            yield named_event(name, numbered)

    def whole(self, answer: WholeAnswer) -> Json:
        """The one object of an answer that is not streamed."""
        cut = answer.finish.reason in _CUT
        items = []
        if answer.thinking:
            items.append(_Item(kind="reasoning", id=_new_id("rs"), text=answer.thinking))
        if answer.text or not answer.calls:
            logprobs = _logprobs(answer.logprobs)
            items.append(
                _Item(kind="message", id=_new_id("msg"), text=answer.text, logprobs=logprobs)
            )
        items.extend(_call_item(call) for call in answer.calls)
        status = "incomplete" if cut else "completed"
        self._output = [item.body(status) for item in items]
        return self._ended(answer.finish)

    def _events(self, chunk: Chunk) -> Iterator[Event]:
        if not self._sequence:
            yield "response.created", {"response": self._response("in_progress")}
            yield "response.in_progress", {"response": self._response("in_progress")}
        match chunk:
            case StartChunk():
                return
            case TextChunk():
                yield from self._text(chunk)
            case ThinkingChunk():
                yield from self._thinking(chunk.text)
            case ToolCallStartChunk() | ToolCallDeltaChunk() | ToolCallChunk():
                yield from self._call(chunk)
            case FinishChunk():
                yield from self._end(chunk)
            case FaultChunk():
                failed = self._response("failed")
                failed["error"] = {"code": "server_error", "message": chunk.message}
                yield "response.failed", {"response": failed}
            case _:
                assert_never(chunk)

    def _text(self, chunk: TextChunk) -> Iterator[Event]:
        if not (chunk.text or chunk.logprobs):
            return
        item = yield from self._into("message")
        logprobs = _logprobs(chunk.logprobs)
        item.text += chunk.text
        item.logprobs += logprobs
        at = self._at(item) | {"content_index": 0}
        yield "response.output_text.delta", at | {"delta": chunk.text, "logprobs": logprobs}

    def _thinking(self, text: str) -> Iterator[Event]:
        if not text:
            return
        item = yield from self._into("reasoning")
        item.text += text
        at = self._at(item) | {"summary_index": 0}
        yield "response.reasoning_summary_text.delta", at | {"delta": text}

    def _call(
        self, chunk: ToolCallStartChunk | ToolCallDeltaChunk | ToolCallChunk
    ) -> Iterator[Event]:
        match chunk:
            case ToolCallStartChunk():
                item = _Item(
                    kind="function_call", id=_new_id("fc"), call_id=chunk.id, name=chunk.name
                )
                yield from self._begin(item)
            case ToolCallDeltaChunk():
                yield from self._arguments(chunk.arguments)
            case ToolCallChunk():
                if not chunk.streamed:
                    item = _call_item(chunk.call)
                    arguments, item.text = item.text, ""
                    yield from self._begin(item)
                    yield from self._arguments(arguments)
                yield from self._close(called=True)

    def _arguments(self, text: str) -> Iterator[Event]:
        item = self._open
        assert item is not None
        item.text += text
        yield "response.function_call_arguments.delta", self._at(item) | {"delta": text}

    def _into(self, kind: Kind) -> Generator[Event, None, _Item]:
        """Be inside an item of this kind."""
        if self._open is None or self._open.kind != kind:
            yield from self._begin(_Item(kind=kind, id=_new_id(_PREFIXES[kind])))
        assert self._open is not None
        return self._open

    def _begin(self, item: _Item) -> Iterator[Event]:
        yield from self._close()
        self._index += 1
        self._open = item
        added = {"output_index": self._index, "item": item.body("in_progress")}
        yield "response.output_item.added", added
        match item.kind:
            case "message":
                at = self._at(item) | {"content_index": 0}
                yield "response.content_part.added", at | {"part": item.part()}
            case "reasoning":
                at = self._at(item) | {"summary_index": 0}
                yield "response.reasoning_summary_part.added", at | {"part": item.part()}
            case "function_call":
                pass
            case _:
                assert_never(item.kind)

    def _close(self, *, cut: bool = False, called: bool = False) -> Iterator[Event]:
        """End the open item; a call that is not ended by its own chunk has broken off."""
        item, self._open = self._open, None
        if item is None:
            return
        broken = item.kind == "function_call" and not called
        status = "incomplete" if cut or broken else "completed"
        yield from self._last_words(item)
        body = item.body(status)
        yield "response.output_item.done", {"output_index": self._index, "item": body}
        if not broken:
            self._output.append(body)

    def _last_words(self, item: _Item) -> Iterator[Event]:
        at = self._at(item)
        match item.kind:
            case "message":
                at |= {"content_index": 0}
                told = {"text": item.text, "logprobs": list(item.logprobs)}
                yield "response.output_text.done", at | told
                yield "response.content_part.done", at | {"part": item.part()}
            case "reasoning":
                at |= {"summary_index": 0}
                yield "response.reasoning_summary_text.done", at | {"text": item.text}
                yield "response.reasoning_summary_part.done", at | {"part": item.part()}
            case "function_call":
                named = {"name": item.name, "arguments": item.text}
                yield "response.function_call_arguments.done", at | named
            case _:
                assert_never(item.kind)

    def _end(self, finish: FinishChunk) -> Iterator[Event]:
        cut = finish.reason in _CUT
        if self._index < 0:
            yield from self._into("message")
        yield from self._close(cut=cut)
        name = "response.incomplete" if cut else "response.completed"
        yield name, {"response": self._ended(finish)}

    def _at(self, item: _Item) -> Json:
        return {"item_id": item.id, "output_index": self._index}

    def _ended(self, finish: FinishChunk) -> Json:
        if finish.reason in _CUT:
            body = self._response("incomplete")
            body["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            body = self._response("completed")
            body["completed_at"] = self._now_s()
        body["usage"] = _usage(finish.usage)
        body |= schema_check(finish)
        return body

    def _response(self, status: str) -> Json:
        return {
            **self._head,
            "status": status,
            "background": False,
            "completed_at": None,
            "error": None,
            "incomplete_details": None,
            **self._echo,
            "output": list(self._output),
            "previous_response_id": None,
            "service_tier": "default",
            "store": False,
            "usage": None,
        }


def _call_item(call: ToolCall) -> _Item:
    return _Item(
        kind="function_call",
        id=_new_id("fc"),
        call_id=call.id,
        name=call.name,
        text=json_bytes(call.arguments).decode(),
    )


def _new_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(12)}"


def _logprobs(entries: Iterable[TokenLogprob]) -> list[Json]:
    return [{"top_logprobs": [], **logprob_record(entry)} for entry in entries]


def _usage(usage: Usage) -> Json:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
