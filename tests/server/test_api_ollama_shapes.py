"""Ollama's bodies in, Ollama's objects out; what needs a model is tested in tests/functional."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.answer import Rendered
from server.api.body import Fields
from server.api.delivery import Chunks, ChunkStream, as_error, gather
from server.api.ollama_parse import parse_chat, parse_generate
from server.api.ollama_write import OllamaWriter
from server.chat import Message, ToolCall
from server.chunks import (
    Chunk,
    FaultChunk,
    FinishChunk,
    FinishReason,
    TextChunk,
    ThinkingChunk,
    TokenLogprob,
    ToolCallChunk,
    ToolCallDeltaChunk,
    ToolCallStartChunk,
    Usage,
)
from server.errors import BadRequestError, ClientGoneError, RunnerCrashedError, ServerError

THINK = '"high", "medium", "low", "max", true, or false'


def fields(**values: Any) -> Fields:
    return Fields(values={"model": "m", **values})


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"model": 3}, "model: expected string, found number"),
        ({"prompt": ["x"]}, "prompt: expected string, found array"),
        ({"suffix": 1}, "suffix: expected string, found number"),
        ({"stream": "yes"}, "stream: expected boolean, found string"),
        ({"raw": 1}, "raw: expected boolean, found number"),
        ({"options": []}, "options: expected object, found array"),
        ({"context": [1, -2]}, "context[1]: expected token id, found -2"),
        ({"context": ["a"]}, "context[0]: expected token id, found 'a'"),
        ({"context": [True]}, "context[0]: expected token id, found True"),
        ({"images": ["?"]}, "images[0]: expected base64 string, found other text"),
        ({"think": "hard"}, f'invalid think value: "hard" (must be {THINK})'),
        ({"think": 3}, f"think must be a boolean or string ({THINK})"),
        ({"think": []}, f"think must be a boolean or string ({THINK})"),
        ({"top_logprobs": 21}, "top_logprobs must be between 0 and 20"),
        ({"top_logprobs": -1}, "top_logprobs must be between 0 and 20"),
        ({"keep_alive": "300"}, 'time: missing unit in duration "300"'),
        ({"keep_alive": True}, "Unsupported type: 'bool'"),
    ],
)
def test_generate_body_of_wrong_shape_is_refused(values: dict[str, Any], text: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        parse_generate(fields(**values))
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"messages": {}}, "messages: expected array, found object"),
        ({"messages": ["hi"]}, "messages[0]: expected object, found string"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content: expected string, found array",
        ),
        ({"messages": [{"content": "x"}]}, "messages[0].role: expected string, found nothing"),
        (
            {"messages": [{"role": "user", "images": ["%"]}]},
            "messages[0].images[0]: expected base64 string, found other text",
        ),
        (
            {
                "messages": [
                    {"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}
                ]
            },
            "messages[0].tool_calls[0].function.arguments: expected object, found string",
        ),
        (
            {"tools": [{"type": "function"}]},
            "tools[0].function.name: expected string, found nothing",
        ),
        ({"tools": "all"}, "tools: expected array, found string"),
    ],
)
def test_chat_body_of_wrong_shape_is_refused(values: dict[str, Any], text: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        parse_chat(fields(**values))
    assert str(caught.value) == text


def test_defaults_of_an_empty_request() -> None:
    request = parse_generate(fields())
    assert (request.stream, request.truncate, request.shift, request.raw) == (
        True,
        True,
        True,
        False,
    )
    assert request.keep_alive_s is None
    assert request.think is None
    assert request.constraint is None
    assert request.top_logprobs is None


def test_unknown_fields_are_ignored() -> None:
    assert parse_chat(fields(colour="red", draft={})) == parse_chat(fields())


def test_message_is_read_whole() -> None:
    image = base64.b64encode(b"png").decode()
    call = {"id": "c1", "function": {"index": 0, "name": "f", "arguments": {"z": 1, "a": 2}}}
    request = parse_chat(
        fields(
            messages=[
                {"role": "USER", "content": None, "images": [image]},
                {"role": "assistant", "content": "x", "thinking": "t", "tool_calls": [call]},
                {"role": "tool", "content": "r", "tool_name": "f", "tool_call_id": "c1"},
            ]
        )
    )
    assert request.messages == (
        Message(role="user", images=(b"png",)),
        Message(
            role="assistant",
            content="x",
            thinking="t",
            tool_calls=(ToolCall(id="c1", name="f", arguments={"z": 1, "a": 2}),),
        ),
        Message(role="tool", content="r", tool_name="f", tool_call_id="c1"),
    )
    assert list(request.messages[1].tool_calls[0].arguments) == ["z", "a"]


def test_every_keyword_of_a_tools_schema_is_kept() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}}
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": schema}}
    (parsed,) = parse_chat(fields(tools=[tool])).tools
    assert (parsed.name, parsed.description, parsed.parameters) == ("f", "d", schema)
    assert parsed.raw == tool


def test_logprobs_without_a_number_ask_for_no_alternatives() -> None:
    assert parse_chat(fields(logprobs=True)).top_logprobs == 0
    assert parse_chat(fields(logprobs=True, top_logprobs=3)).top_logprobs == 3
    assert parse_chat(fields(top_logprobs=3)).top_logprobs is None


def writer(call: Any = "chat") -> OllamaWriter:
    return OllamaWriter(call=call, model="M:x", now_ns=lambda: 1_700_000_000_000_000_000)


HEAD = {"model": "M:x", "created_at": "2023-11-14T22:13:20.000000000Z"}
USAGE = Usage(
    prompt_tokens=3,
    cached_tokens=1,
    completion_tokens=2,
    load_s=0.0,
    prompt_s=0.25,
    eval_s=0.5,
    total_s=1.0,
)
METRICS = {
    "total_duration": 1_000_000_000,
    "prompt_eval_count": 3,
    "prompt_eval_cached_count": 1,
    "prompt_eval_duration": 250_000_000,
    "eval_count": 2,
    "eval_duration": 500_000_000,
}
CALL = ToolCall(id="call_1", name="f", arguments={"b": 1, "a": 2})
FINISH = FinishChunk(reason=FinishReason.STOP, usage=USAGE, context=(1, 2))


@pytest.mark.parametrize(
    ("chunk", "chat", "generate"),
    [
        (
            TextChunk(text="hé"),
            {**HEAD, "message": {"role": "assistant", "content": "hé"}, "done": False},
            {**HEAD, "response": "hé", "done": False},
        ),
        (
            ThinkingChunk(text="hm"),
            {
                **HEAD,
                "message": {"role": "assistant", "content": "", "thinking": "hm"},
                "done": False,
            },
            {**HEAD, "response": "", "thinking": "hm", "done": False},
        ),
        (
            FinishChunk(reason=FinishReason.LENGTH, usage=USAGE),
            {
                **HEAD,
                "message": {"role": "assistant", "content": ""},
                "done": True,
                "done_reason": "length",
                **METRICS,
            },
            {**HEAD, "response": "", "done": True, "done_reason": "length", **METRICS},
        ),
        (
            FinishChunk(reason=FinishReason.UNLOAD, usage=Usage()),
            {
                **HEAD,
                "message": {"role": "assistant", "content": ""},
                "done": True,
                "done_reason": "unload",
            },
            {**HEAD, "response": "", "done": True, "done_reason": "unload"},
        ),
        (FaultChunk(message="boom"), {"error": "boom"}, {"error": "boom"}),
    ],
)
def test_each_chunk_has_its_object(chunk: Chunk, chat: Any, generate: Any) -> None:
    for call, expected in (("chat", chat), ("generate", generate)):
        (line,) = writer(call).write(chunk)
        assert json.loads(line) == expected


def test_context_stands_in_the_last_object() -> None:
    assert writer("generate").record(FINISH)["context"] == [1, 2]


def test_tool_calls_are_numbered_through_the_answer() -> None:
    out = writer()
    records = [out.record(ToolCallChunk(call=CALL)) for _ in range(2)]
    calls = [record["message"]["tool_calls"][0] for record in records]
    assert [call["function"]["index"] for call in calls] == [0, 1]
    assert calls[0] == {
        "id": "call_1",
        "function": {"index": 0, "name": "f", "arguments": {"b": 1, "a": 2}},
    }
    assert list(calls[0]["function"]["arguments"]) == ["b", "a"]


def test_logprobs_go_with_their_text() -> None:
    entry = TokenLogprob(token="é", token_bytes=b"\xc3\xa9", logprob=-0.5, top=(("e", b"e", -1.0),))
    record = writer().record(TextChunk(text="é", logprobs=(entry,)))
    assert record["logprobs"] == [
        {
            "token": "é",
            "logprob": -0.5,
            "bytes": [195, 169],
            "top_logprobs": [{"token": "e", "logprob": -1.0, "bytes": [101]}],
        }
    ]


def test_rendered_prompt_is_shown() -> None:
    prompt = Rendered(text="p", output_format="hermes")
    shown = {"rendered_template": "p", "output_format": "hermes"}
    assert writer("generate").rendered(prompt, 0)["_debug_info"] == shown
    assert writer().rendered(prompt, 2)["_debug_info"] == {**shown, "image_count": 2}


def test_whole_answer_holds_everything() -> None:
    chunks: list[Chunk] = [
        ThinkingChunk(text="a"),
        ThinkingChunk(text="b"),
        TextChunk(text="c"),
        ToolCallChunk(call=CALL),
        TextChunk(text="d"),
        FINISH,
    ]
    record = writer().whole(gather(chunks[0], chunks[1:]))
    assert record["message"]["thinking"] == "ab"
    assert record["message"]["content"] == "cd"
    assert len(record["message"]["tool_calls"]) == 1
    assert record["done"] is True
    assert record["done_reason"] == "stop"


def test_fault_of_a_whole_answer_is_an_error_with_its_status() -> None:
    with pytest.raises(ServerError, match="boom") as caught:
        gather(TextChunk(text="a"), [FaultChunk(message="boom", status=503)])
    assert caught.value.status == 503
    assert as_error(FaultChunk(message="x", status=507)).status == 507


def test_answer_without_an_end_is_an_error() -> None:
    with pytest.raises(ServerError, match="ended without an end"):
        gather(None, [])


class Scripted:
    """Chunks that end as told; knows whether it was closed."""

    def __init__(self, *chunks: Chunk, error: Exception | None = None) -> None:
        self.closed = False
        self.chunks = self._run(chunks, error)

    def _run(self, chunks: tuple[Chunk, ...], error: Exception | None) -> Chunks:
        try:
            yield from chunks
            if error is not None:
                raise error
        finally:
            self.closed = True


def stream(script: Scripted) -> ChunkStream:
    return ChunkStream(next(script.chunks), script.chunks, writer())


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RunnerCrashedError("the runner died"), "the runner died"),
        (ValueError("secret detail"), "internal server error"),
        (None, "the answer ended without an end"),
    ],
)
def test_stream_that_breaks_ends_with_an_error_line(error: Exception | None, text: str) -> None:
    lines = [json.loads(line) for line in stream(Scripted(TextChunk(text="a"), error=error))]
    assert lines[0]["message"]["content"] == "a"
    assert lines[-1] == {"error": text}
    assert len(lines) == 2


def test_stream_of_a_client_that_left_just_ends() -> None:
    assert len([*stream(Scripted(TextChunk(text="a"), error=ClientGoneError("gone")))]) == 1


def test_nothing_follows_the_end() -> None:
    script = Scripted(TextChunk(text="a"), FINISH, TextChunk(text="never"))
    assert len([*stream(script)]) == 2


@pytest.mark.parametrize("taken", [0, 1])
def test_closing_the_stream_closes_the_chunks(taken: int) -> None:
    script = Scripted(TextChunk(text="a"), TextChunk(text="b"), FINISH)
    body = stream(script)
    for _ in range(taken):
        next(body)
    assert not script.closed
    body.close()
    assert script.closed


TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=5)
CHUNKS = st.lists(
    st.builds(lambda text: TextChunk(text=text), TEXT)
    | st.builds(lambda text: ThinkingChunk(text=text), TEXT)
    | st.just(ToolCallStartChunk(index=0, id="call_0", name="broken"))
    | st.just(ToolCallDeltaChunk(index=0, arguments="{"))
    | st.just(ToolCallChunk(call=CALL)),
    max_size=6,
)


@settings(deadline=None, max_examples=100)
@given(chunks=CHUNKS)
def test_streamed_and_whole_answers_say_the_same(chunks: list[Chunk]) -> None:
    chunks = [*chunks, FINISH]
    out = writer()
    messages = [json.loads(line)["message"] for chunk in chunks for line in out.write(chunk)]
    whole = writer().whole(gather(chunks[0], chunks[1:]))["message"]
    assert "".join(message["content"] for message in messages) == whole["content"]
    thinking = "".join(message.get("thinking", "") for message in messages)
    assert thinking == whole.get("thinking", "")
    calls = [call for message in messages for call in message.get("tool_calls", ())]
    assert calls == whole.get("tool_calls", [])


@pytest.mark.parametrize(("value", "found"), [("xml", '"xml"'), (5, "5"), ([], "[]")])
def test_a_wrong_format_is_told_when_the_model_was_found(value: Any, found: str) -> None:
    request = parse_chat(fields(format=value))
    assert request.constraint is None
    assert request.refusal == (
        f'invalid format: {found}; expected "json" or a valid JSON Schema object'
    )
