"""OpenAI's Responses bodies in, response objects and events out."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from server.api.body import Fields
from server.api.delivery import gather
from server.api.responses_parse import ResponseCall, parse_response
from server.api.responses_write import ResponsesWriter
from server.chat import Message, ToolCall
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
from server.errors import BadRequestError, ForbiddenError
from server.wishes import Constraint

PNG = "data:image/png;base64," + base64.b64encode(b"png").decode()
TOOL = {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}}
STATELESS = "is not supported: nothing is stored here, so the whole conversation must come as input"


def parse(**values: Any) -> ResponseCall:
    return parse_response(Fields(values={"model": "m", "input": "hi", **values}))


def said(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": list(parts)}]}


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"previous_response_id": "resp_1"}, f"previous_response_id {STATELESS}"),
        ({"conversation": "conv_1"}, f"conversation {STATELESS}"),
        ({"background": True}, "background is not supported: nothing is stored here"),
        ({"prompt": {"id": "p"}}, "prompt is not supported: there are no stored prompts here"),
        ({"input": None}, "input is required"),
        ({"input": ""}, "input is required"),
        ({"input": []}, "input is required"),
        ({"input": 3}, "input: expected string, found number"),
        ({"input": ["x"]}, "input[0]: expected object, found string"),
        ({"input": [{}]}, "input item missing required 'type' field"),
        ({"input": [{"type": "mcp_call"}]}, 'unknown input item type: "mcp_call"'),
        ({"input": [{"type": "message", "content": "x"}]},
         "input[0].role: expected string, found nothing"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, f"item_reference {STATELESS}"),
        (said({"type": "video"}), "unknown content type: video"),
        (said({"type": "input_file"}), "file inputs are not currently supported"),
        (said({"type": "input_text", "text": 3}),
         "input[0].content[0].text: expected string, found number"),
        (said({"type": "input_image", "image_url": "http://x/y"}),
         "image URLs are not currently supported, please use base64 encoded data instead"),
        (said({"type": "input_image", "file_id": "x"}), "invalid image input"),
        ({"input": [{"type": "function_call", "arguments": "["}]}, "invalid tool call arguments"),
        ({"input": [{"type": "function_call", "arguments": "[]"}]}, "invalid tool call arguments"),
        ({"tools": [{"type": "file_search"}]},
         "tools[0].type: expected function, found file_search"),
        ({"tools": [{"type": "function"}]}, "tools[0].name: expected string, found nothing"),
        ({"text": {"format": {"type": "xml"}}},
         "text.format.type: expected text, json_object, json_schema, grammar or regex, found xml"),
        ({"truncation": "some"}, "truncation: expected auto or disabled, found some"),
        ({"reasoning": {"effort": "hard"}},
         'invalid reasoning value: "hard" (must be "high", "medium", "low", "max", or "none")'),
        ({"max_output_tokens": "9"}, "max_output_tokens: expected integer, found string"),
        ({"top_logprobs": 21}, "top_logprobs must be between 0 and 20"),
    ],
)  # fmt: skip
def test_body_of_wrong_shape_is_refused(values: dict[str, Any], text: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        parse(**values)
    assert str(caught.value) == text


def test_search_of_the_web_is_refused() -> None:
    with pytest.raises(ForbiddenError, match="ollama cloud is disabled: web search is unavailable"):
        parse(tools=[{"type": "web_search_preview"}])


def test_instructions_go_in_front() -> None:
    call = parse(instructions="Be kind.", max_output_tokens=5, temperature=0.1, stream=True)
    assert call.request.messages == (
        Message(role="system", content="Be kind."),
        Message(role="user", content="hi"),
    )
    assert call.request.options == {"num_predict": 5, "temperature": 0.1}
    assert call.request.stream
    assert call.echo["instructions"] == "Be kind."
    assert call.echo["max_output_tokens"] == 5


def test_items_become_turns() -> None:
    items = [
        {"role": "developer", "content": "Be kind."},
        {"type": "message", "role": "user", "content": [
            {"type": "input_text", "text": "a"},
            {"type": "input_image", "image_url": PNG, "detail": "low"},
        ]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "hm"},
        {"type": "message", "role": "assistant", "content": [
            {"type": "output_text", "text": "let me see", "annotations": []},
        ]},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": '{"x":1}'},
        {"type": "function_call", "call_id": "2", "name": "g", "arguments": ""},
        {"type": "function_call_output", "call_id": "1", "output": "12"},
        {"type": "function_call_output", "call_id": "3",
         "output": [{"type": "input_text", "text": "13"}]},
        {"type": "web_search_call", "id": "ws_1"},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "so"}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "thanks"},
    ]  # fmt: skip
    one, two = (
        ToolCall(id="1", name="f", arguments={"x": 1}),
        ToolCall(id="2", name="g", arguments={}),
    )
    assert parse(input=items).request.messages == (
        Message(role="system", content="Be kind."),
        Message(role="user", content="a", images=(b"png",)),
        Message(role="assistant", content="let me see", thinking="hm", tool_calls=(one, two)),
        Message(role="tool", content="12", tool_name="f", tool_call_id="1"),
        Message(role="tool", content="13", tool_call_id="3"),
        Message(role="assistant", content="no", thinking="so"),
        Message(role="assistant", content="yes"),
        Message(role="user", content="thanks"),
    )


def test_tools_take_the_form_templates_know() -> None:
    (tool,) = parse(tools=[TOOL]).request.tools
    assert (tool.name, tool.description, tool.parameters) == ("f", "d", {"type": "object"})
    assert tool.raw["function"]["name"] == "f"
    spaced = parse(tools=[{"type": "namespace", "name": "ns", "tools": [TOOL]}]).request.tools
    assert [tool.name for tool in spaced] == ["ns.f"]


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        (None, ["f", "g"]),
        ("auto", ["f", "g"]),
        ("none", []),
        ({"type": "function", "name": "g"}, ["f", "g"]),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"name": "g"}]}, ["g"]),
    ],
)
def test_choice_leaves_tools(choice: Any, names: list[str]) -> None:
    call = parse(tools=[TOOL, {**TOOL, "name": "g"}], tool_choice=choice)
    assert [tool.name for tool in call.request.tools] == names


def test_formats_and_wishes_are_translated() -> None:
    schema = {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": True}
    call = parse(
        text={"format": schema},
        reasoning={"effort": "xhigh", "summary": "auto"},
        truncation="disabled",
        include=["message.output_text.logprobs"],
        top_logprobs=2,
    )
    assert call.request.constraint == Constraint(
        kind="json_schema", source='{"type":"object"}', strict=True
    )
    assert (call.request.think, call.request.truncate) == ("max", False)
    assert call.request.top_logprobs == 2
    assert call.echo["reasoning"] == {"effort": "xhigh", "summary": "auto"}
    assert parse(text={"format": {"type": "json_object"}}).request.constraint == Constraint(
        kind="json"
    )
    assert parse().request.constraint is None
    assert parse().echo["text"] == {"format": {"type": "text"}}


USAGE = Usage(prompt_tokens=11, cached_tokens=4, completion_tokens=5)
FINISH = FinishChunk(reason=FinishReason.STOP, usage=USAGE)
CUT = FinishChunk(reason=FinishReason.LENGTH, usage=USAGE)
CALL = ToolCall(id="c1", name="f", arguments={"b": 1, "a": 2})


def writer() -> ResponsesWriter:
    return ResponsesWriter(model="m", echo=parse().echo, now_s=lambda: 7)


def written(*chunks: Chunk) -> list[dict[str, Any]]:
    """The events of a stream; their names are their types, their numbers follow each other."""
    out = writer()
    events = []
    for record in b"".join(b"".join(out.write(chunk)) for chunk in chunks).split(b"\n\n")[:-1]:
        name, _, data = record.partition(b"\n")
        event = json.loads(data.removeprefix(b"data: "))
        assert name == b"event: " + event["type"].encode()
        events.append(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def test_events_come_in_openais_order() -> None:
    events = written(
        StartChunk(prompt_tokens=1),
        ThinkingChunk(text="t"),
        TextChunk(text="a"),
        TextChunk(text=""),
        TextChunk(text="b"),
        ToolCallStartChunk(index=0, id="c1", name="f"),
        ToolCallDeltaChunk(index=0, arguments='{"b":1,'),
        ToolCallDeltaChunk(index=0, arguments='"a":2}'),
        ToolCallChunk(call=CALL, streamed=True),
        FINISH,
    )
    assert [
        (event["type"].removeprefix("response."), event.get("output_index")) for event in events
    ] == [
        ("created", None),
        ("in_progress", None),
        ("output_item.added", 0),
        ("reasoning_summary_part.added", 0),
        ("reasoning_summary_text.delta", 0),
        ("reasoning_summary_text.done", 0),
        ("reasoning_summary_part.done", 0),
        ("output_item.done", 0),
        ("output_item.added", 1),
        ("content_part.added", 1),
        ("output_text.delta", 1),
        ("output_text.delta", 1),
        ("output_text.done", 1),
        ("content_part.done", 1),
        ("output_item.done", 1),
        ("output_item.added", 2),
        ("function_call_arguments.delta", 2),
        ("function_call_arguments.delta", 2),
        ("function_call_arguments.done", 2),
        ("output_item.done", 2),
        ("completed", None),
    ]
    assert events[12]["text"] == "ab"
    assert events[18]["arguments"] == '{"b":1,"a":2}'
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    final = events[-1]["response"]
    assert final["output"] == done
    assert done[0]["encrypted_content"] == "t"
    assert done[2]["call_id"] == "c1"
    assert (final["status"], final["completed_at"]) == ("completed", 7)
    assert final["usage"]["input_tokens_details"]["cached_tokens"] == 4
    assert final["usage"]["total_tokens"] == 16


def test_whole_answer_holds_everything() -> None:
    entry = TokenLogprob(token="c", token_bytes=b"c", logprob=-0.5)
    chunks = (
        ThinkingChunk(text="t"),
        TextChunk(text="c", logprobs=(entry,)),
        ToolCallChunk(call=CALL),
        FINISH,
    )
    body = writer().whole(gather(chunks[0], chunks[1:]))
    reasoning, message, call = body["output"]
    assert reasoning["summary"] == [{"type": "summary_text", "text": "t"}]
    assert message["content"][0]["text"] == "c"
    assert message["content"][0]["logprobs"][0]["logprob"] == -0.5
    assert (call["name"], call["arguments"]) == ("f", '{"b":1,"a":2}')
    assert {item["status"] for item in (message, call)} == {"completed"}
    assert (body["object"], body["status"], body["model"]) == ("response", "completed", "m")
    assert (body["store"], body["previous_response_id"]) == (False, None)


def test_call_told_only_whole_has_all_its_events() -> None:
    events = written(ToolCallChunk(call=CALL), FINISH)
    assert [event["type"].removeprefix("response.") for event in events[2:-1]] == [
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
    ]
    assert events[2]["item"]["arguments"] == ""
    assert events[3]["delta"] == '{"b":1,"a":2}'


def test_call_that_breaks_off_is_no_part_of_the_response() -> None:
    events = written(
        ToolCallStartChunk(index=0, id="c1", name="f"),
        ToolCallDeltaChunk(index=0, arguments='{"b'),
        TextChunk(text="oh"),
        FINISH,
    )
    broken = next(event["item"] for event in events if event["type"].endswith("item.done"))
    assert broken["status"] == "incomplete"
    assert [item["type"] for item in events[-1]["response"]["output"]] == ["message"]


def test_cut_answer_is_incomplete() -> None:
    events = written(TextChunk(text="a"), CUT)
    body = writer().whole(gather(TextChunk(text="a"), [CUT]))
    for response in (events[-1]["response"], body):
        assert response["status"] == "incomplete"
        assert response["incomplete_details"] == {"reason": "max_output_tokens"}
        assert response["output"][0]["status"] == "incomplete"
        assert response["completed_at"] is None
    assert events[-1]["type"] == "response.incomplete"


def test_answer_without_words_has_an_empty_message() -> None:
    for output in (
        written(FINISH)[-1]["response"]["output"],
        writer().whole(gather(FINISH, ()))["output"],
    ):
        (message,) = output
        assert message["content"][0]["text"] == ""


def test_fault_is_the_last_event() -> None:
    events = written(TextChunk(text="a"), FaultChunk(message="it broke"))
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["status"] == "failed"
    assert events[-1]["response"]["error"] == {"code": "server_error", "message": "it broke"}
