"""``/infill`` over HTTP, as llama.vim asks, with scripted runners and the real engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.random_models import write_random
from tests.functional.live import LiveServer, put_model

EDITOR: dict[str, Any] = {
    "input_prefix": "def add(a, b):\n",
    "input_suffix": "\n\nprint(add(1, 2))\n",
    "input_extra": [{"filename": "x.py", "text": "X = 1\n", "time": 5}],
    "prompt": "    return",
    "n_predict": 12,
    "n_indent": 4,
    "stop": [],
    "top_k": 40,
    "top_p": 0.9,
    "stream": False,
    "samplers": ["top_k", "top_p", "infill"],
    "cache_prompt": True,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 1000,
    "response_fields": ["content", "timings/prompt_n", "timings/predicted_ms", "truncated"],
}
"""What llama.vim sends, by its source."""

PRE, SUF, MID, REPO, FILE = 5, 6, 7, 8, 9
IDS = {"fim_pre": PRE, "fim_suf": SUF, "fim_mid": MID, "fim_rep": REPO, "fim_sep": FILE}
KEYS: dict[str, Any] = {f"tokenizer.ggml.{name}_token_id": token for name, token in IDS.items()}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("infill")
    with LiveServer(folder, engine=True) as live:
        weights = write_random("plain", folder / "fills.gguf", metadata=KEYS).read_bytes()
        put_model(live.store, "fills", folder, weights=weights)
        yield live


def tokens_of(server: LiveServer, text: str) -> list[int]:
    body = {"model": "fills", "content": text, "parse_special": False}
    found: list[int] = server.post("/tokenize", **body)[1]["tokens"]
    return found


@pytest.mark.engine
def test_gap_is_filled_as_the_prompt_of_its_tokens_is_continued(server: LiveServer) -> None:
    asked = {**EDITOR, "temperature": 0}
    del asked["response_fields"]
    status, filled = server.post("/infill", **asked)
    assert status == 200, filled
    texts = ("project\n", "x.py\n", "X = 1\n", "file\n", EDITOR["input_prefix"] + EDITOR["prompt"],
             EDITOR["input_suffix"])  # fmt: skip
    project, name, other, own, before, behind = (tokens_of(server, text) for text in texts)
    prompt = [REPO, *project, FILE, *name, *other, FILE, *own, PRE, *before, SUF, *behind, MID]
    status, continued = server.post(
        "/v1/completions", model="fills", prompt=prompt, max_tokens=12, temperature=0
    )
    assert filled["content"] == continued["choices"][0]["text"]
    assert filled["content"]
    assert filled["tokens_evaluated"] == len(prompt)
    assert (filled["tokens_predicted"], filled["stop_type"], filled["stop"]) == (12, "limit", True)
    again = server.post("/infill", **asked, model="fills")[1]
    assert again["content"] == filled["content"]
    assert again["tokens_cached"] == again["timings"]["cache_n"] > 0
    events = server.ask("POST", "/infill", {**asked, "stream": True})[1].decode().split("\n\n")
    said = [json.loads(event.removeprefix("data: ")) for event in events if event]
    assert "".join(event["content"] for event in said) == filled["content"]
    assert [event["stop"] for event in said] == [*[False] * (len(said) - 1), True]


@pytest.mark.engine
def test_editor_gets_the_fields_it_asks_for(server: LiveServer) -> None:
    status, answer = server.post("/infill", **EDITOR)
    assert (status, set(answer)) == (200, set(EDITOR["response_fields"]))
    warm = {**EDITOR, "n_predict": 0, "response_fields": [""]}
    assert server.post("/infill", **warm) == (200, {})


@pytest.mark.engine
def test_texts_longer_than_the_context_are_cut(server: LiveServer) -> None:
    long: dict[str, Any] = {"input_prefix": "a b " * 9000, "input_suffix": "c d " * 9000}
    long["input_extra"] = [{"text": "e f " * 9000}]
    status, answer = server.post("/infill", **long, model="fills", n_predict=4)
    assert status == 200
    assert answer["tokens_evaluated"] + 4 == 4096


@pytest.mark.engine
def test_model_whose_tokens_are_known_by_their_names_fills_gaps(tmp_path: Path) -> None:
    demo = Path(__file__).parents[1] / "demo-model" / "demo-f16.gguf"
    with LiveServer(tmp_path, engine=True) as server:
        put_model(server.store, "demo", tmp_path, weights=demo.read_bytes())
        before, behind = "def double(x):\n    return ", "\n"
        body: dict[str, Any] = {"model": "demo", "temperature": 0, "n_predict": 20}
        answer = server.post("/infill", **body, input_prefix=before, input_suffix=behind)[1]
        prompt = f"<|fim_prefix|>{before}<|fim_suffix|>{behind}<|fim_middle|>"
        ids = server.post("/tokenize", model="demo", content=prompt)[1]["tokens"]
        assert answer["tokens_evaluated"] == len(ids)
        options = {"temperature": 0, "num_predict": 20}
        raw = server.post("/api/generate", model="demo", prompt=prompt, raw=True, stream=False,
                          options=options)[1]  # fmt: skip
        assert answer["content"] == raw["response"]


def test_refusals(tmp_path: Path) -> None:
    with LiveServer(tmp_path, script={"words": ["x"]}) as server:
        put_model(server.store, "fills", tmp_path, header=KEYS)
        status, answer = server.post("/infill", input_suffix="x")
        assert (status, answer["error"]["message"]) == (
            400, "input_prefix: expected string, found null"
        )  # fmt: skip
        status, answer = server.post("/infill", model="tiny", input_prefix="", input_suffix="")
        assert status == 400
        assert answer["error"]["message"].endswith("/tiny:latest does not support insert")
        assert server.post("/infill", model="none", input_prefix="", input_suffix="")[0] == 404
        assert server.post("/infill", input_prefix="", input_suffix="")[0] == 200
        put_model(server.store, "other", tmp_path, header=KEYS)
        status, answer = server.post("/infill", input_prefix="", input_suffix="")
        assert (status, answer["error"]["message"]) == (
            400, "model is required: 2 models here fill gaps"
        )  # fmt: skip


def test_template_with_a_suffix_fills_gaps(tmp_path: Path) -> None:
    layer = "{{ if .Suffix }}<P>{{ .Prompt }}<S>{{ .Suffix }}<M>{{ else }}{{ .Prompt }}{{ end }}"
    with LiveServer(tmp_path, script={"num_ctx": 4096}) as server:
        put_model(server.store, "old", tmp_path, texts={"template": layer})
        status, answer = server.post("/infill", input_prefix="a ", prompt="b", input_suffix=" c")
        assert (status, answer["content"]) == (200, "<P>a b<S> c<M>")


def test_answer_ends_with_its_line_once_its_time_is_over(tmp_path: Path) -> None:
    words = ["a ", "b\n", *["c "] * 400]
    with LiveServer(tmp_path, script={"words": words, "step_s": 0.01}) as server:
        put_model(server.store, "fills", tmp_path, header=KEYS)
        body: dict[str, Any] = {"model": "fills", "input_prefix": "", "input_suffix": ""}
        answer = server.post("/infill", **body, t_max_predict_ms=200)[1]
        assert answer["content"].startswith("a b\nc ")
        assert answer["tokens_predicted"] < 400
        assert answer["stop_type"] == "eos"
