"""Acceptance checks: written, read back, judged."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundler.format.acceptance import (
    BUILT_IN,
    BUILT_IN_VECTORS,
    Check,
    Wanted,
    encode_checks,
    parse_checks,
    read_wanted,
)
from bundler.format.errors import AcceptanceError, BundleError
from hwprobe.trial import Outcome

SCHEMA = '{"type":"object","properties":{"a":{"type":"integer"}}}'
NLL = Check(id="n", kind="teacher_forced", text="a\nb", mean_nll=2.0134, tolerance=0.05)
GREEDY = Check(id="g", kind="greedy_prefix", text="<|x|>", tokens=(5, 6, 7), at_least=2)
JSON = Check(id="j", kind="json_schema", text="c", schema=SCHEMA, max_tokens=9)
VECTOR = Check(id="v", kind="embedding_cosine", text="d", vector=(0.5, -0.5), cosine=0.99)
EVERY = (NLL, GREEDY, JSON, VECTOR)

Edit = Callable[[dict[str, Any]], object]


def test_what_is_written_is_read_back() -> None:
    assert parse_checks(encode_checks(EVERY)) == EVERY


@given(
    text=st.text(min_size=1, max_size=50).filter(lambda text: text.isprintable()),
    nll=st.floats(0, 100),
    tokens=st.lists(st.integers(0, 1 << 31), min_size=1, max_size=20),
)
def test_every_check_survives_its_form(text: str, nll: float, tokens: list[int]) -> None:
    one = Check(id="a", kind="teacher_forced", text=text, mean_nll=round(nll, 6), tolerance=0.5)
    two = Check(id="b", kind="greedy_prefix", text=text, tokens=tuple(tokens), at_least=1)
    assert parse_checks(encode_checks((one, two))) == (one, two)


@pytest.mark.parametrize(
    "edit",
    [
        lambda c: c.update(v=2),
        lambda c: c.update(more=1),
        lambda c: c["checks"].clear(),
        lambda c: c["checks"][1].update(id="n"),
        lambda c: c["checks"][0].update(kind="refusal"),
        lambda c: c["checks"][0].update(text=""),
        lambda c: c["checks"][0].update(text="x" * 40_000),
        lambda c: c["checks"][0].update(mean_nll="nan"),
        lambda c: c["checks"][0].update(mean_nll=2),
        lambda c: c["checks"][0].update(tokens=[1]),
        lambda c: c["checks"][1].update(at_least=4),
        lambda c: c["checks"][1].update(at_least=0),
        lambda c: c["checks"][1].update(tokens=[-1]),
        lambda c: c["checks"][2].update(max_tokens=0),
        lambda c: c["checks"][2].update(schema="[]"),
        lambda c: c["checks"][3].update(vector="AAA"),
        lambda c: c["checks"][3].update(vector="AACAfw=="),
        lambda c: c["checks"][3].update(vector="AAAA"),
    ],
)
def test_what_is_no_check_is_refused(edit: Edit) -> None:
    members = json.loads(encode_checks(EVERY))
    edit(members)
    with pytest.raises(BundleError):
        parse_checks(json.dumps(members).encode())


def test_likelihood_may_differ_by_the_tolerance() -> None:
    assert NLL.judge(Outcome(mean_nll=2.06)).passed
    assert not NLL.judge(Outcome(mean_nll=2.07)).passed
    assert not NLL.judge(Outcome(mean_nll=1.90)).passed


def test_so_many_tokens_must_come_again() -> None:
    assert GREEDY.judge(Outcome(tokens=(5, 6, 9))).passed
    assert GREEDY.judge(Outcome(tokens=(5, 6))).passed
    refused = GREEDY.judge(Outcome(tokens=(5, 9, 7)))
    assert (refused.passed, refused.found) == (False, "the first 1")
    assert not GREEDY.judge(Outcome(tokens=())).passed


def test_an_answer_must_fit_its_schema() -> None:
    assert JSON.judge(Outcome()).passed
    assert not JSON.judge(Outcome(fits_schema="$.a: type")).passed


def test_a_vector_must_point_the_same_way() -> None:
    assert VECTOR.judge(Outcome(vector=(0.7, -0.7))).passed
    assert not VECTOR.judge(Outcome(vector=(0.7, 0.7))).passed
    assert not VECTOR.judge(Outcome(vector=(0.0, 0.0))).passed
    assert VECTOR.judge(Outcome(vector=(1.0,))).found == "a vector of 1 numbers"


def test_only_tokens_that_were_clear_are_asked_for() -> None:
    wanted = Wanted(id="g", kind="greedy_prefix", text="x")
    check = wanted.check(Outcome(tokens=(1, 2, 3), margins=(3.0, 0.4, 9.0)))
    assert check is not None
    assert (check.tokens, check.at_least) == ((1, 2, 3), 1)
    assert wanted.check(Outcome(tokens=(1,), margins=(0.1,))) is None
    assert wanted.check(Outcome()) is None


def test_what_is_measured_passes_where_it_was_measured() -> None:
    outcomes = {
        "teacher_forced": Outcome(mean_nll=math.pi),
        "greedy_prefix": Outcome(tokens=(4, 5), margins=(2.0, 2.0)),
        "json_schema": Outcome(text="{}"),
        "embedding_cosine": Outcome(vector=(0.6, 0.8)),
    }
    asked = (
        *BUILT_IN,
        *BUILT_IN_VECTORS,
        Wanted(id="j", kind="json_schema", text="x", schema="{}"),
    )
    for wanted in asked:
        check = wanted.check(outcomes[wanted.kind])
        assert check is not None
        assert check.judge(outcomes[wanted.kind]).passed
        assert check.trial() == (
            check.trial() if wanted.kind == "greedy_prefix" else wanted.trial()
        )
        assert parse_checks(encode_checks((check,))) == (check,)


def test_a_packer_s_own_list_is_read() -> None:
    listed = {
        "checks": [
            {"id": "a", "kind": "teacher_forced", "text": "x", "tol": "0.2"},
            {"id": "b", "kind": "greedy_prefix", "text": "x", "max_tokens": 4},
            {"id": "c", "kind": "json_schema", "text": "x", "schema": "{}"},
            {"id": "d", "kind": "embedding_cosine", "text": "x"},
        ]
    }
    found = read_wanted(json.dumps(listed).encode())
    assert [one.max_tokens for one in found] == [16, 4, 16, 16]
    assert found[0].tolerance == 0.2


@pytest.mark.parametrize(
    "edit",
    [
        lambda c: c.update(checks=[]),
        lambda c: c["checks"][0].update(tol="x"),
        lambda c: c["checks"][0].update(schema="{}"),
        lambda c: c["checks"].append(c["checks"][0]),
    ],
)
def test_a_list_that_is_none_is_refused(edit: Edit) -> None:
    members = {"checks": [{"id": "a", "kind": "teacher_forced", "text": "x"}]}
    edit(members)
    with pytest.raises(AcceptanceError):
        read_wanted(json.dumps(members).encode())
