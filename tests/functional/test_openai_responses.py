"""The official ``openai`` client's Responses against the server on real sockets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import zstandard
from openai.types.responses import FunctionToolParam
from pydantic import BaseModel

from tests.functional.live import THINKING_TEMPLATE, TOOLS_TEMPLATE, LiveServer, put_model

CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Lima"}}</tool_call>'
TOOL: FunctionToolParam = {
    "type": "function",
    "name": "weather",
    "description": "The weather of a city.",
    "strict": False,
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LiveServer]:
    with LiveServer(tmp_path) as live:
        put_model(live.store, "thinker", tmp_path, template=THINKING_TEMPLATE)
        put_model(live.store, "caller", tmp_path, template=TOOLS_TEMPLATE)
        yield live


@pytest.fixture
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    address = f"http://127.0.0.1:{server.port}/v1"
    with openai.OpenAI(base_url=address, api_key="unused", max_retries=0) as one:
        yield one


def test_input_is_answered(client: openai.OpenAI) -> None:
    response = client.responses.create(model="tiny", input="hi", instructions="Be kind.")
    assert response.output_text == "Hello world"
    assert (response.status, response.model, response.error) == ("completed", "tiny", None)
    assert response.usage is not None
    assert response.usage.output_tokens == 2
    assert response.instructions == "Be kind."


def test_response_is_streamed(client: openai.OpenAI) -> None:
    with client.responses.stream(model="tiny", input="hi") as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(deltas) == final.output_text == "Hello world"
    assert final.usage is not None


def test_cut_response_is_incomplete(client: openai.OpenAI) -> None:
    response = client.responses.create(model="tiny", input="hi", max_output_tokens=1)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"


def test_tool_is_called_and_its_result_taken(server: LiveServer, client: openai.OpenAI) -> None:
    server.say(words=["<think>", "hm", "</think>", "Let me see. ", CALL])
    with client.responses.stream(model="caller", input="hi", tools=[TOOL]) as stream:
        final = stream.get_final_response()
    text, call = final.output
    assert text.type == "message"
    assert call.type == "function_call"
    assert (call.name, call.arguments) == ("weather", '{"city": "Lima"}')
    whole = client.responses.create(model="caller", input="hi", tools=[TOOL])
    assert [item.type for item in whole.output] == ["message", "function_call"]
    server.say(words=["It ", "rains."])
    after = client.responses.create(
        model="tiny",
        input=[
            {"role": "user", "content": "hi"},
            {"type": "function_call", "call_id": call.call_id, "name": call.name,
             "arguments": call.arguments},
            {"type": "function_call_output", "call_id": call.call_id, "output": "rain"},
        ],
    )  # fmt: skip
    assert after.output_text == "It rains."


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        ("always", "tool_choice: expected none, auto, required or an object, found always"),
        ({"type": "function", "name": "f"}, 'expected the name of a tool, found "f"'),
        ({"type": "mcp"}, "tool_choice.type: expected function or allowed_tools, found mcp"),
    ],
)
def test_choice_that_makes_no_sense_is_refused(
    client: openai.OpenAI, choice: Any, text: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=text):
        client.responses.create(model="caller", input="hi", tools=[TOOL], tool_choice=choice)


def test_calls_are_text_where_none_may_be_made(server: LiveServer, client: openai.OpenAI) -> None:
    server.say(words=[CALL])
    response = client.responses.create(model="caller", input="hi", tools=[TOOL], tool_choice="none")
    assert [item.type for item in response.output] == ["message"]


@pytest.mark.parametrize(("parallel", "calls"), [(True, 2), (False, 1)])
def test_answer_ends_with_its_first_call_on_request(
    server: LiveServer, client: openai.OpenAI, *, parallel: bool, calls: int
) -> None:
    server.say(words=[CALL, "\n", CALL])
    asked: Any = {"model": "caller", "input": "hi", "tools": [TOOL]}
    response = client.responses.create(**asked, parallel_tool_calls=parallel)
    assert [item.type for item in response.output] == ["function_call"] * calls
    assert response.parallel_tool_calls is parallel
    assert response.status == "completed"
    with client.responses.stream(**asked, parallel_tool_calls=parallel) as stream:
        assert len(stream.get_final_response().output) == calls
    chat = client.chat.completions.create(
        model="caller",
        messages=[{"role": "user", "content": "hi"}],
        tools=[{"type": "function", "function": {"name": "weather"}}],
        parallel_tool_calls=parallel,
    ).choices[0]
    assert len(chat.message.tool_calls or ()) == calls
    assert chat.finish_reason == "tool_calls"


def test_reasoning_is_an_item(server: LiveServer, client: openai.OpenAI) -> None:
    server.say(words=["<think>", "hm", "</think>", "Yes. ", "I see."])
    with client.responses.stream(
        model="thinker", input="hi", reasoning={"effort": "low", "summary": "auto"}
    ) as stream:
        final = stream.get_final_response()
    reasoning, message = final.output
    assert reasoning.type == "reasoning"
    assert [part.text for part in reasoning.summary] == ["hm"]
    assert message.type == "message"
    assert final.output_text == "Yes. I see."
    assert final.usage is not None
    assert final.usage.output_tokens_details.reasoning_tokens == 1
    whole = client.responses.create(model="thinker", input="hi")
    said: Any = [item.to_dict() for item in whole.output]
    hi: Any = {"role": "user", "content": "hi"}
    again = client.responses.create(model="thinker", input=[hi, *said, hi])
    assert again.usage is not None
    assert whole.usage is not None
    assert again.usage.input_tokens > whole.usage.input_tokens


class City(BaseModel):
    name: str


def test_answer_is_parsed_into_a_type(server: LiveServer, client: openai.OpenAI) -> None:
    server.say(words=['{"name": ', '"Lima"}'])
    response = client.responses.parse(model="tiny", input="hi", text_format=City)
    assert response.output_parsed == City(name="Lima")


def test_earlier_responses_are_not_kept(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="nothing is stored here"):
        client.responses.create(model="tiny", input="hi", previous_response_id="resp_1")
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_1")


def test_crash_in_the_stream_is_told(server: LiveServer, client: openai.OpenAI) -> None:
    server.say(words=["a ", "b "], crash_after_steps=2)
    events = list(client.responses.create(model="tiny", input="hi", stream=True))
    last = events[-1]
    assert last.type == "response.failed"
    assert last.response.error is not None
    assert "unexpectedly stopped" in last.response.error.message


def test_mistake_is_told(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="model 'absent' not found"):
        client.responses.create(model="absent", input="hi")
    with pytest.raises(openai.BadRequestError, match="does not support tools"):
        client.responses.create(model="tiny", input="hi", tools=[TOOL])


@pytest.mark.parametrize(
    ("encoding", "body", "status", "text"),
    [
        ("zstd", zstandard.compress(b'{"model":"tiny","input":"hi"}'), 200, ""),
        ("identity", b'{"model":"tiny","input":"hi"}', 200, ""),
        ("zstd", b"{}", 400, "request body: expected zstd, found other bytes"),
        ("zstd", zstandard.compress(bytes(2 << 20)), 413,
         "request body: expected at most 1048576 bytes when unpacked"),
        ("br", b"{}", 415, "Content-Encoding: expected zstd or none, found 'br'"),
    ],
)  # fmt: skip
def test_body_may_be_packed(
    server: LiveServer, encoding: str, body: bytes, status: int, text: str
) -> None:
    found, data = server.ask("POST", "/v1/responses", body, {"Content-Encoding": encoding})
    answer = json.loads(data)
    assert found == status
    assert (answer["error"] or {"message": ""})["message"] == text
