"""Tool calls and thinking end to end: real clients, the demo model, and scripted families."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import ollama
import openai
import pytest

from tests.functional.live import LiveServer, put_model

DEMO = Path(__file__).parents[1] / "demo-model" / "demo-f16.gguf"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 30}, "days": {"type": "integer"}},
    "required": ["city"],
}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city.",
        "parameters": SCHEMA,
    },
}
TIME: Any = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "Get the time in a zone.",
        "parameters": {
            "type": "object",
            "properties": {"zone": {"enum": ["UTC", "CET"]}},
            "required": ["zone"],
            "additionalProperties": False,
        },
    },
}
ASKED: Any = [{"role": "user", "content": "What is the weather in Lima?"}]
GREETED: Any = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("tools")
    with LiveServer(
        folder, engine=True, constrain_calls=lambda name: name.model != "unbound"
    ) as live:
        put_model(live.store, "demo", folder, weights=DEMO.read_bytes())
        put_model(live.store, "unbound", folder, weights=DEMO.read_bytes())
        layer = (DEMO.parent / "ollama.template").read_text()
        put_model(
            live.store, "layered", folder, weights=DEMO.read_bytes(), texts={"template": layer}
        )
        yield live


@pytest.fixture
def native(demo: LiveServer) -> Iterator[ollama.Client]:
    with ollama.Client(host=f"http://127.0.0.1:{demo.port}") as client:
        yield client


@pytest.fixture
def compatible(demo: LiveServer) -> Iterator[openai.OpenAI]:
    address = f"http://127.0.0.1:{demo.port}/v1"
    with openai.OpenAI(base_url=address, api_key="unused", max_retries=0) as client:
        yield client


@pytest.mark.engine
@pytest.mark.parametrize("model", ["demo", "layered"])
def test_demo_model_calls_a_tool_and_takes_its_result(native: ollama.Client, model: str) -> None:
    options = {"temperature": 0, "num_predict": 100}
    first = native.chat(model=model, messages=ASKED, tools=[WEATHER], think=False, options=options)
    assert first.message.tool_calls is not None
    (call,) = first.message.tool_calls
    assert call.function.name == "get_weather"
    assert call.function.arguments["city"] == "Lima"
    told = {"role": "tool", "content": '{"weather": "sunny"}', "tool_name": "get_weather"}
    messages = [*ASKED, first.message, told]
    second = native.chat(
        model=model, messages=messages, tools=[WEATHER], think=False, options=options
    )
    assert second.message.content
    assert not second.message.tool_calls
    assert "<tool" not in second.message.content


@pytest.mark.engine
@pytest.mark.parametrize("model", ["demo", "layered"])
def test_demo_model_thinks_on_request(native: ollama.Client, model: str) -> None:
    options = {"temperature": 0, "num_predict": 200}
    messages = [{"role": "user", "content": "Why is the sky blue?"}]
    parts = list(
        native.chat(model=model, messages=messages, think=True, options=options, stream=True)
    )
    thinking = "".join(part.message.thinking or "" for part in parts)
    content = "".join(part.message.content or "" for part in parts)
    assert thinking
    assert "<think>" not in thinking + content
    off = native.chat(model=model, messages=messages, think=False, options=options)
    assert not off.message.thinking
    assert off.message.content


@pytest.mark.engine
def test_demo_model_streams_arguments_through_openai(compatible: openai.OpenAI) -> None:
    stream = compatible.chat.completions.create(
        model="demo",
        messages=ASKED,
        tools=[WEATHER],
        temperature=0,
        max_tokens=100,
        reasoning_effort="none",
        stream=True,
    )
    deltas: list[Any] = []
    reasons: list[str | None] = []
    for chunk in stream:
        deltas.extend(chunk.choices[0].delta.tool_calls or ())
        reasons.append(chunk.choices[0].finish_reason)
    first, *rest = deltas
    assert first.function is not None
    assert (first.index, first.type, first.function.name) == (0, "function", "get_weather")
    assert first.id is not None
    assert first.id.startswith("call_")
    assert first.function.arguments == ""
    assert len(rest) > 1
    assert all(delta.id is None and delta.function for delta in rest)
    text = "".join(delta.function.arguments or "" for delta in rest if delta.function)
    assert json.loads(text)["city"] == "Lima"
    assert reasons[-1] == "tool_calls"


@pytest.mark.engine
@pytest.mark.parametrize("effort", ["none", "medium"])
def test_demanded_call_comes_whatever_was_said(compatible: openai.OpenAI, effort: Any) -> None:
    """Thinking or not, at any temperature, with arguments that fit the schema."""
    named = {"type": "function", "function": {"name": "get_time"}}
    choices: list[Any] = ["required", named]
    for choice in choices:
        answer = compatible.chat.completions.create(
            model="demo",
            messages=GREETED,
            tools=[WEATHER, TIME],
            tool_choice=choice,
            parallel_tool_calls=False,
            temperature=1.5,
            seed=7,
            max_tokens=500,
            reasoning_effort=effort,
        )
        assert answer.choices[0].message.tool_calls is not None
        (call,) = answer.choices[0].message.tool_calls
        assert call.type == "function"
        arguments = json.loads(call.function.arguments)
        if call.function.name == "get_time":
            assert arguments in ({"zone": "UTC"}, {"zone": "CET"})
        else:
            assert choice == "required"
            assert isinstance(arguments["city"], str)
        assert answer.choices[0].finish_reason == "tool_calls"
        assert not answer.choices[0].message.content


CALL_TOKEN = 3068
"""``<tool_call>`` in the demo model's vocabulary."""


def pushed(model: str, **more: Any) -> dict[str, Any]:
    """A request without a demand, whose model is pushed into a call it is not inclined to."""
    asked: dict[str, Any] = {"model": model, "messages": GREETED, "tools": [TIME]}
    asked |= {"parallel_tool_calls": False, "temperature": 1.8, "seed": 3, "max_tokens": 200}
    return asked | {"reasoning_effort": "none", "logit_bias": {str(CALL_TOKEN): 100}, **more}


@pytest.mark.engine
@pytest.mark.parametrize("seed", range(3))
def test_call_that_the_model_begins_of_itself_fits_the_schema(
    demo: LiveServer, compatible: openai.OpenAI, seed: int
) -> None:
    answer = compatible.chat.completions.create(**pushed("demo", seed=seed))
    assert answer.choices[0].message.tool_calls is not None
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "get_time"
    assert json.loads(call.function.arguments) in ({"zone": "UTC"}, {"zone": "CET"})
    status, free = demo.post("/v1/chat/completions", **pushed("unbound", seed=seed))
    assert status == 200
    assert not free["choices"][0]["message"].get("tool_calls")


@pytest.mark.engine
def test_answer_without_a_call_is_the_same_where_calls_are_bound(demo: LiveServer) -> None:
    for turns in (GREETED, [{"role": "user", "content": "Why is the sky blue?"}]):
        for think in (True, False):
            body = {"messages": turns, "tools": [WEATHER, TIME], "think": think, "stream": False}
            body["options"] = {"temperature": 0.7, "seed": 5, "num_predict": 150}
            bound, free = (
                demo.post("/api/chat", model=model, **body)[1]["message"]
                for model in ("demo", "unbound")
            )
            assert bound == free


@pytest.mark.engine
def test_strict_tool_with_a_keyword_that_cannot_be_enforced_is_refused(demo: LiveServer) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    body: dict[str, Any] = {"model": "demo", "messages": GREETED, "stream": False}
    for choice in ("auto", "required"):
        for strict in (True, False):
            tool = {"name": "f", "parameters": schema, "strict": strict}
            status, answer = demo.post(
                "/v1/chat/completions",
                **body,
                tools=[{"type": "function", "function": tool}],
                tool_choice=choice,
                max_tokens=1,
            )
            assert status == (400 if strict else 200), answer
            if strict:
                assert answer["error"]["message"] == (
                    "json schema: this cannot be enforced: uniqueItems"
                )


@pytest.mark.engine
@pytest.mark.parametrize("choice", [{"type": "tool", "name": "get_time"}, {"type": "any"}])
def test_demanded_call_comes_through_anthropic(demo: LiveServer, choice: Any) -> None:
    tool: Any = {"name": "get_time", "input_schema": TIME["function"]["parameters"]}
    asked: Any = {
        "model": "demo",
        "messages": GREETED,
        "max_tokens": 300,
        "extra_body": {"temperature": 0},
    }
    asked |= {"tools": [tool], "tool_choice": {**choice, "disable_parallel_tool_use": True}}
    address = f"http://127.0.0.1:{demo.port}"
    with anthropic.Anthropic(base_url=address, api_key="unused", max_retries=0) as client:
        with client.messages.stream(**asked) as stream:
            streamed = stream.get_final_message()
        answers: list[Any] = [client.messages.create(**asked), streamed]
        for answer in answers:
            (used,) = [block for block in answer.content if block.type == "tool_use"]
            assert used.input in ({"zone": "UTC"}, {"zone": "CET"})
            assert answer.stop_reason == "tool_use"


@pytest.mark.engine
@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "get_time"}])
def test_demanded_call_comes_through_responses(compatible: openai.OpenAI, choice: Any) -> None:
    tool: Any = {"type": "function", "strict": True, **TIME["function"]}
    asked: Any = {"model": "demo", "input": "Hello", "max_output_tokens": 300, "tools": [tool]}
    asked |= {"tool_choice": choice, "parallel_tool_calls": False, "temperature": 0}
    with compatible.responses.stream(**asked) as stream:
        streamed = stream.get_final_response()
    answers: list[Any] = [compatible.responses.create(**asked), streamed]
    for answer in answers:
        (call,) = [item for item in answer.output if item.type == "function_call"]
        assert json.loads(call.arguments) in ({"zone": "UTC"}, {"zone": "CET"})
        assert answer.status == "completed"


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        ("always", "tool_choice: expected none, auto, required or an object, found always"),
        (
            {"type": "function", "function": {"name": "f"}},
            'tool_choice: expected the name of a tool, found "f"',
        ),
    ],
)
def test_choice_that_makes_no_sense_is_refused(
    compatible: openai.OpenAI, choice: Any, text: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=text):
        compatible.chat.completions.create(
            model="demo", messages=GREETED, tools=[WEATHER], tool_choice=choice
        )


def test_demand_without_tools_is_refused(compatible: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="expected tools beside it"):
        compatible.chat.completions.create(model="demo", messages=GREETED, tool_choice="required")


def test_format_of_the_output_is_shown(demo: LiveServer) -> None:
    assert demo.post("/api/show", model="demo")[1]["output_format"] == "hermes"
    assert demo.post("/api/show", model="tiny")[1]["output_format"] == "plain"


# Families that no model here writes: the template is theirs, the words are scripted.

TURNS = (
    "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}CALL{% endfor %}{% endfor %}"
)
JSON = "{{ c.function.arguments | tojson }}"
NAME = "{{ c.function.name }}"
TAGGED = (
    "<tool_call>\n<function={{ c.function.name }}>\n"
    "{% for k, v in c.function.arguments | items %}"
    "<parameter={{ k }}>\n{{ v }}\n</parameter>\n{% endfor %}</function>\n</tool_call>"
)
FAMILIES = [
    (
        "mistral",
        f"[TOOL_CALLS]{NAME}[CALL_ID]{{{{ c.id }}}}[ARGS]{JSON}",
        [
            "Sure. ",
            "[TOOL_CALLS]",
            "get_weather",
            "[CALL_ID]a1b2c3d4e[ARGS]",
            '{"city": ',
            '"Lima"}',
        ],
    ),
    (
        "llama3",
        f'{{"name": "{NAME}", "parameters": {JSON}}}',
        ['{"name": "get_weather", ', '"parameters": {"city": ', '"Lima"}}'],
    ),
    (
        "qwen-coder",
        TAGGED,
        [
            "Sure. ",
            "<tool_call>\n<function=get_weather>\n<parameter=city>\nLi",
            "ma\n</parameter>\n",
            "</function>\n</tool_call>",
        ],
    ),
    (
        "harmony",
        "<|start|> <|channel|>analysis <|message|>",
        [
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary",
            " to=functions.get_weather <|constrain|>json<|message|>",
            '{"city": ',
            '"Lima"}',
        ],
    ),
]


@pytest.mark.parametrize(("family", "call", "words"), FAMILIES, ids=[row[0] for row in FAMILIES])
def test_family_is_streamed_to_each_client(
    tmp_path: Path, family: str, call: str, words: list[str]
) -> None:
    with LiveServer(tmp_path, script={"words": words}) as live:
        put_model(live.store, "m", tmp_path, template=TURNS.replace("CALL", call))
        assert live.post("/api/show", model="m")[1]["output_format"] == family
        address = f"http://127.0.0.1:{live.port}"
        with ollama.Client(host=address) as native:
            parts = list(native.chat(model="m", messages=ASKED, tools=[WEATHER], stream=True))
        calls = [each for part in parts for each in part.message.tool_calls or ()]
        assert [each.function.arguments for each in calls] == [{"city": "Lima"}]
        text = "".join(part.message.content or "" for part in parts)
        assert text == ("Sure." if words[0] == "Sure. " else "")
        with (
            openai.OpenAI(base_url=address + "/v1", api_key="x", max_retries=0) as compatible,
            compatible.chat.completions.stream(
                model="m", messages=ASKED, tools=[WEATHER]
            ) as stream,
        ):
            fragments = [
                event.arguments_delta
                for event in stream
                if event.type == "tool_calls.function.arguments.delta"
            ]
            final = stream.get_final_completion()
        assert len([each for each in fragments if each]) > 1
        assert final.choices[0].message.tool_calls is not None
        (whole,) = final.choices[0].message.tool_calls
        assert json.loads(whole.function.arguments) == {"city": "Lima"}
        assert whole.function.name == "get_weather"
        if family == "mistral":
            assert whole.id == "a1b2c3d4e"


def test_call_that_breaks_off_is_text_and_no_error(tmp_path: Path) -> None:
    text = '<tool_call>{"name": "get_weather", "arguments": {"city": oops'
    template = TURNS.replace("CALL", f'<tool_call>{{"name": "{NAME}", "arguments": {JSON}}}')
    with LiveServer(tmp_path, script={"words": [text]}) as live:
        put_model(live.store, "m", tmp_path, template=template)
        body = {"model": "m", "messages": ASKED, "tools": [WEATHER], "stream": False}
        status, answer = live.post("/api/chat", **body)
        assert (status, answer["message"]["content"]) == (200, text)
        assert "tool_calls" not in answer["message"]
        status, answer = live.post("/v1/chat/completions", **body)
        assert answer["choices"][0]["message"]["content"] == text
        assert answer["choices"][0]["finish_reason"] == "stop"


def test_operator_overrules_the_format(tmp_path: Path) -> None:
    text = '<tool_call>{"name": "get_weather", "arguments": {}}</tool_call>'
    with LiveServer(tmp_path, script={"words": [text]}, output_format="plain") as live:
        put_model(live.store, "m", tmp_path, template=TURNS.replace("CALL", ""))
        assert live.post("/api/show", model="m")[1]["output_format"] == "plain"
        body = {"model": "m", "messages": ASKED, "tools": [WEATHER], "stream": False}
        assert live.post("/api/chat", **body)[1]["message"]["content"] == text
        status, answer = live.post("/v1/chat/completions", **body, tool_choice="required")
        assert status == 400
        assert "its output format, plain, has no calls" in answer["error"]["message"]
