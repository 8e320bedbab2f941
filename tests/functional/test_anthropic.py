"""The official ``anthropic`` client against the server on real sockets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest
from anthropic.types import MessageParam, ToolParam

from server.access import Keys
from tests.functional.live import THINKING_TEMPLATE, TOOLS_TEMPLATE, LiveServer, put_model

CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Lima"}}</tool_call>'
HI: list[MessageParam] = [{"role": "user", "content": "hi"}]
TOOL: ToolParam = {
    "name": "weather",
    "description": "The weather of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LiveServer]:
    with LiveServer(tmp_path) as live:
        put_model(live.store, "thinker", tmp_path, template=THINKING_TEMPLATE)
        put_model(live.store, "caller", tmp_path, template=TOOLS_TEMPLATE)
        yield live


@pytest.fixture
def client(server: LiveServer) -> Iterator[anthropic.Anthropic]:
    address = f"http://127.0.0.1:{server.port}"
    with anthropic.Anthropic(base_url=address, api_key="unused", max_retries=0) as one:
        yield one


def test_message_is_answered(client: anthropic.Anthropic) -> None:
    message = client.messages.create(model="tiny", max_tokens=64, messages=HI, system="Be kind.")
    (block,) = message.content
    assert block.type == "text"
    assert block.text == "Hello world"
    assert message.stop_reason == "end_turn"
    assert (message.model, message.role) == ("tiny", "assistant")
    assert message.usage.output_tokens == 2
    assert message.usage.input_tokens > 0


def test_message_is_cut_at_max_tokens(client: anthropic.Anthropic) -> None:
    message = client.messages.create(model="tiny", max_tokens=1, messages=HI)
    assert message.stop_reason == "max_tokens"


def test_message_is_streamed(client: anthropic.Anthropic) -> None:
    with client.messages.stream(model="tiny", max_tokens=64, messages=HI) as stream:
        assert "".join(stream.text_stream) == "Hello world"
        final = stream.get_final_message()
    assert final.stop_reason == "end_turn"
    counted = client.messages.count_tokens(model="tiny", messages=HI).input_tokens
    assert final.usage.input_tokens == counted > 0
    assert final.usage.output_tokens == 2


def test_events_have_the_official_types(client: anthropic.Anthropic) -> None:
    events = list(client.messages.create(model="tiny", max_tokens=9, messages=HI, stream=True))
    assert [event.type for event in events] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]  # the client drops `ping`


def test_tool_is_called_and_its_result_taken(
    server: LiveServer, client: anthropic.Anthropic
) -> None:
    server.say(words=["Let me see. ", CALL])
    with client.messages.stream(
        model="caller", max_tokens=64, messages=HI, tools=[TOOL], tool_choice={"type": "auto"}
    ) as stream:
        final = stream.get_final_message()
    assert final.stop_reason == "tool_use"
    text, use = final.content
    assert text.type == "text"
    assert use.type == "tool_use"
    assert (use.name, use.input) == ("weather", {"city": "Lima"})
    whole = client.messages.create(model="caller", max_tokens=64, messages=HI, tools=[TOOL])
    assert whole.content[-1].type == "tool_use"
    turns: list[MessageParam] = [
        *HI,
        {"role": "assistant", "content": final.content},
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "12 degrees"}],
        },
    ]
    after = client.messages.create(model="tiny", max_tokens=64, messages=turns)
    assert after.usage.input_tokens > whole.usage.input_tokens - 1


def begun(text: str) -> list[MessageParam]:
    """A conversation whose answer has begun."""
    return [*HI, {"role": "assistant", "content": text}]


def test_answer_goes_on_behind_its_beginning(
    server: LiveServer, client: anthropic.Anthropic
) -> None:
    server.say(num_ctx=4096)  # the prompt is said again
    plain = client.messages.create(model="tiny", max_tokens=64, messages=HI)
    (heard,) = plain.content
    message = client.messages.create(model="tiny", max_tokens=64, messages=begun("Once upon"))
    (block,) = message.content
    assert heard.type == block.type == "text"
    assert block.text == heard.text + "Once upon"
    counted = client.messages.count_tokens(model="tiny", messages=begun("Once upon"))
    assert counted.input_tokens == message.usage.input_tokens
    with client.messages.stream(model="tiny", max_tokens=64, messages=begun("Once upon")) as stream:
        assert "".join(stream.text_stream) == block.text


@pytest.mark.engine
def test_real_model_goes_on_behind_the_beginning_of_its_answer(tmp_path: Path) -> None:
    demo = Path(__file__).parents[1] / "demo-model" / "demo-f16.gguf"
    layer = (demo.parent / "ollama.template").read_text()
    with LiveServer(tmp_path, engine=True) as live:
        put_model(live.store, "demo", tmp_path, weights=demo.read_bytes())
        put_model(
            live.store, "layered", tmp_path, weights=demo.read_bytes(), texts={"template": layer}
        )
        address = f"http://127.0.0.1:{live.port}"
        asked: list[MessageParam] = [{"role": "user", "content": "Why is the sky blue?"}]
        with anthropic.Anthropic(base_url=address, api_key="unused", max_retries=0) as client:
            for model in ("demo", "layered"):

                def say(model: str, turns: list[MessageParam]) -> str:
                    wish: Any = {"temperature": 0, "thinking": {"type": "disabled"}}
                    told = client.messages.create(
                        model=model, max_tokens=60, messages=turns, extra_body=wish
                    )
                    return "".join(one.text for one in told.content if one.type == "text")

                whole = say(model, asked)
                words = whole.split(" ")
                head = " ".join(words[:3])
                rest = say(model, [*asked, {"role": "assistant", "content": head}])
                assert rest
                assert (head + rest).startswith(whole)


@pytest.mark.parametrize(
    ("messages", "more", "text"),
    [
        (begun("a "), {}, "final assistant content cannot end with trailing whitespace"),
        (begun("a")[1:], {}, "expected a user's before one that begins the answer"),
        (
            begun("a"),
            {"thinking": {"type": "enabled", "budget_tokens": 1024}},
            "expected no assistant's at the end where the model is to think first",
        ),
    ],
)
def test_beginning_that_cannot_be_gone_on_with_is_refused(
    client: anthropic.Anthropic, messages: Any, more: Any, text: str
) -> None:
    with pytest.raises(anthropic.BadRequestError, match=text) as caught:
        client.messages.create(model="thinker", max_tokens=9, messages=messages, **more)
    assert caught.value.body["error"]["type"] == "invalid_request_error"  # type: ignore[index]


@pytest.mark.parametrize(
    ("block", "text"),
    [
        ({"type": "search_result", "content": []}, "unknown content block type: search_result"),
        ({"type": "container_upload"}, "unknown content block type: container_upload"),
        ({"type": "video"}, "unknown content block type: video"),
        ({}, "unknown content block type: "),
        (
            {"type": "document", "source": {"type": "base64", "data": "JVBERi0="}},
            r"messages\[0\].content\[0\].source.type: expected text, found base64",
        ),
        (
            {"type": "document", "source": {"type": "url", "url": "https://x.test/a.pdf"}},
            r"messages\[0\].content\[0\].source.type: expected text, found url",
        ),
    ],
)
def test_blocks_that_are_not_served_are_refused_in_the_dialect(
    client: anthropic.Anthropic, block: Any, text: str
) -> None:
    turn: Any = {"role": "user", "content": [block]}
    asks: list[Any] = [
        lambda: client.messages.create(model="tiny", max_tokens=9, messages=[turn]),
        lambda: client.messages.count_tokens(model="tiny", messages=[turn]),
    ]
    for ask in asks:
        with pytest.raises(anthropic.BadRequestError, match=text) as caught:
            ask()
        body: Any = caught.value.body
        assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
        assert body["request_id"].startswith("req_")


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        ({"type": "maybe"}, "tool_choice.type: expected auto, any, tool or none, found maybe"),
        ({"type": "tool", "name": "f"}, 'tool_choice: expected the name of a tool, found "f"'),
    ],
)
def test_choice_that_makes_no_sense_is_refused(
    client: anthropic.Anthropic, choice: Any, text: str
) -> None:
    with pytest.raises(anthropic.BadRequestError, match=text):
        client.messages.create(
            model="caller", max_tokens=9, messages=HI, tools=[TOOL], tool_choice=choice
        )


@pytest.mark.parametrize(("one", "calls"), [(False, 2), (True, 1)])
def test_answer_ends_with_its_first_call_on_request(
    server: LiveServer, client: anthropic.Anthropic, *, one: bool, calls: int
) -> None:
    server.say(words=[CALL, "\n", CALL])
    asked: Any = {"model": "caller", "max_tokens": 64, "messages": HI, "tools": [TOOL]}
    asked |= {"tool_choice": {"type": "auto", "disable_parallel_tool_use": one}}
    message = client.messages.create(**asked)
    assert [block.type for block in message.content] == ["tool_use"] * calls
    assert message.stop_reason == "tool_use"
    with client.messages.stream(**asked) as stream:
        assert len(stream.get_final_message().content) == calls


def test_calls_are_text_where_none_may_be_made(
    server: LiveServer, client: anthropic.Anthropic
) -> None:
    server.say(words=[CALL])
    message = client.messages.create(
        model="caller", max_tokens=64, messages=HI, tools=[TOOL], tool_choice={"type": "none"}
    )
    assert [block.type for block in message.content] == ["text"]
    assert message.stop_reason == "end_turn"


def test_model_thinks_only_when_asked(server: LiveServer, client: anthropic.Anthropic) -> None:
    server.say(words=["<think>", "hm", "</think>", "Yes."])
    message = client.messages.create(
        model="thinker",
        max_tokens=64,
        messages=HI,
        thinking={"type": "enabled", "budget_tokens": 1024},
    )
    assert [block.type for block in message.content] == ["thinking", "text"]
    with client.messages.stream(
        model="thinker", max_tokens=64, messages=HI, thinking={"type": "adaptive"}
    ) as stream:
        blocks = stream.get_final_message().content
    assert blocks[0].type == "thinking"
    assert blocks[0].thinking == "hm"
    assert blocks[1].type == "text"
    assert blocks[1].text == "Yes."


def test_thinking_is_dropped_for_a_model_that_cannot(client: anthropic.Anthropic) -> None:
    message = client.messages.create(
        model="tiny",
        max_tokens=64,
        messages=HI,
        thinking={"type": "enabled", "budget_tokens": 1024},
    )
    assert [block.type for block in message.content] == ["text"]


def test_crash_in_the_stream_is_an_error(server: LiveServer, client: anthropic.Anthropic) -> None:
    server.say(words=["a ", "b "], crash_after_steps=2)
    stream = client.messages.create(model="tiny", max_tokens=9, messages=HI, stream=True)
    with pytest.raises(anthropic.APIError, match="unexpectedly stopped"):
        list(stream)


@pytest.mark.parametrize(
    ("body", "error", "text"),
    [
        ({"model": "absent"}, anthropic.NotFoundError, "model 'absent' not found"),
        ({"model": "x:cloud"}, anthropic.PermissionDeniedError, "ollama cloud is disabled"),
        ({"model": "tiny", "max_tokens": 0}, anthropic.BadRequestError,
         "max_tokens is required and must be positive"),
        ({"model": "tiny", "messages": []}, anthropic.BadRequestError, "messages is required"),
        ({"model": "tiny", "tools": [TOOL]}, anthropic.BadRequestError, "does not support tools"),
    ],
)  # fmt: skip
def test_mistake_is_told_as_anthropic_does(
    client: anthropic.Anthropic, body: dict[str, Any], error: type[anthropic.APIError], text: str
) -> None:
    with pytest.raises(error, match=text) as caught:
        client.messages.create(**{"max_tokens": 9, "messages": HI, **body})
    answer: Any = caught.value.body
    assert answer["type"] == "error"
    assert answer["request_id"].startswith("req_")


def test_key_may_come_in_anthropics_header(tmp_path: Path) -> None:
    keys = Keys(digests=(hashlib.sha256(b"sesame").digest(),))
    with LiveServer(tmp_path, keys=keys) as live:
        body = {"model": "tiny", "max_tokens": 9, "messages": HI}
        status, answer = live.ask("POST", "/v1/messages", body, {"x-api-key": "guess"})
        assert status == 401
        assert json.loads(answer)["error"]["type"] == "authentication_error"
        for header in ({"x-api-key": "sesame"}, {"Authorization": "Bearer sesame"}):
            assert live.ask("POST", "/v1/messages", body, header)[0] == 200
