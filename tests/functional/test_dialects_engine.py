"""The demo model through each dialect, with the official clients and the real engine.

It answers, calls a tool, takes the tool's result and says JSON that fits a schema.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import ollama
import openai
import pytest

from tests.functional.test_program import put_demo, serving

WEATHER = "What is the weather in Lima?"
ASKED: list[Any] = [{"role": "user", "content": WEATHER}]
SKY: list[Any] = [{"role": "user", "content": "Why is the sky blue?"}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
}
NAME, ABOUT = "get_current_weather", "Get the weather of a city"
FUNCTION = {"name": NAME, "description": ABOUT, "parameters": PARAMETERS}
TOOLS: list[Any] = [{"type": "function", "function": FUNCTION}]
SCHEMA = {
    "type": "object",
    "properties": {"blue": {"type": "boolean"}},
    "required": ["blue"],
    "additionalProperties": False,
}
GREEDY: Any = {"temperature": 0}

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    put_demo(folder / "store")
    with serving("--port", "0", "--store", str(folder / "store")) as (_, port):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def compatible(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0) as client:
        yield client


def test_ollama(address: str) -> None:
    with ollama.Client(host=address) as client:
        options = {"temperature": 0, "num_predict": 200}
        said = client.chat(model="demo", messages=SKY, options=options, think=False)
        assert "Rayleigh" in (said.message.content or "")
        call = client.chat(model="demo", messages=ASKED, tools=TOOLS, options=options, think=False)
        assert call.message.tool_calls is not None
        (made,) = call.message.tool_calls
        assert (made.function.name, made.function.arguments) == (NAME, {"city": "Lima"})
        result = {"role": "tool", "tool_name": NAME, "content": "12 degrees"}
        after = client.chat(
            model="demo", messages=[*ASKED, call.message, result], tools=TOOLS, options=options,
            think=False,
        )  # fmt: skip
        assert after.message.content
        bound = client.chat(model="demo", messages=SKY, format=SCHEMA, options=options, think=False)
        assert set(json.loads(bound.message.content or "")) == {"blue"}


def test_openai_chat(compatible: openai.OpenAI) -> None:
    off: Any = {"reasoning_effort": "none", "temperature": 0, "model": "demo", "max_tokens": 200}
    said = compatible.chat.completions.create(messages=SKY, **off)
    assert "Rayleigh" in said.choices[0].message.content
    call = compatible.chat.completions.create(messages=ASKED, tools=TOOLS, **off).choices[0]
    assert call.finish_reason == "tool_calls"
    (made,) = call.message.tool_calls
    assert json.loads(made.function.arguments) == {"city": "Lima"}
    turns = [
        *ASKED,
        call.message.to_dict(),
        {"role": "tool", "tool_call_id": made.id, "content": "12 degrees"},
    ]
    after = compatible.chat.completions.create(messages=turns, tools=TOOLS, **off)
    assert after.choices[0].message.content
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    bound = compatible.chat.completions.create(messages=SKY, response_format=wanted, **off)
    assert set(json.loads(bound.choices[0].message.content)) == {"blue"}


def test_openai_completions(compatible: openai.OpenAI) -> None:
    texts: list[str] = [turn[0]["content"] for turn in (SKY, SKY)]
    whole = compatible.completions.create(
        model="demo", prompt=texts, temperature=0, max_tokens=60, logprobs=1
    )
    one, two = whole.choices
    assert "Rayleigh" in one.text
    assert one.text == two.text
    assert one.logprobs is not None
    assert "".join(one.logprobs.tokens or []).startswith(one.text[:20])
    with pytest.raises(openai.BadRequestError, match="logit_bias: expected tokens 0 to"):
        compatible.completions.create(model="demo", prompt="x", logit_bias={"99999999": 1})


def test_openai_responses(compatible: openai.OpenAI) -> None:
    off: Any = {"reasoning": {"effort": "none"}, "temperature": 0, "model": "demo"}
    with compatible.responses.stream(input=SKY, max_output_tokens=200, **off) as stream:
        assert "Rayleigh" in stream.get_final_response().output_text
    tools: list[Any] = [{"type": "function", **FUNCTION}]
    called = compatible.responses.create(input=ASKED, tools=tools, **off)
    (call,) = (item for item in called.output if item.type == "function_call")
    assert json.loads(call.arguments) == {"city": "Lima"}
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "12 degrees"}
    turns = [*ASKED, *(item.to_dict() for item in called.output), result]
    assert compatible.responses.create(input=turns, tools=tools, **off).output_text
    wanted: Any = {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}
    bound = compatible.responses.create(input=SKY, text=wanted, **off)
    assert set(json.loads(bound.output_text)) == {"blue"}
    thought = compatible.responses.create(
        model="demo", input=SKY, temperature=0, reasoning={"effort": "high"}
    )
    assert thought.output[0].type == "reasoning"


def test_anthropic(address: str) -> None:
    with anthropic.Anthropic(base_url=address, api_key="unused", max_retries=0) as client:
        ask: Any = {"model": "demo", "max_tokens": 200, "extra_body": GREEDY}
        with client.messages.stream(messages=SKY, **ask) as stream:
            said = stream.get_final_message()
        assert "Rayleigh" in said.content[0].text  # type: ignore[union-attr]  # a text block
        counted = client.messages.count_tokens(model="demo", messages=SKY)
        assert counted.input_tokens == sum(
            (said.usage.input_tokens, said.usage.cache_read_input_tokens or 0)
        )
        tools: list[Any] = [{"name": NAME, "description": ABOUT, "input_schema": PARAMETERS}]
        called = client.messages.create(messages=ASKED, tools=tools, **ask)
        assert called.stop_reason == "tool_use"
        (use,) = (block for block in called.content if block.type == "tool_use")
        assert use.input == {"city": "Lima"}
        result = {"type": "tool_result", "tool_use_id": use.id, "content": "12 degrees"}
        turns: list[Any] = [
            *ASKED,
            {"role": "assistant", "content": called.content},
            {"role": "user", "content": [result]},
        ]
        assert client.messages.create(messages=turns, tools=tools, **ask).content
        bound = client.messages.create(
            messages=SKY,
            output_config={"format": {"type": "json_schema", "schema": SCHEMA}},
            **ask,
        )
        assert set(json.loads(bound.content[0].text)) == {"blue"}
        thought = client.messages.create(
            messages=SKY, thinking={"type": "enabled", "budget_tokens": 1024}, **ask
        )
        assert thought.content[0].type == "thinking"
