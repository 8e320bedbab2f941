"""Anthropic's bodies in, Anthropic's objects out; what needs a model is tested in functional."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from server.api.anthropic_parse import parse_count, parse_messages
from server.api.anthropic_write import AnthropicWriter, error_body
from server.api.body import Fields
from server.api.delivery import gather
from server.api.refusal import refusal
from server.chat import ChatRequest, Message, ToolCall
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
from server.errors import BadRequestError, ForbiddenError, ServerError
from server.wishes import Constraint

HI = {"role": "user", "content": "hi"}
PNG = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(b"png").decode()}


def parse(**values: Any) -> ChatRequest:
    body = {"model": "m", "max_tokens": 9, "messages": [HI], **values}
    return parse_messages(Fields(values=body))


def said(*blocks: dict[str, Any], role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": list(blocks)}]}


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"model": "", "max_tokens": 0, "messages": []}, "model is required"),
        ({"max_tokens": 0, "messages": []}, "max_tokens is required and must be positive"),
        ({"max_tokens": None}, "max_tokens is required and must be positive"),
        ({"max_tokens": -1}, "max_tokens is required and must be positive"),
        ({"messages": []}, "messages is required"),
        ({"max_tokens": "9"}, "max_tokens: expected integer, found string"),
        ({"messages": "hi"}, "messages: expected array, found string"),
        ({"messages": [{"role": "tool", "content": "x"}]},
         "messages[0].role: expected user or assistant, found 'tool'"),
        ({"messages": [{"role": "user", "content": 3}]},
         "messages[0].content: expected array, found number"),
        (said({"type": "video"}), "unknown content block type: video"),
        (said({"type": "image", "source": {"type": "url", "url": "http://x"}}),
         "invalid image source type: url. Only base64 images are supported."),
        (said({"type": "image", "source": {**PNG, "data": "%"}}),
         "messages[0].content[0].source.data: expected base64 string, found other text"),
        (said({"type": "document", "source": {"type": "url"}}),
         "messages[0].content[0].source.type: expected text, found url"),
        (said({"type": "tool_result", "content": [{"type": "tool_result"}]}),
         "unknown content block type: tool_result"),
        (said({"type": "tool_use", "input": "{}"}, role="assistant"),
         "messages[0].content[0].input: expected object, found string"),
        ({"system": [{"type": "image"}]}, "system[0].type: expected text, found image"),
        ({"system": 3}, "system: expected string, found number"),
        ({"thinking": {"type": "maybe"}},
         "thinking.type: expected enabled, disabled or adaptive, found maybe"),
        ({"output_config": {"effort": "hard"}},
         "output_config.effort: expected one of low, medium, high, xhigh, max, found hard"),
        ({"output_config": {"format": {"type": "xml"}}},
         "output_config.format.type: expected json_schema, found something else"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]},
         "tools[0].type: expected custom, found bash_20250124"),
        ({"tools": [{"input_schema": {}}]}, "tools[0].name: expected string, found nothing"),
        ({"tool_choice": {"type": "all"}},
         "tool_choice.type: expected auto, any, tool or none, found all"),
        ({"stream": 1}, "stream: expected boolean, found number"),
        ({"stop_sequences": "x"}, "stop_sequences: expected array, found string"),
    ],
)  # fmt: skip
def test_body_of_wrong_shape_is_refused(values: dict[str, Any], text: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        parse(**values)
    assert str(caught.value) == text


@pytest.mark.parametrize("kind", ["web_search_20250305", "web_fetch_20250910"])
def test_search_of_the_web_is_refused(kind: str) -> None:
    with pytest.raises(ForbiddenError, match="ollama cloud is disabled: web search"):
        parse(tools=[{"type": kind, "name": "web_search"}])


def test_counting_needs_no_max_tokens() -> None:
    assert parse_count(Fields(values={"model": "m", "messages": [HI]})).messages
    for values, text in (({}, "model is required"), ({"model": "m"}, "messages is required")):
        with pytest.raises(BadRequestError, match=text):
            parse_count(Fields(values=values))


def test_names_become_ollamas() -> None:
    request = parse(
        temperature=0.1, top_p=0.2, top_k=3, stop_sequences=["X"], options={"num_ctx": 64}
    )
    assert request.options == {
        "num_ctx": 64,
        "temperature": 0.1,
        "top_p": 0.2,
        "top_k": 3,
        "num_predict": 9,
        "stop": ["X"],
    }
    assert not request.stream


@pytest.mark.parametrize(
    ("values", "think"),
    [
        ({}, False),
        ({"thinking": {"type": "disabled"}, "output_config": {"effort": "high"}}, False),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, True),
        ({"thinking": {"type": "adaptive"}}, True),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "xhigh"}}, "max"),
        ({"output_config": {"effort": "low"}}, "low"),
    ],
)
def test_thinking_is_a_wish(values: dict[str, Any], think: object) -> None:
    request = parse(**values)
    assert (request.think, request.think_if_able) == (think, True)


def test_system_goes_in_front() -> None:
    blocks = [{"type": "text", "text": "a", "cache_control": {}}, {"type": "text", "text": "b"}]
    for system, content in (("a", "a"), (blocks, "a\n\nb")):
        first, second = parse(system=system).messages
        assert first == Message(role="system", content=content)
        assert second == Message(role="user", content="hi")


def test_blocks_become_turns() -> None:
    request = parse(
        messages=[
            HI,
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "t", "signature": "s"},
                    {"type": "redacted_thinking", "data": "x"},
                    {"type": "text", "text": "let me see"},
                    {"type": "tool_use", "id": "1", "name": "f", "input": {"b": 1, "a": 2}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "1", "content": "12"},
                    {
                        "type": "tool_result",
                        "tool_use_id": "2",
                        "content": [
                            {"type": "text", "text": "13"},
                            {"type": "image", "source": PNG},
                        ],
                    },
                    {"type": "text", "text": "and now?"},
                    {"type": "document", "source": {"type": "text", "data": "page"}},
                ],
            },
        ]
    )
    call = ToolCall(id="1", name="f", arguments={"b": 1, "a": 2})
    assert request.messages == (
        Message(role="user", content="hi"),
        Message(role="assistant", content="let me see", thinking="t", tool_calls=(call,)),
        Message(role="tool", content="12", tool_name="f", tool_call_id="1"),
        Message(role="tool", content="13", images=(b"png",), tool_call_id="2"),
        Message(role="user", content="and now?\n\npage"),
    )


def test_result_alone_is_one_turn() -> None:
    request = parse(**said({"type": "tool_result", "tool_use_id": "1"}))
    assert [message.role for message in request.messages] == ["tool"]


def test_tools_take_the_form_templates_know() -> None:
    schema = {"type": "object", "properties": {"x": {"type": "string", "format": "date"}}}
    tools = [{"name": "f", "description": "d", "input_schema": schema}]
    (tool,) = parse(tools=tools, tool_choice={"type": "auto"}).tools
    assert (tool.name, tool.description, tool.parameters) == ("f", "d", schema)
    assert tool.raw["function"] == {"name": "f", "description": "d", "parameters": schema}
    assert parse(tools=tools, tool_choice={"type": "none"}).tools == ()


def test_formats_are_schemas() -> None:
    wanted = {"type": "json_schema", "schema": {"type": "object"}}
    bound = Constraint(kind="json_schema", source='{"type":"object"}')
    assert parse(output_config={"format": wanted}).constraint == bound
    assert parse(output_format=wanted).constraint == bound


USAGE = Usage(prompt_tokens=11, cached_tokens=4, completion_tokens=5)
FINISH = FinishChunk(reason=FinishReason.STOP, usage=USAGE)
WIRE_USAGE = {
    "input_tokens": 7,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 4,
    "output_tokens": 5,
}
CALL = ToolCallChunk(call=ToolCall(id="c1", name="f", arguments={"b": 1, "a": 2}))


def written(*chunks: Chunk) -> list[dict[str, Any]]:
    """The events of a stream; each one's name is its type."""
    writer = AnthropicWriter(id="msg_1", model="m")
    events = []
    for record in b"".join(b"".join(writer.write(chunk)) for chunk in chunks).split(b"\n\n")[:-1]:
        name, _, data = record.partition(b"\n")
        event = json.loads(data.removeprefix(b"data: "))
        assert name == b"event: " + event["type"].encode()
        events.append(event)
    return events


def test_events_come_in_anthropics_order() -> None:
    events = written(
        StartChunk(prompt_tokens=11),
        ThinkingChunk(text="t"),
        TextChunk(text="a"),
        TextChunk(text=""),
        TextChunk(text="b"),
        CALL,
        FINISH,
    )
    assert [(event["type"], event.get("index")) for event in events] == [
        ("message_start", None),
        ("ping", None),
        ("content_block_start", 0),
        ("content_block_delta", 0),
        ("content_block_stop", 0),
        ("content_block_start", 1),
        ("content_block_delta", 1),
        ("content_block_delta", 1),
        ("content_block_stop", 1),
        ("content_block_start", 2),
        ("content_block_delta", 2),
        ("content_block_stop", 2),
        ("message_delta", None),
        ("message_stop", None),
    ]
    assert events[0]["message"]["usage"]["input_tokens"] == 11
    assert events[9]["content_block"] == {"type": "tool_use", "id": "c1", "name": "f", "input": {}}
    assert events[10]["delta"] == {"type": "input_json_delta", "partial_json": '{"b":1,"a":2}'}
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert events[-2]["usage"] == WIRE_USAGE


def test_arguments_come_in_pieces() -> None:
    events = written(
        ToolCallStartChunk(index=0, id="c1", name="f"),
        ToolCallDeltaChunk(index=0, arguments='{"b":'),
        ToolCallDeltaChunk(index=0, arguments="1}"),
        ToolCallChunk(call=CALL.call, streamed=True),
        FINISH,
    )
    pieces = [event["delta"]["partial_json"] for event in events[1:3]]
    assert pieces == ['{"b":', "1}"]
    assert [event["type"] for event in events[3:]] == [
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert events[-2]["delta"]["stop_reason"] == "tool_use"


def test_call_that_breaks_off_is_closed_and_not_a_call() -> None:
    events = written(ToolCallStartChunk(index=0, id="c1", name="f"), TextChunk(text="[f("), FINISH)
    assert [event.get("index") for event in events] == [0, 0, 1, 1, 1, None, None]
    assert events[-2]["delta"]["stop_reason"] == "end_turn"


def test_answer_without_words_has_an_empty_block() -> None:
    events = written(StartChunk(prompt_tokens=1), FINISH)
    assert [event["type"] for event in events[2:4]] == ["content_block_start", "content_block_stop"]
    body = AnthropicWriter(id="msg_1", model="m").whole(gather(FINISH, ()))
    assert body["content"] == [{"type": "text", "text": ""}]


def test_fault_is_the_last_event() -> None:
    events = written(StartChunk(prompt_tokens=1), FaultChunk(message="it broke"))
    assert events[-1]["type"] == "error"
    assert events[-1]["error"] == {"type": "api_error", "message": "it broke"}


@pytest.mark.parametrize(
    ("reason", "stop"), [(FinishReason.STOP, "end_turn"), (FinishReason.LENGTH, "max_tokens")]
)
def test_reason_is_told(reason: FinishReason, stop: str) -> None:
    finish = FinishChunk(reason=reason, usage=USAGE)
    body = AnthropicWriter(id="msg_1", model="m").whole(gather(TextChunk(text="a"), [finish]))
    assert body["stop_reason"] == stop


def test_whole_answer_holds_everything() -> None:
    chunks = (StartChunk(prompt_tokens=11), ThinkingChunk(text="t"), TextChunk(text="c"), CALL)
    body = AnthropicWriter(id="msg_1", model="m").whole(gather(chunks[0], (*chunks[1:], FINISH)))
    assert body == {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [
            {"type": "thinking", "thinking": "t", "signature": ""},
            {"type": "text", "text": "c"},
            {"type": "tool_use", "id": "c1", "name": "f", "input": {"b": 1, "a": 2}},
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": WIRE_USAGE,
    }


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (413, "request_too_large"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (503, "overloaded_error"),
        (507, "api_error"),
        (529, "overloaded_error"),
    ],
)
def test_error_type_follows_the_status(status: int, kind: str) -> None:
    body = error_body("x", status)
    assert body["error"] == {"type": kind, "message": "x"}
    assert body["type"] == "error"
    assert body["request_id"].startswith("req_")


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/v1/messages", "anthropic"),
        ("/v1/messages/count_tokens", "anthropic"),
        ("/v1/messagesx", "openai"),
        ("/v1/chat/completions", "openai"),
        ("/api/chat", "ollama"),
        ("/", "ollama"),
    ],
)
def test_refusal_speaks_the_dialect_of_its_path(path: str, dialect: str) -> None:
    body = refusal(path, "no", ServerError.status)
    found = "ollama" if body["error"] == "no" else "anthropic" if "type" in body else "openai"
    assert found == dialect
