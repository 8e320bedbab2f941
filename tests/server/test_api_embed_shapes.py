"""Bodies that ask for embeddings or a ranking; what needs a model is in tests/functional."""

from __future__ import annotations

import json
from typing import Any

import pytest

from server.api.body import Fields
from server.api.embed_parse import parse_embed, parse_embeddings, parse_openai, parse_rerank
from server.api.embeddings import with_vectors
from server.api.rerank import ranking
from server.errors import BadRequestError


def fields(**values: Any) -> Fields:
    return Fields(values={"model": "m", **values})


@pytest.mark.parametrize("wrong", [3, {}, True, ["a", 1], [["a"]], [None], [[1, 2]]])
def test_embed_of_anything_but_texts_is_refused(wrong: Any) -> None:
    with pytest.raises(BadRequestError, match=r"^invalid input type$"):
        parse_embed(fields(input=wrong))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"model": 3}, "model: expected string, found number"),
        ({"truncate": "no"}, "truncate: expected boolean, found string"),
        ({"dimensions": "4"}, "dimensions: expected integer, found string"),
        ({"options": []}, "options: expected object, found array"),
        ({"keep_alive": []}, "Unsupported type: '[]interface {}'"),
    ],
)
def test_embed_with_a_field_of_the_wrong_type_is_refused(values: Any, text: str) -> None:
    with pytest.raises(BadRequestError) as refused:
        parse_embed(fields(input="x", **values))
    assert str(refused.value) == text


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        (None, ()),
        ("", ()),
        ([], ()),
        ("a", ("a",)),
        (["a", "b"], ("a", "b")),
        ([""], ("",)),
    ],
)
def test_embed_takes_a_text_or_a_list(value: Any, texts: tuple[str, ...]) -> None:
    assert parse_embed(fields(input=value)).texts == texts


def test_embed_has_ollama_s_defaults() -> None:
    request = parse_embed(fields(input="a"))
    assert (request.truncate, request.dimensions, request.normalize) == (True, 0, True)
    assert request.form == "float32"
    assert request.keep_alive_s is None


def test_deprecated_call_takes_one_prompt_and_leaves_scaling_to_the_model() -> None:
    assert parse_embeddings(fields()).texts == ()
    request = parse_embeddings(fields(prompt="a", keep_alive="5m"))
    assert (request.texts, request.normalize, request.form) == (("a",), None, "float64")
    assert request.keep_alive_s == 300
    with pytest.raises(BadRequestError, match="prompt: expected string"):
        parse_embeddings(fields(prompt=["a"]))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({}, "invalid input"),
        ({"input": None}, "invalid input"),
        ({"input": []}, "invalid input"),
        ({"input": 3}, "invalid input type"),
        ({"input": {"a": 1}}, "invalid input type"),
        ({"input": ["a", 1]}, "invalid input type"),
        ({"input": [1, "a"]}, "invalid input type"),
        ({"input": [1.5]}, "invalid input type"),
        ({"input": [[1], 2]}, "invalid input type"),
        ({"input": [True]}, "invalid input type"),
        (
            {"input": "a", "encoding_format": "int8"},
            "Invalid value for 'encoding_format' = int8. Supported values: ['float', 'base64'].",
        ),
        ({"input": "a", "dimensions": []}, "dimensions: expected integer, found array"),
    ],
)
def test_openai_refuses(values: Any, text: str) -> None:
    with pytest.raises(BadRequestError) as refused:
        parse_openai(fields(**values))
    assert str(refused.value) == text


@pytest.mark.parametrize(
    ("value", "texts", "tokens"),
    [
        ("", ("",), ()),
        ("a", ("a",), ()),
        (["a", ""], ("a", ""), ()),
        ([1, 2], (), ((1, 2),)),
        ([[1, 2], [3]], (), ((1, 2), (3,))),
    ],
)
def test_openai_takes_texts_and_tokens(value: Any, texts: Any, tokens: Any) -> None:
    request = parse_openai(fields(input=value, user="me", dimensions=4))
    assert (request.texts, request.tokens, request.dimensions) == (texts, tokens, 4)


@pytest.mark.parametrize(
    ("wanted", "form"), [(None, "float32"), ("float", "float32"), ("base64", "base64")]
)
def test_openai_s_formats(wanted: str | None, form: str) -> None:
    assert parse_openai(fields(input="a", encoding_format=wanted)).form == form


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"documents": ["a"]}, "query: expected string, found nothing"),
        ({"query": 1, "documents": ["a"]}, "query: expected string, found number"),
        ({"query": "q"}, "documents: expected at least one, found none"),
        ({"query": "q", "documents": "a"}, "documents: expected array, found string"),
        ({"query": "q", "documents": [1]}, "documents[0]: expected string, found number"),
        ({"query": "q", "documents": [{}]}, "documents[0].text: expected string, found nothing"),
        ({"query": "q", "documents": ["a"], "top_n": 0}, "top_n: expected at least 1, found 0"),
        (
            {"query": "q", "documents": ["a"], "return_documents": 1},
            "return_documents: expected boolean, found number",
        ),
    ],
)
def test_rerank_refuses(values: Any, text: str) -> None:
    with pytest.raises(BadRequestError) as refused:
        parse_rerank(fields(**values))
    assert str(refused.value) == text


def test_rerank_takes_texts_and_objects_with_a_text() -> None:
    request, most, with_texts = parse_rerank(fields(query="q", documents=["a", {"text": "b"}]))
    assert (request.query, request.documents) == ("q", ("a", "b"))
    assert (most, with_texts, request.truncate) == (2, False, True)
    assert parse_rerank(fields(query="q", documents=["a"], top_n=7))[1] == 7


def test_ranking_is_by_score_and_keeps_the_order_of_equals() -> None:
    assert ranking((0.1, 0.9, 0.1), most=9, texts=()) == [
        {"index": 1, "relevance_score": 0.9},
        {"index": 0, "relevance_score": 0.1},
        {"index": 2, "relevance_score": 0.1},
    ]
    assert ranking((0.1, 0.9), most=1, texts=("a", "b")) == [
        {"index": 1, "relevance_score": 0.9, "document": {"text": "b"}}
    ]


def test_written_vectors_stand_between_other_fields() -> None:
    whole = with_vectors({"model": "m"}, "embeddings", ["[1]", "[2.5]"], {"total_duration": 3})
    assert json.loads(whole) == {"model": "m", "embeddings": [[1], [2.5]], "total_duration": 3}
    assert with_vectors({"model": "m"}, "embeddings", [], {}) == b'{"model":"m","embeddings":[]}'
