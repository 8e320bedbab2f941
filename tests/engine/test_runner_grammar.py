from __future__ import annotations

import json
from typing import Any

import pytest

from server.chat import Constraint
from server.errors import EngineRefusedError
from server.runner import grammar

pytestmark = pytest.mark.engine


def constraint(kind: Any, source: object = "", **fields: Any) -> Constraint:
    text = source if isinstance(source, str) else json.dumps(source)
    return Constraint(kind=kind, source=text, **fields)


class TestRefusals:
    @pytest.mark.parametrize(
        ("wanted", "words"),
        [
            ({"kind": "regex", "source": "a"}, "expected json, json_schema or gbnf"),
            ({"kind": "json", "after": ("x",)}, "expected one for the whole answer"),
            ({"kind": "gbnf", "source": "x" * 300_000}, "at most 262144 bytes"),
            ({"kind": "gbnf", "source": "root ::= " + "a |" * 600}, "at most 512 alternatives"),
            ({"kind": "json_schema", "source": "not json"}, "cannot be enforced"),
            ({"kind": "json_schema", "source": "[1]"}, "cannot be enforced"),
            ({"kind": "json_schema", "source": {"type": "colour"}}, "cannot be enforced"),
            ({"kind": "json_schema", "source": {"enum": list(range(600))}}, "alternatives"),
            ({"kind": "json_schema", "source": {"const": "x" * 70_000}}, "at most 65536 bytes"),
            ({"kind": "json_schema", "source": {"$ref": "https://a.example"}}, "start with #/"),
            ({"kind": "json_schema", "source": {"$ref": "#/nowhere"}}, "cannot be enforced"),
            (
                {"kind": "json_schema", "source": '{"items":' * 3000 + "{}" + "}" * 3000},
                "nested too deep",
            ),
            (
                {"kind": "json_schema", "source": {"type": "string", "pattern": "^((a?){9}){9}$"}},
                "a repeated group holds something optional",
            ),
        ],
    )
    def test_what_cannot_be_enforced_is_refused(self, wanted: dict[str, Any], words: str) -> None:
        with pytest.raises(EngineRefusedError, match=words):
            grammar.gbnf(constraint(**wanted))

    @pytest.mark.parametrize(
        ("pattern", "costly"),
        [
            (r"^(\d{1,3}\.){3}\d{1,3}$", False),
            (r"^[a-z]+(-[a-z]+)*$", False),
            (r"^a?b*c{0,3}$", False),
            (r"^\(a?\)*$", False),
            (r"^(a?)+$", True),
            (r"^((a*)b)*$", True),
            (r"^(?:a{0,2}){5}$", True),
        ],
    )
    def test_pattern_that_explodes_is_told_from_one_that_does_not(
        self, pattern: str, *, costly: bool
    ) -> None:
        assert grammar.repeats_what_may_be_empty(pattern) is costly


class TestSchemas:
    def test_schema_becomes_a_grammar_with_a_root(self) -> None:
        schema = {
            "type": "object",
            "properties": {"name": {"type": "string", "pattern": "^[a-z]{1,8}$"}},
            "required": ["name"],
        }

        assert "root ::=" in grammar.gbnf(constraint("json_schema", schema))

    def test_json_is_any_object(self) -> None:
        assert grammar.gbnf(constraint("json")) == grammar.JSON
