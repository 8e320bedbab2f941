"""Tokens, texts and prompts over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.embedding_models import CLS, SEP, write_encoder
from tests.functional.live import LiveServer, put_model

DEMO = Path(__file__).parents[1] / "demo-model" / "demo-f16.gguf"
TEXT = "The sky is blue, isn't it? \N{SNOWMAN}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("tokens")
    with LiveServer(folder, engine=True) as live:
        encoder = write_encoder(folder / "encoder.gguf")
        put_model(live.store, "encoder", folder, weights=encoder.read_bytes())
        put_model(live.store, "demo", folder, weights=DEMO.read_bytes())
        yield live


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("/tokenize", {"content": "a"}, 400, "model is required"),
        ("/tokenize", {"model": "demo"}, 400, "content: expected string, found nothing"),
        (
            "/tokenize",
            {"model": "demo", "content": ["a"]},
            400,
            "content: expected string, found array",
        ),
        (
            "/api/tokenize",
            {"model": "none", "content": "a"},
            404,
            'model "none" not found, try pulling it first',
        ),
        (
            "/detokenize",
            {"model": "demo", "tokens": [1, "a"]},
            400,
            "tokens[1]: expected token id, found 'a'",
        ),
        (
            "/detokenize",
            {"model": "demo", "tokens": 3},
            400,
            "tokens: expected array, found number",
        ),
        ("/apply-template", {"model": "demo", "messages": []}, 400, "[] is too short - 'messages'"),
    ],
)
def test_refusal_names_the_field(
    server: LiveServer, path: str, body: dict[str, Any], status: int, text: str
) -> None:
    found, answer = server.post(path, **body)
    assert (found, answer) == (status, {"error": text})


@pytest.mark.engine
def test_id_beyond_the_vocabulary_is_refused(server: LiveServer) -> None:
    status, answer = server.post("/detokenize", model="demo", tokens=[1, 3072])
    assert (status, answer["error"]) == (
        400,
        "tokens[1]: expected a token id below 3072, found 3072",
    )


@pytest.mark.engine
@pytest.mark.parametrize("prefix", ["", "/api"])
def test_text_comes_back_from_its_tokens(server: LiveServer, prefix: str) -> None:
    status, answer = server.post(f"{prefix}/tokenize", model="demo", content=TEXT)
    assert status == 200
    back = server.post(f"{prefix}/detokenize", model="demo", tokens=answer["tokens"])[1]
    assert back["content"] == TEXT
    assert ("total_duration" in back, "model" in answer) == (bool(prefix), bool(prefix))
    same = server.post(f"{prefix}/tokenize", model="demo", text=TEXT)[1]
    assert same["tokens"] == answer["tokens"]


@pytest.mark.engine
def test_pieces_put_together_are_the_text(server: LiveServer) -> None:
    answer = server.post("/tokenize", model="demo", content=TEXT, with_pieces=True)[1]
    raw = b"".join(
        item["piece"].encode() if isinstance(item["piece"], str) else bytes(item["piece"])
        for item in answer["tokens"]
    )
    assert raw.decode() == TEXT
    plain = server.post("/tokenize", model="demo", content=TEXT)[1]["tokens"]
    assert [item["id"] for item in answer["tokens"]] == plain


@pytest.mark.engine
def test_control_tokens_are_parsed_unless_it_is_not_wished(server: LiveServer) -> None:
    text = "<|im_start|>user"
    parsed = server.post("/tokenize", model="demo", content=text)[1]["tokens"]
    plain = server.post("/tokenize", model="demo", content=text, parse_special=False)[1]["tokens"]
    assert len(parsed) < len(plain)


@pytest.mark.engine
def test_special_tokens_stand_around_a_text_where_wished(server: LiveServer) -> None:
    bare = server.post("/tokenize", model="encoder", content="the sky")[1]["tokens"]
    framed = server.post("/tokenize", model="encoder", content="the sky", add_special=True)[1]
    assert framed["tokens"] == [CLS, *bare, SEP]


@pytest.mark.engine
def test_template_is_applied_without_an_answer(server: LiveServer) -> None:
    messages = [{"role": "user", "content": "hello"}]
    status, answer = server.post("/apply-template", model="demo", messages=messages)
    assert status == 200
    assert "hello<|im_end|>\n<|im_start|>assistant" in answer["prompt"]
