"""Texts to vectors in a real runner: every way to pool, packing, and beside answers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hwprobe.settings import EngineSettings
from server.runner import protocol
from tests.engine.runner_driver import Driver, settings
from tests.fakes.embedding_models import CLS, SEP, write_encoder
from tests.fakes.engine_child import ask
from tests.fakes.random_models import write_random

pytestmark = pytest.mark.engine

POOLED = EngineSettings(
    num_ctx=256, num_batch=256, num_ubatch=256, spare_sequences=15, pooled=True, threads=1
)
TEXTS = ("the sky is blue", "grass", "the cat and the dog", "hello world, hello", "x")
ENDLESS: dict[str, Any] = {"logit_bias": tuple((token, -100.0) for token in (3059, 3061, 3065))}
"""Forbids the demo model's tokens that end an answer."""


def embed(driver: Driver, request: int, *texts: str, **fields: Any) -> protocol.Row:
    """The rows of one job as one."""
    driver.send(protocol.Embed(id=request, texts=texts, **fields))
    driver.until(lambda: driver.is_over(request))
    return joined(driver.rows[request])


def joined(rows: Sequence[protocol.Row]) -> protocol.Row:
    last = rows[-1]
    fields = {name: getattr(last, name) for name in protocol.Row.__slots__}
    fields["vectors"] = tuple(vector for row in rows for vector in row.vectors)
    return protocol.Row(**fields)


def numbers(row: protocol.Row) -> list[list[float]]:
    assert row.fault is None, row.fault
    return [json.loads(vector) for vector in row.vectors]


def near(left: Sequence[float], right: Sequence[float]) -> bool:
    return all(math.isclose(a, b, abs_tol=2e-5) for a, b in zip(left, right, strict=True))


class TestEncoders:
    @pytest.mark.parametrize(
        ("architecture", "pooling"),
        [
            ("bert", "mean"),
            ("bert", "cls"),
            ("bert", "last"),
            ("bert", "none"),
            ("bert", None),
            ("nomic-bert", "mean"),
        ],
    )
    def test_text_has_the_same_vector_alone_and_among_others(
        self, architecture: str, pooling: str | None, tmp_path: Path
    ) -> None:
        path = write_encoder(tmp_path / "e.gguf", architecture=architecture, pooling=pooling)
        with Driver(POOLED, model=path) as driver:
            together = numbers(embed(driver, 1, *TEXTS))
            alone = [numbers(embed(driver, 2 + i, text))[0] for i, text in enumerate(TEXTS)]
            steps = len([step for step in driver.steps if any(r.id == 1 for r in step.rows)])

        assert steps == 1
        assert [len(vector) for vector in together] == [32] * len(TEXTS)
        assert all(map(near, together, alone))
        assert not any(near(together[0], other) for other in together[1:])
        assert all(math.isclose(math.hypot(*vector), 1, abs_tol=1e-5) for vector in together)

    def test_pooling_none_is_the_last_token_s_vector(self, tmp_path: Path) -> None:
        vectors = []
        for pooling in ("none", "last"):
            with Driver(POOLED, model=write_encoder(tmp_path / pooling, pooling=pooling)) as driver:
                vectors.append(numbers(embed(driver, 1, *TEXTS)))
        assert all(map(near, *vectors))

    def test_long_text_is_cut_between_its_frame_or_refused(self, tmp_path: Path) -> None:
        path = write_encoder(tmp_path / "e.gguf", context=40)
        with Driver(POOLED, model=path) as driver:
            refused = embed(driver, 1, "sky " * 50, truncate=False)
            cut = embed(driver, 2, "sky " * 50)
            short = embed(driver, 3, "sky " * 38)
            too_much = embed(driver, 4, "sky", "sky " * 39, truncate=False)

        assert refused.fault == "the input length exceeds the context length"
        assert refused.refused
        assert too_much.fault == refused.fault
        assert cut.prompt_tokens == short.prompt_tokens == 40
        assert near(numbers(cut)[0], numbers(short)[0])

    def test_tokens_are_taken_as_they_are(self, tmp_path: Path) -> None:
        with Driver(POOLED, model=write_encoder(tmp_path / "e.gguf")) as driver:
            ids = driver.tokenize("the sky", parse_special=True, add_bos=False)
            text = numbers(embed(driver, 101, "the sky"))[0]
            framed = numbers(embed(driver, 102, tokens=((CLS, *ids, SEP),)))[0]
            unknown = embed(driver, 103, tokens=((10**6,),))
            empty = embed(driver, 104, tokens=((),))

        assert near(text, framed)
        assert unknown.fault is not None
        assert unknown.fault.startswith("token: expected 0 to")
        assert empty.fault == "input content cannot be empty"

    def test_number_that_is_none_is_a_fault_of_that_request_alone(self, tmp_path: Path) -> None:
        path = write_encoder(tmp_path / "e.gguf")
        data = bytearray(path.read_bytes())
        bad = b"\x00\x00\xc0\x7f" * 32  # NaN
        # The weights of the last norm are the last row of ones.
        at = data.rindex(b"\x00\x00\x80\x3f" * 32)
        data[at : at + len(bad)] = bad
        path.write_bytes(data)
        with Driver(POOLED, model=path) as driver:
            row = embed(driver, 1, "sky")
        assert row.fault == "embedding contains NaN or Inf values"
        assert row.refused

    def test_encoder_generates_nothing(self, tmp_path: Path) -> None:
        with Driver(POOLED, model=write_encoder(tmp_path / "e.gguf")) as driver:
            row = driver.generate("hello")
        assert row.fault == "this model generates no text"
        assert row.refused

    def test_cancelled_job_leaves_the_others_whole(self, tmp_path: Path) -> None:
        with Driver(POOLED, model=write_encoder(tmp_path / "e.gguf")) as driver:
            many = tuple(f"hello {n}" for n in range(3000))
            driver.send(
                protocol.Embed(id=1, texts=many),
                protocol.Embed(id=2, texts=TEXTS),
                protocol.Cancel(id=1),
            )
            driver.until(lambda: driver.is_over(1) and driver.is_over(2))
            first, second = joined(driver.rows[1]), joined(driver.rows[2])
        assert first.done == "cancelled"
        assert len(first.vectors) < 3000
        assert len(second.vectors) == len(TEXTS)

    def test_vocabulary_without_frame_is_refused_at_load(self, tmp_path: Path) -> None:
        path = write_encoder(
            tmp_path / "e.gguf", keys={"tokenizer.ggml.seperator_token_id": 2**32 - 1}
        )
        with Driver(POOLED, model=path) as driver:
            assert driver.failed is not None
            assert "names no token to frame texts with" in driver.failed.message


class TestRerankers:
    def test_documents_get_scores_that_depend_on_the_query(self, tmp_path: Path) -> None:
        path = write_encoder(tmp_path / "r.gguf", pooling="rank", classes=1)
        with Driver(POOLED, model=path) as driver:
            one = numbers(embed(driver, 1, *TEXTS, query="the sky", normalize=False))
            other = numbers(embed(driver, 2, *TEXTS, query="a cat", normalize=False))
            again = numbers(embed(driver, 3, TEXTS[2], query="the sky", normalize=False))
            none = embed(driver, 4, *TEXTS)
        assert [len(scores) for scores in one] == [1] * len(TEXTS)
        assert not near([score for (score,) in one], [score for (score,) in other])
        assert near(again[0], one[2])
        assert none.fault == "this model ranks documents and makes no embeddings"

    def test_model_that_does_not_rank_refuses_a_query(self, tmp_path: Path) -> None:
        with Driver(POOLED, model=write_encoder(tmp_path / "e.gguf")) as driver:
            row = embed(driver, 1, "a", query="b")
        assert row.fault == "this model is no reranker"
        assert row.refused


YES, NO = 1500, 1501
JUDGE = "Judge.\nQuery: {query}\nDocument: {document}\nAnswer:"
RANKING: dict[str, Any] = {
    "qwen3.pooling_type": 4,
    "qwen3.classifier.output_labels": ["yes", "no"],
    "tokenizer.chat_template.rerank": JUDGE,
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of causal models, without a way to pool."""
    return write_random("ranking", tmp_path_factory.mktemp("plain") / "p.gguf")


class TestCausalModels:
    """Decoders that embed or rank, as Qwen3-Embedding and Qwen3-Reranker do."""

    def test_score_is_how_likely_the_answer_yes_is(self, plain: Path, tmp_path: Path) -> None:
        path = write_random("ranking", tmp_path / "r.gguf", metadata=RANKING, judges=(YES, NO))
        query = "is the sky {document} blue?"
        with Driver(POOLED, model=path) as driver:
            row = embed(driver, 1, *TEXTS, query=query, normalize=False)
            scores = [score[0] for score in numbers(row)]
        texts = [f"Judge.\nQuery: {query}\nDocument: {text}\nAnswer:" for text in TEXTS]
        ids = ask(plain, [{"tokenize": text} for text in texts])
        for score, logits in zip(scores, ask(plain, [{"logits": one} for one in ids]), strict=True):
            yes, no = (math.exp(logits[-1][token]) for token in (YES, NO))
            assert score == pytest.approx(yes / (yes + no), abs=1e-3)
        assert len({round(score, 4) for score in scores}) == len(TEXTS)
        assert row.prompt_tokens == sum(map(len, ids))

    def test_long_documents_lose_their_end_and_not_the_question(self, tmp_path: Path) -> None:
        path = write_random("ranking", tmp_path / "r.gguf", metadata=RANKING, judges=(YES, NO))
        long = "blue " * 2000
        with Driver(POOLED, model=path) as driver:
            row = embed(driver, 1, long, query="sky", normalize=False)
            assert row.fault is None
            assert 240 < row.prompt_tokens <= 256
            whole = embed(driver, 2, long, query="sky", truncate=False)
            assert whole.fault == "the input length exceeds the context length"
            endless = embed(driver, 3, "x", query=long)
            assert endless.fault == "input after truncation exceeds maximum context length"

    @pytest.mark.parametrize(("pooling", "number"), [("mean", 1), ("last", 3)])
    def test_vectors_are_those_of_their_tokens_pooled(
        self, plain: Path, tmp_path: Path, pooling: str, number: int
    ) -> None:
        keys: Any = {"qwen3.pooling_type": number}
        path = write_random("ranking", tmp_path / "e.gguf", metadata=keys)
        with Driver(POOLED, model=path) as driver:
            vectors = numbers(embed(driver, 1, *TEXTS, normalize=False))
        ids = ask(plain, [{"tokenize": text} for text in TEXTS])
        hidden = ask(plain, [{"hidden": one} for one in ids])
        for vector, rows in zip(vectors, hidden, strict=True):
            columns = zip(*(rows if pooling == "mean" else rows[-1:]), strict=True)
            expected = [sum(column) / len(column) for column in columns]
            assert vector == pytest.approx(expected, abs=0.02)


class TestGeneratingModel:
    def test_texts_have_vectors_of_their_last_token_whatever_runs_beside(self) -> None:
        with Driver(settings(slots=3)) as driver:
            quiet = numbers(embed(driver, 101, *TEXTS))
            prompt = "Tell me about the sky."
            alone = driver.generate(prompt, num_predict=60, **ENDLESS).text
            answer = driver.start(prompt, num_predict=60, **ENDLESS)
            beside = numbers(embed(driver, 102, *TEXTS))
            text = driver.finish(answer).text
        assert text == alone
        assert all(len(vector) == len(quiet[0]) for vector in quiet)
        assert all(
            all(math.isclose(a, b, abs_tol=5e-3) for a, b in zip(left, right, strict=True))
            for left, right in zip(quiet, beside, strict=True)
        )
        assert not near(quiet[0], quiet[1])

    def test_long_job_does_not_stop_an_answer(self) -> None:
        """Every step of the answer carries a few texts at most."""
        with Driver(settings(slots=2)) as driver:
            driver.send(protocol.Embed(id=101, texts=tuple(f"number {n}" for n in range(400))))
            row = driver.generate("Tell me about the sky.", num_predict=20, **ENDLESS)
            assert row.completion_tokens == 20
            assert not driver.is_over(101)
            driver.send(protocol.Cancel(id=101))
            driver.until(lambda: driver.is_over(101))
            assert joined(driver.rows[101]).done == "cancelled"
            assert driver.generate("ping", num_predict=2).done == "length"

    def test_one_token_and_long_texts_are_embedded(self) -> None:
        with Driver(settings(num_ctx=256, slots=2)) as driver:
            (token,) = driver.tokenize("a", add_bos=False)[:1]
            one = embed(driver, 101, tokens=((token,),))
            long = embed(driver, 102, "sky " * 2000)
            refused = embed(driver, 103, "sky " * 2000, truncate=False)
        assert one.prompt_tokens == 1
        assert long.prompt_tokens == 255
        assert len(numbers(long)[0]) == len(numbers(one)[0])
        assert refused.fault == "the input length exceeds the context length"
