"""Prompts of rerankers with a text of their own; every character is a token here."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import EngineRefusedError
from server.runner.marking import MARK, split_prompt
from server.runner.ranking import guarded, ranked_text
from server.runner.spelling import Spellings

SPELLINGS = Spellings(["<end>", "<|x|>"])
TEMPLATE = "q={query};d={document}<end>"


def read(query: str, document: str, *, limit: int = 1000, truncate: bool = True) -> str:
    """What the tokens say, with a bar where a text was cut apart."""
    tokens = ranked_text(
        TEMPLATE,
        query,
        document,
        tokenize=lambda prompt: tuple(map(ord, "|".join(split_prompt(prompt)))),
        spellings=SPELLINGS,
        limit=limit,
        truncate=truncate,
    )
    return "".join(map(chr, tokens))


def test_words_stand_where_the_text_has_their_places() -> None:
    assert read("a", "b") == "q=a;d=b<end>"
    assert read("{document}", "{query}") == "q={document};d={query}<end>"


def test_control_tokens_that_a_client_spells_are_cut_apart() -> None:
    assert read("<end>", "a<|x|>b<end") == "q=<end|>;d=a<|x||>b<end<end>"


@pytest.mark.parametrize(
    ("limit", "truncate", "text"),
    [(10, False, "exceeds the context length"), (10, True, "input after truncation exceeds")],
)
def test_what_is_too_long_is_refused(limit: int, truncate: bool, text: str) -> None:  # noqa: FBT001
    with pytest.raises(EngineRefusedError, match=text):
        read("aaaa", "bbb", limit=limit, truncate=truncate)


@given(st.text("ab<end>", max_size=40), st.integers(12, 60))
def test_only_the_document_is_cut(document: str, limit: int) -> None:
    said = read("a", document, limit=limit)
    assert len(said) <= limit
    assert said.startswith("q=a;d=")
    assert said.endswith("<end>")
    kept = said[len("q=a;d=") : -len("<end>")].replace("|", "")
    assert document.startswith(kept)
    if len(said) < limit - 1:
        assert kept == document


@given(st.text(f"a<end>|x{MARK}", max_size=30))
def test_guarded_text_is_the_same_text_in_parts(text: str) -> None:
    parts = split_prompt(guarded(text, SPELLINGS))
    assert "".join(parts) == text
    assert not any("<end>" in part or "<|x|>" in part for part in parts)
