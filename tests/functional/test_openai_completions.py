"""The official ``openai`` client's legacy completions against the server on real sockets."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.functional.live import FIM, THINKING_TEMPLATE, LiveServer, put_model


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("server")
    with LiveServer(folder) as live:
        put_model(live.store, "filler", folder, header=FIM)
        put_model(live.store, "thinker", folder, template=THINKING_TEMPLATE)
        yield live


@pytest.fixture
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    address = f"http://127.0.0.1:{server.port}/v1"
    with openai.OpenAI(base_url=address, api_key="unused", max_retries=0) as one:
        yield one


def test_prompt_is_completed(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="tiny", prompt="hi", logprobs=2, max_tokens=9)
    (choice,) = whole.choices
    assert (choice.text, choice.finish_reason) == ("Hello world", "stop")
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == ["Hello ", "world"]
    assert choice.logprobs.text_offset == [0, 6]
    assert choice.logprobs.token_logprobs == [-0.5, -0.5]
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 2
    assert whole.id.startswith("cmpl-")
    cut = client.completions.create(model="tiny", prompt="hi", max_tokens=1)
    assert cut.choices[0].finish_reason == "length"


def test_completion_is_streamed(client: openai.OpenAI) -> None:
    chunks = list(
        client.completions.create(
            model="tiny",
            prompt="hi ",
            echo=True,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == "hi Hello world"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 2


def test_several_prompts_and_answers_come_in_order(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="tiny", prompt=["a", "b"], n=2, echo=True)
    assert [(one.index, one.text) for one in whole.choices] == [
        (0, "aHello world"),
        (1, "aHello world"),
        (2, "bHello world"),
        (3, "bHello world"),
    ]
    texts: dict[int, str] = {}
    for chunk in client.completions.create(model="tiny", prompt=["a"] * 20, stream=True):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
    assert texts == dict.fromkeys(range(20), "Hello world")


def test_prompt_may_be_tokens(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="tiny", prompt=[[1, 2, 3], [4]])
    assert [one.text for one in whole.choices] == ["Hello world"] * 2
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == 4
    with pytest.raises(openai.BadRequestError, match="expected token ids below 32000, found 32000"):
        client.completions.create(model="tiny", prompt=[32000])


def test_gap_is_filled(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="filler", prompt="def f(", suffix="):")
    assert whole.choices[0].text == "Hello world"
    with pytest.raises(openai.BadRequestError, match="does not support insert"):
        client.completions.create(model="tiny", prompt="def f(", suffix="):")


def test_empty_prompt_is_answered_in_its_form(server: LiveServer) -> None:
    status, whole = server.post("/v1/completions", model="tiny", prompt="")
    assert (status, whole["choices"][0]["text"]) == (200, "")
    status, data = server.ask("POST", "/v1/completions", {"model": "tiny", "stream": True})
    assert status == 200
    assert data.endswith(b"data: [DONE]\n\n")


def test_reasoning_is_not_asked_for(server: LiveServer) -> None:
    status, whole = server.post("/v1/completions", model="thinker", prompt="hi")
    assert (status, whole["choices"][0]["text"]) == (200, "Hello world")


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ({"model": "absent", "prompt": "x"}, 404, "model 'absent' not found"),
        ({"prompt": "x"}, 404, "model '' not found"),
        ({"model": "tiny:cloud", "prompt": "x"}, 403,
         "ollama cloud is disabled: remote inference is unavailable"),
        ({"model": "tiny", "prompt": "x", "temperature": "hot"}, 400,
         'option "temperature" must be of type float32'),
        ({"model": "tiny", "prompt": "x", "logit_bias": {"x": 1}}, 400,
         'option "logit_bias" must be an object of token ids and numbers'),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_refusal_is_a_status(
    server: LiveServer, body: dict[str, Any], status: int, text: str, *, stream: bool
) -> None:
    found, answer = server.post("/v1/completions", **body, stream=stream)
    assert (found, answer["error"]["message"]) == (status, text)


@pytest.mark.parametrize("n", [1, 3])
def test_crash_in_the_stream_is_told_and_terminated(tmp_path: Path, n: int) -> None:
    script = {"words": ["a "] * 9, "crash_after_steps": 3, "step_s": 0.02}
    with LiveServer(tmp_path, script=script) as live:
        body = {"model": "tiny", "prompt": "x", "stream": True, "n": n}
        status, data = live.ask("POST", "/v1/completions", body)
        assert status == 200
        *_, fault, done, _ = data.split(b"\n\n")
        assert "unexpectedly stopped" in json.loads(fault[6:])["error"]["message"]
        assert done == b"data: [DONE]"


def test_client_that_leaves_ends_all_its_answers(tmp_path: Path) -> None:
    with LiveServer(tmp_path, script={"words": ["a "] * 10000, "step_s": 0.01}) as live:
        body = json.dumps({"model": "tiny", "prompt": ["x"] * 5, "stream": True}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x.local\r\nContent-Length: {len(body)}"
        with live.raw(head.encode() + b"\r\n\r\n" + body) as sock:
            assert sock.recv(64).startswith(b"HTTP/1.1 200")
        deadline_s = time.monotonic() + 20
        while live.listener._traffic.in_flight and time.monotonic() < deadline_s:
            time.sleep(0.05)
        assert not live.listener._traffic.in_flight
        status, _ = live.post("/v1/completions", model="tiny", prompt="x", max_tokens=1)
        assert status == 200
