"""OpenAI's bodies in, OpenAI's objects out; what needs a model is tested in tests/functional."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import pytest

from server.api.body import Fields
from server.api.delivery import gather
from server.api.openai_parse import parse_chat_completion
from server.api.openai_write import OpenAiWriter, error_body
from server.chat import ChatRequest, Message, ToolCall
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
from server.errors import BadRequestError
from server.wishes import Constraint

HI = {"role": "user", "content": "hi"}
PNG = "data:image/png;base64," + base64.b64encode(b"png").decode()


def parse(**values: Any) -> ChatRequest:
    return parse_chat_completion(Fields(values={"model": "m", "messages": [HI], **values})).request


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"n": 0}, "n: expected 1 to 128, found 0"),
        ({"n": 129}, "n: expected 1 to 128, found 129"),
        ({"n": "2"}, "n: expected integer, found string"),
        (
            {"response_format": {"type": "grammar", "syntax": "peg", "definition": "x"}},
            "response_format.syntax: expected gbnf, lark or regex, found peg",
        ),
        (
            {"response_format": {"type": "grammar"}},
            "response_format.definition: expected a text, found nothing",
        ),
        (
            {"response_format": {"type": "regex"}},
            "response_format.pattern: expected a text, found nothing",
        ),
        ({"messages": []}, "[] is too short - 'messages'"),
        ({"messages": None}, "[] is too short - 'messages'"),
        ({"messages": [{"role": "user"}]}, "invalid message content type: <nil>"),
        (
            {"messages": [{"role": "user", "content": 3}]},
            "messages[0].content: expected string, found number",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "video"}]}]},
            "invalid message format",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": "http://x/y"}]}
                ]
            },
            "image URLs are not currently supported, please use base64 encoded data instead",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "data:text/x,y"}}],
                    }
                ]
            },
            "invalid image input",
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "[1]"}}],
                    }
                ]
            },
            "invalid tool call arguments",
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{"}}],
                    }
                ]
            },
            "invalid tool call arguments",
        ),
        (
            {"reasoning_effort": "hard"},
            'invalid reasoning value: "hard" (must be "high", "medium", "low", "max", or "none")',
        ),
        ({"logit_bias": {"7": 101}}, "logit_bias[7]: expected -100 to 100, found 101"),
        (
            {"logit_bias": {"7": -(10**30)}},
            "logit_bias[7]: expected -100 to 100, found -1000000000000000000",
        ),
        ({"logit_bias": []}, "logit_bias: expected object, found array"),
        ({"max_tokens": "many"}, "max_tokens: expected integer, found string"),
        ({"stream": 1}, "stream: expected boolean, found number"),
        ({"stop": 3}, "stop: expected array, found number"),
        ({"top_logprobs": 21}, "top_logprobs must be between 0 and 20"),
        ({"response_format": "json"}, "response_format: expected object, found string"),
    ],
)
def test_body_of_wrong_shape_is_refused(values: dict[str, Any], text: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        parse(**values)
    assert str(caught.value) == text


def test_streaming_is_off_unless_asked_for() -> None:
    assert not parse().stream
    assert parse(stream=True).stream


def test_sampling_is_left_to_the_model_unless_asked_for() -> None:
    assert parse().options == {}


def test_openais_names_become_ollamas() -> None:
    request = parse(
        temperature=0.1,
        top_p=0.2,
        seed=3,
        stop="X",
        max_tokens=5,
        frequency_penalty=0.4,
        presence_penalty=0.5,
        logit_bias={"7": -1},
        options={"num_ctx": 512, "seed": 9},
    )
    assert request.options == {
        "num_ctx": 512,
        "temperature": 0.1,
        "top_p": 0.2,
        "seed": 3,
        "stop": ["X"],
        "num_predict": 5,
        "frequency_penalty": 0.4,
        "presence_penalty": 0.5,
        "logit_bias": {"7": -1},
    }


def test_newer_name_of_the_token_limit_wins() -> None:
    assert parse(max_tokens=5, max_completion_tokens=7).options == {"num_predict": 7}


def test_developer_is_the_system() -> None:
    assert parse(messages=[{"role": "developer", "content": "x"}]).messages[0].role == "system"


def test_refusal_of_an_earlier_turn_is_text() -> None:
    parts = [{"type": "refusal", "refusal": "no"}]
    (message,) = parse(messages=[{"role": "assistant", "content": parts}]).messages
    assert message.content == "no"


def test_stop_keeps_only_texts() -> None:
    assert parse(stop=["a", 3, "b"]).options == {"stop": ["a", "b"]}


@pytest.mark.parametrize(
    ("values", "think"),
    [
        ({}, None),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "minimal"}, "low"),
        ({"reasoning": {"effort": "xhigh"}}, "max"),
        ({"reasoning_effort": "medium"}, "medium"),
    ],
)
def test_effort_becomes_think(values: dict[str, Any], think: object) -> None:
    assert parse(**values).think == think


def test_formats_are_translated() -> None:
    schema = {"type": "object"}
    assert parse(response_format={"type": "text"}).constraint is None
    assert parse(response_format={"type": "json_object"}).constraint == Constraint(kind="json")
    wrapped = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    bound = Constraint(kind="json_schema", source='{"type":"object"}')
    assert parse(response_format=wrapped).constraint == bound


def test_strict_schema_is_strict() -> None:
    schema = {"name": "n", "schema": {"type": "object"}, "strict": True}
    bound = Constraint(kind="json_schema", source='{"type":"object"}', strict=True)
    form = {"type": "json_schema", "json_schema": schema}
    assert parse(response_format=form).constraint == bound


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ({"type": "regex", "pattern": "x"}, "regex"),
        ({"type": "grammar", "grammar": "x"}, "gbnf"),
        ({"type": "grammar", "definition": "x"}, "gbnf"),
        ({"type": "grammar", "syntax": "lark", "definition": "x"}, "lark"),
        ({"type": "grammar", "syntax": "regex", "definition": "x"}, "regex"),
    ],
)
def test_grammars_are_constraints(form: dict[str, Any], kind: Any) -> None:
    assert parse(response_format=form).constraint == Constraint(kind=kind, source="x")


def test_answers_have_seeds_of_their_own() -> None:
    body = {"model": "m", "messages": [HI], "seed": 7, "n": 3}
    asked = parse_chat_completion(Fields(values=body)).requests
    assert [one.options["seed"] for one in asked] == [7, 8, 9]


def test_choices_are_told_apart_and_their_prompt_counts_once() -> None:
    out = OpenAiWriter(id="c", model="m", created_s=7, n=2, include_usage=True)
    usage = Usage(prompt_tokens=5, completion_tokens=2)
    finish = FinishChunk(reason=FinishReason.STOP, usage=usage)
    cached = replace(finish, usage=replace(usage, cached_tokens=4))
    told: list[tuple[int, Chunk]] = [
        (1, TextChunk(text="a")), (0, TextChunk(text="b")), (1, finish), (0, cached),
    ]  # fmt: skip
    data = b"".join(record for index, chunk in told for record in out.write(index, chunk))
    lines = (data + b"".join(out.end())).decode().strip().split("\n\n")
    *choices, last = (json.loads(line.removeprefix("data: ")) for line in lines[:-1])
    seen = [(one["index"], one["delta"]) for event in choices for one in event["choices"]]
    assert seen == [
        (1, {"role": "assistant", "content": "a"}),
        (0, {"role": "assistant", "content": "b"}),
        (1, {}),
        (0, {}),
    ]
    assert last["usage"]["prompt_tokens"] == 5
    assert last["usage"]["completion_tokens"] == 4
    assert last["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}


def test_parts_are_put_together() -> None:
    content = [
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {"url": PNG}},
        {"type": "text", "text": "b"},
    ]
    assert parse(messages=[{"role": "user", "content": content}]).messages == (
        Message(role="user", content="a\n\nb", images=(b"png",)),
    )


def test_tool_result_finds_the_name_of_its_call() -> None:
    call = {"id": "c9", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = parse(
        messages=[
            HI,
            {"role": "assistant", "content": None, "reasoning": "r", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c9", "content": "ok"},
        ]
    ).messages
    assert messages[1].tool_calls == (ToolCall(id="c9", name="f", arguments={"a": 1}),)
    assert messages[1].thinking == "r"
    assert messages[2].tool_name == "f"


def test_tool_choice_none_hides_the_tools() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert len(parse(tools=tools).tools) == 1
    assert parse(tools=tools, tool_choice="none").tools == ()


USAGE = Usage(prompt_tokens=3, cached_tokens=1, completion_tokens=2)
FINISH = FinishChunk(reason=FinishReason.STOP, usage=USAGE)
LENGTH = FinishChunk(reason=FinishReason.LENGTH, usage=USAGE)
CALL = ToolCallChunk(call=ToolCall(id="call_1", name="f", arguments={"a": "é"}))
WIRE_USAGE = {
    "prompt_tokens": 3,
    "completion_tokens": 2,
    "total_tokens": 5,
    "prompt_tokens_details": {"cached_tokens": 1},
    "completion_tokens_details": {"reasoning_tokens": 0},
}


def events(*chunks: Chunk, include_usage: bool = False) -> list[Any]:
    out = OpenAiWriter(id="chatcmpl-1", model="m", created_s=7, include_usage=include_usage)
    data = b"".join(
        record
        for chunk in chunks
        for record in (out.fault(chunk) if isinstance(chunk, FaultChunk) else out.write(0, chunk))
    )
    if not isinstance(chunks[-1], FaultChunk):
        data += b"".join(out.end())
    lines = data.decode().split("\n\n")
    assert lines.pop() == ""
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_stream_opens_with_the_role_and_ends_with_the_reason() -> None:
    first, second, last = events(TextChunk(text=""), TextChunk(text="b"), FINISH)
    assert first == {
        "id": "chatcmpl-1",
        "created": 7,
        "model": "m",
        "object": "chat.completion.chunk",
        "system_fingerprint": "fp_ollama",
        "choices": [
            {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        ],
    }
    assert second["choices"][0]["delta"] == {"content": "b"}
    assert last["choices"] == [{"index": 0, "delta": {}, "finish_reason": "stop"}]
    assert "usage" not in last


def test_arguments_of_a_call_are_streamed_in_pieces() -> None:
    begun, one, two, last = events(
        ToolCallStartChunk(index=0, id="call_1", name="f"),
        ToolCallDeltaChunk(index=0, arguments='{"a": '),
        ToolCallDeltaChunk(index=0, arguments='"é"}'),
        replace(CALL, streamed=True),
        FINISH,
    )
    deltas = [event["choices"][0]["delta"] for event in (begun, one, two)]
    assert deltas[0]["tool_calls"] == [
        {
            "id": "call_1",
            "index": 0,
            "type": "function",
            "function": {"name": "f", "arguments": ""},
        }
    ]
    assert [delta["tool_calls"] for delta in deltas[1:]] == [
        [{"index": 0, "function": {"arguments": '{"a": '}}],
        [{"index": 0, "function": {"arguments": '"é"}'}}],
    ]
    assert last["choices"][0]["finish_reason"] == "tool_calls"


def test_a_call_that_broke_off_is_no_reason_to_end() -> None:
    *_, last = events(
        ToolCallStartChunk(index=0, id="call_1", name="f"),
        ToolCallDeltaChunk(index=0, arguments='{"a": '),
        TextChunk(text='f {"a": oops'),
        FINISH,
    )
    assert last["choices"][0]["finish_reason"] == "stop"


def test_usage_follows_in_a_chunk_without_choices() -> None:
    *_, last = events(TextChunk(text="a"), FINISH, include_usage=True)
    assert last["choices"] == []
    assert last["usage"] == WIRE_USAGE


def test_answer_without_text_still_names_the_role() -> None:
    first, last = events(FINISH)
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert last["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("chunks", "reason"),
    [
        ([FINISH], "stop"),
        ([LENGTH], "length"),
        ([CALL, FINISH], "tool_calls"),
        ([CALL, LENGTH], "length"),
    ],
)
def test_reason_is_in_openais_words(chunks: list[Chunk], reason: str) -> None:
    assert events(*chunks)[-1]["choices"][0]["finish_reason"] == reason


def test_tool_call_is_streamed_whole() -> None:
    first = events(CALL, FINISH)[0]
    assert first["choices"][0]["delta"]["tool_calls"] == [
        {
            "id": "call_1",
            "index": 0,
            "type": "function",
            "function": {"name": "f", "arguments": '{"a":"é"}'},
        }
    ]


def test_fault_is_an_error_event_before_the_end() -> None:
    *_, last = events(TextChunk(text="a"), FaultChunk(message="boom", status=500))
    assert last == {"error": {"message": "boom", "type": "api_error", "param": None, "code": None}}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (413, "invalid_request_error"),
        (500, "api_error"),
        (503, "api_error"),
    ],
)
def test_error_type_follows_the_status(status: int, kind: str) -> None:
    assert error_body("x", status)["error"]["type"] == kind


def test_whole_answer_holds_everything() -> None:
    entry = TokenLogprob(token="c", token_bytes=b"c", logprob=-0.5)
    chunks = (ThinkingChunk(text="t"), TextChunk(text="c", logprobs=(entry,)), CALL, FINISH)
    out = OpenAiWriter(id="chatcmpl-1", model="m", created_s=7)
    body = out.whole([gather(chunks[0], chunks[1:])])
    (choice,) = body["choices"]
    assert body["object"] == "chat.completion"
    assert body["usage"] == WIRE_USAGE
    assert choice["message"]["content"] == "c"
    assert choice["message"]["reasoning"] == "t"
    assert choice["finish_reason"] == "tool_calls"
    assert choice["logprobs"] == {
        "content": [{"token": "c", "logprob": -0.5, "bytes": [99], "top_logprobs": []}]
    }
