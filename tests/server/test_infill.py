"""Prompts around a gap: what frames them, and what goes where not all fits."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.body import read_object
from server.api.framing import json_bytes
from server.api.infill import InfillWriter, parse_infill
from server.chat import Infill, Snippet
from server.chunks import FaultChunk, FinishChunk, FinishReason, TextChunk, Usage
from server.errors import BadRequestError
from server.infill import GapTokens, gap_prompt, gap_text, gap_tokens

PRE, SUF, MID, PROJECT, FILE = 1001, 1002, 1003, 1004, 1005
PLAIN = GapTokens(prefix=PRE, suffix=SUF, middle=MID)
FILES = GapTokens(prefix=PRE, suffix=SUF, middle=MID, project=PROJECT, file=FILE)


def tokenize(text: str) -> tuple[int, ...]:
    return tuple(text.encode())


def prompt(gap: Infill, tokens: GapTokens = PLAIN, room: int = 1000) -> list[int]:
    return list(gap_prompt(gap, tokens, tokenize, opening=(7,), room=room))


def test_prefix_lead_and_suffix_stand_around_the_gap() -> None:
    gap = Infill(prefix="ab", lead="c", suffix="d")
    assert prompt(gap) == [7, PRE, *b"abc", SUF, *b"d", MID]
    assert prompt(Infill(prefix="", suffix="")) == [7, PRE, SUF, MID]
    assert gap_text(gap) == "abc"


def test_other_files_stand_before_it_behind_their_names() -> None:
    gap = Infill(prefix="a", suffix="b", others=(Snippet(text="x", name="x.py"), Snippet(text="y")))
    files = [FILE, *b"x.py\nx", FILE, *b"file\ny"]
    assert prompt(gap, FILES) == [
        7, PROJECT, *b"project\n", *files, FILE, *b"file\n", PRE, *b"a", SUF, *b"b", MID
    ]  # fmt: skip
    assert prompt(gap) == [7, *b"\n\nx.py\nx", *b"\n\nfile\ny", PRE, *b"a", SUF, *b"b", MID]
    assert gap_text(gap) == "x.py\nx\n\nfile\ny\n\na"


def test_the_first_files_go_where_not_all_fit() -> None:
    others = tuple(Snippet(text=letter * 10, name=letter) for letter in "xyz")
    found = prompt(Infill(prefix="a", suffix="b", others=others), room=30)
    assert bytes(i for i in found if i < 256).decode() == "\x07\n\nz\nzzzzzzzzzzab"


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60), st.integers(5, 60))
def test_what_is_next_to_the_gap_stays(before: int, behind: int, other: int, room: int) -> None:
    prefix, suffix = "p" * before + "P", "S" + "s" * behind
    gap = Infill(prefix=prefix, suffix=suffix, others=(Snippet(text="o" * other),))
    found = prompt(gap, room=room)
    assert len(found) <= room
    at = found.index(SUF)
    kept_before, kept_behind = found[found.index(PRE) + 1 : at], found[at + 1 : -1]
    assert tuple(kept_before) == tokenize(prefix)[len(prefix) - len(kept_before) :]
    assert tuple(kept_behind) == tokenize(suffix)[: len(kept_behind)]
    if len(found) < room:
        assert (len(kept_before), len(kept_behind)) == (len(prefix), len(suffix))
    if len(prefix) + len(suffix) > room - 4:
        assert len(kept_before) >= min(len(prefix), (room - 4) * 3 // 4)


NAMES = ["a", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|repo_name|>", "<|file_sep|>"]


@pytest.mark.parametrize(
    ("keys", "names", "expected"),
    [
        ({}, [], None),
        ({}, NAMES[:3], None),
        ({}, NAMES, GapTokens(prefix=1, suffix=2, middle=3, project=4, file=5)),
        ({"fim_pre": 9, "fim_suf": 8, "fim_mid": 7}, [], GapTokens(prefix=9, suffix=8, middle=7)),
        (
            {"prefix": 9, "suffix": 8, "middle": 7, "fim_sep": 6},
            NAMES,
            GapTokens(prefix=9, suffix=8, middle=7, project=4, file=6),
        ),
    ],
)
def test_tokens_are_known_by_keys_or_names(
    keys: dict[str, int], names: list[str], expected: GapTokens | None
) -> None:
    metadata = {f"tokenizer.ggml.{key}_token_id": value for key, value in keys.items()}
    assert gap_tokens(metadata, names) == expected


def parsed(**body: Any) -> Any:
    return parse_infill(read_object(json_bytes({"input_prefix": "a", "input_suffix": "b", **body})))


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"input_prefix": None}, "input_prefix: expected string, found null"),
        ({"input_suffix": 3}, "input_suffix: expected string, found number"),
        ({"input_extra": "x"}, "input_extra: expected array, found string"),
        ({"input_extra": [{"filename": "x"}]}, "input_extra[0].text: expected string, found"),
        ({"prompt": ["x"]}, "prompt: expected string, found array"),
        ({"logit_bias": [[1]]}, "logit_bias[0]: expected a token id and a number"),
        ({"logit_bias": [["a", 1]]}, "logit_bias[0]: expected a token id and a number"),
    ],
)
def test_body_that_is_none_is_refused(body: dict[str, Any], text: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        parsed(**body)
    assert text in str(caught.value)


def test_fields_become_options() -> None:
    found = parsed(
        prompt="c", n_predict=5, n_keep=2, top_k=3, seed=1, t_max_predict_ms=250, samplers=["x"],
        logit_bias=[[5, 1.5], [6, False]], options={"top_k": 9, "min_p": 0.5}, grammar="root ::= x",
    )  # fmt: skip
    assert found.infill == Infill(prefix="a", suffix="b", lead="c")
    assert found.lines_s == 0.25
    assert found.constraint.kind == "gbnf"
    assert found.options == {
        "num_predict": 5, "num_keep": 2, "top_k": 3, "seed": 1, "min_p": 0.5,
        "logit_bias": {"5": 1.5, "6": -1000.0},
    }  # fmt: skip


def test_only_the_fields_that_are_asked_for_are_told() -> None:
    usage = Usage(prompt_tokens=10, cached_tokens=6, completion_tokens=4, prompt_s=0.5, eval_s=2.0)
    finish = FinishChunk(reason=FinishReason.LENGTH, usage=usage)
    fields = ["stop", "timings/prompt_per_second", "timings/none", "none"]
    writer = InfillWriter("m", shown=fields)
    first, last = (b"".join(writer.write(c)) for c in (TextChunk(text="x"), finish))
    assert first == b'data: {"index":0,"content":"x","tokens":[],"stop":false}\n\n'
    assert last == b'data: {"stop":true,"timings/prompt_per_second":8.0}\n\n'
    (fault,) = writer.write(FaultChunk(message="gone"))
    assert b'"message":"gone"' in fault
