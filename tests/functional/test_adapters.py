"""Models with a LoRA adapter over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.adapters import write_adapter
from tests.functional.live import LiveServer, put_model

DEMO = Path(__file__).parents[1] / "demo-model" / "demo-f16.gguf"
PROMPT = "<|im_start|>user\nWhat colour is the sky?<|im_end|>\n<|im_start|>assistant\n"
OPTIONS = {"temperature": 0, "num_predict": 16}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("adapters")
    weights = DEMO.read_bytes()
    good = write_adapter(folder / "good.gguf", DEMO)
    wrong = write_adapter(folder / "wrong.gguf", DEMO, metadata={"general.architecture": "gemma3"})
    with LiveServer(folder, engine=True) as live:
        put_model(live.store, "demo", folder, weights=weights)
        put_model(live.store, "tuned", folder, weights=weights, adapter=good.read_bytes())
        put_model(live.store, "wrong", folder, weights=weights, adapter=wrong.read_bytes())
        yield live


def say(server: LiveServer, model: str, **fields: Any) -> str:
    body = {"model": model, "prompt": PROMPT, "raw": True, "stream": False, "options": OPTIONS}
    status, answer = server.post("/api/generate", **{**body, **fields})
    assert status == 200, answer
    text = answer["response"]
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize(
    ("model", "lora", "status", "text"),
    [
        ("demo", [{"id": 0, "scale": 1}], 400, 'option "lora": expected an adapter id of a model'),
        ("tuned", [{"id": 1, "scale": 1}], 400, 'option "lora": expected an adapter id below 1'),
        ("tuned", "x", 400, 'option "lora" must be an array of adapter ids and scales'),
        ("wrong", None, 500, "wrong:latest: adapter: expected one for llama, found one for gemma3"),
    ],
)
def test_what_does_not_go_together_is_refused_before_the_load(
    server: LiveServer, model: str, lora: Any, status: int, text: str
) -> None:
    found, answer = server.post("/api/generate", model=model, prompt="a", lora=lora)
    assert found == status
    assert answer["error"].startswith(text)
    assert all(one.name != "wrong:latest" for one in server.scheduler.loaded())


@pytest.mark.engine
def test_scale_is_set_by_the_request(server: LiveServer) -> None:
    base, tuned = say(server, "demo"), say(server, "tuned")
    assert base != tuned
    assert say(server, "tuned", lora=[{"id": 0, "scale": 0}]) == base
    assert say(server, "tuned", lora=[]) == base
    options = {**OPTIONS, "lora": [{"id": 0, "scale": 1.0}]}
    assert say(server, "tuned", options=options) == tuned
    sizes = {one.name: one.size_bytes for one in server.scheduler.loaded()}
    assert sizes["tuned:latest"] > sizes["demo:latest"]


@pytest.mark.engine
def test_openai_s_calls_take_it_too(server: LiveServer) -> None:
    body: dict[str, Any] = {
        "model": "tuned",
        "prompt": "What colour is the sky?",
        "temperature": 0,
        "max_tokens": 16,
    }
    texts = [
        server.post("/v1/completions", **body, lora=[{"id": 0, "scale": scale}])[1]
        for scale in (0, 1, 1)
    ]
    said = [answer["choices"][0]["text"] for answer in texts]
    assert said[0] != said[1]
    assert said[1] == said[2]
