"""Answers checked afterwards, by the real child process."""

from __future__ import annotations

import json

import pytest

from server.chunks import Conformity
from server.conformance import check
from server.conformance.check import conformity, is_to_be_checked
from server.wishes import Constraint

UNIQUE = json.dumps(
    {"type": "object", "properties": {"tags": {"type": "array", "uniqueItems": True}}}
)


@pytest.mark.parametrize(
    ("schema", "answer", "error"),
    [
        (UNIQUE, "", "the answer is not JSON"),
        (UNIQUE, '{"tags": [1, 1', "the answer is not JSON"),
        (UNIQUE, '{"tags": NaN}', "the answer is not JSON"),
        (UNIQUE, '{"tags": [1, 1]}', "$.tags: uniqueItems"),
        ('{"not": {"type": "null"}}', "null", "$: not"),
        ('{"type": "string", "pattern": "^(?!a)"}', '"ab"', "$: pattern"),
        ('{"type": "string", "format": "ipv4"}', '"300.1.1.1"', "$: format"),
    ],
)
def test_answer_that_does_not_fit(schema: str, answer: str, error: str) -> None:
    assert conformity(schema, answer, ["x"]) == Conformity(relaxed=("x",), valid=False, error=error)


@pytest.mark.parametrize(
    ("schema", "answer"),
    [
        (UNIQUE, '{"tags": [1, 2]}'),
        ('{"$ref": "https://json-schema.org/draft/2020-12/schema"}', '{"type": "string"}'),
        ('{"format": "no-such-format"}', '"x"'),
    ],
)
def test_answer_that_fits(schema: str, answer: str) -> None:
    assert conformity(schema, answer, ()) == Conformity(relaxed=(), valid=True)


@pytest.mark.parametrize(
    ("schema", "answer"),
    [
        ('{"pattern": "^(a+)+$"}', json.dumps("a" * 40 + "b")),
        ('{"$ref": "http://127.0.0.1:9/schema.json"}', "{}"),
        ('{"pattern": "("}', '"x"'),
        ('{"$ref": "#"}', "{}"),
        ('{"items": {"not": {}}}', "[" * 100_000 + "]" * 100_000),
    ],
    ids=["exponential", "elsewhere", "malformed", "endless", "deep"],
)
def test_check_without_end_says_nothing(schema: str, answer: str) -> None:
    assert conformity(schema, answer, ["x"]).valid is None


def test_long_answers_are_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "MAX_ANSWER_BYTES", 3)
    assert conformity("{}", "true", ["x"]) == Conformity(relaxed=("x",))


def test_what_is_told_is_short() -> None:
    told = conformity("{}", "1", [str(i) * 500 for i in range(100)])
    assert len(told.relaxed) == 32
    assert all(len(name) == 100 for name in told.relaxed)


def test_only_schemas_that_may_be_relaxed_are_checked() -> None:
    assert is_to_be_checked(Constraint(kind="json_schema", source="{}"))
    assert not is_to_be_checked(Constraint(kind="json_schema", source="{}", strict=True))
    assert not is_to_be_checked(Constraint(kind="json"))
    assert not is_to_be_checked(None)
