"""The official clients, as their users have them, against the server on real sockets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import ollama
import openai
import pytest
import requests

from tests.fakes.gguf_writer import write_tiny_llama
from tests.functional.live import TOOLS_TEMPLATE, LiveServer, put_model

CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Lima"}}</tool_call>'
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LiveServer]:
    with LiveServer(tmp_path) as live:
        yield live


@pytest.fixture
def native(server: LiveServer) -> Iterator[ollama.Client]:
    with ollama.Client(host=f"http://127.0.0.1:{server.port}") as client:
        yield client


@pytest.fixture
def compatible(server: LiveServer) -> Iterator[openai.OpenAI]:
    address = f"http://127.0.0.1:{server.port}/v1"
    with openai.OpenAI(base_url=address, api_key="unused", max_retries=0) as client:
        yield client


def test_ollama_client_generates(native: ollama.Client) -> None:
    whole = native.generate(model="tiny", prompt="hi")
    assert whole.response == "Hello world"
    assert whole.done_reason == "stop"
    assert whole.context
    stream = native.generate(model="tiny", prompt="hi", stream=True)
    assert "".join(part.response or "" for part in stream) == "Hello world"


def test_ollama_client_chats(native: ollama.Client) -> None:
    messages = [{"role": "user", "content": "hi"}]
    assert native.chat(model="tiny", messages=messages).message.content == "Hello world"
    parts = list(native.chat(model="tiny", messages=messages, stream=True))
    assert "".join(part.message.content or "" for part in parts) == "Hello world"
    assert parts[-1].done
    assert parts[-1].eval_count == 2


def test_ollama_client_calls_tools(server: LiveServer, native: ollama.Client) -> None:
    server.say(words=[CALL])
    put_model(server.store, "caller", server.store.paths.root.parent, template=TOOLS_TEMPLATE)
    answer = native.chat(model="caller", messages=[{"role": "user", "content": "?"}], tools=[TOOL])
    assert answer.message.tool_calls is not None
    (call,) = answer.message.tool_calls
    assert (call.function.name, call.function.arguments) == ("weather", {"city": "Lima"})


def test_ollama_client_lists_shows_and_sees_what_is_loaded(native: ollama.Client) -> None:
    (listed,) = native.list().models
    assert listed.model == "tiny:latest"
    shown = native.show("tiny")
    assert shown.modelinfo is not None
    assert shown.modelinfo["general.architecture"] == "llama"
    assert shown.capabilities == ["completion"]
    assert not native.ps().models
    native.generate(model="tiny", keep_alive="5m")
    (loaded,) = native.ps().models
    assert loaded.model == "tiny:latest"
    assert loaded.size_vram == 0
    native.copy("tiny", "other")
    native.delete("other")
    with pytest.raises(ollama.ResponseError, match="model 'other' not found") as caught:
        native.generate(model="other", prompt="x")
    assert caught.value.status_code == 404


def test_ollama_client_sees_a_crash_in_the_stream(
    server: LiveServer, native: ollama.Client
) -> None:
    server.say(words=["a ", "b "], crash_after_steps=2)
    with pytest.raises(ollama.ResponseError, match="unexpectedly stopped"):
        list(native.generate(model="tiny", prompt="x", stream=True))


def test_openai_client_chats(compatible: openai.OpenAI) -> None:
    whole = compatible.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "hi"}], logprobs=True, top_logprobs=1
    )
    assert whole.choices[0].message.content == "Hello world"
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 2
    assert whole.choices[0].logprobs is not None
    assert whole.choices[0].logprobs.content is not None
    stream = compatible.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "hi"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "Hello world"
    assert chunks[-1].usage is not None
    assert chunks[-2].choices[0].finish_reason == "stop"


def test_openai_client_lists_models(compatible: openai.OpenAI) -> None:
    assert [model.id for model in compatible.models.list()] == ["tiny:latest"]
    assert compatible.models.retrieve("tiny").id == "tiny:latest"
    with pytest.raises(openai.NotFoundError, match="model 'absent' not found"):
        compatible.models.retrieve("absent")


def test_openai_client_sees_a_crash_in_the_stream(
    server: LiveServer, compatible: openai.OpenAI
) -> None:
    server.say(words=["a ", "b "], crash_after_steps=2)
    stream = compatible.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "x"}], stream=True
    )
    with pytest.raises(openai.APIError, match="unexpectedly stopped"):
        list(stream)


def test_openai_client_sees_its_mistake(compatible: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="too short - 'messages'"):
        compatible.chat.completions.create(model="tiny", messages=[])


def test_ollama_client_makes_copies_shows_and_deletes(
    native: ollama.Client, tmp_path: Path
) -> None:
    weights = write_tiny_llama(tmp_path / "weights.gguf", **{"general.name": "sent"})
    digest = native.create_blob(weights)
    assert digest == native.create_blob(weights)
    made = native.create(
        model="made",
        files={"weights.gguf": digest},
        system="Be brief.",
        template="{{ .Prompt }}",
        license=["MIT"],
        parameters={"temperature": 0.5, "stop": ["END"]},
        messages=[{"role": "user", "content": "hi"}],
    )
    assert made.status == "success"
    steps = [step.status for step in native.create(model="child", from_="made", stream=True)]
    assert steps[-1] == "success"
    shown = native.show("made")
    assert shown.license == "MIT"
    assert shown.parameters is not None
    assert "temperature" in shown.parameters
    native.copy("child", "twin")
    native.delete("child")
    names = {model.model for model in native.list().models}
    assert {"made:latest", "twin:latest"} <= names
    with pytest.raises(ollama.ResponseError, match="neither 'from' or 'files' was specified"):
        native.create(model="nothing")


def test_everyday_requests_make_models_the_old_way(server: LiveServer) -> None:
    """``curl /api/create -d '{"name", "modelfile"}'``, as guides have had it for years."""
    address = f"http://127.0.0.1:{server.port}"
    text = 'FROM tiny\nSYSTEM """You are a pirate."""\nPARAMETER temperature 1\n'
    with requests.post(
        f"{address}/api/create", json={"name": "pirate", "modelfile": text}, stream=True, timeout=60
    ) as answer:
        lines = [json.loads(line) for line in answer.iter_lines()]
    assert lines[-1] == {"status": "success"}
    shown = requests.post(f"{address}/api/show", json={"name": "pirate"}, timeout=60).json()
    assert shown["system"] == "You are a pirate."
