"""What Go's own text/template made of the same templates, recorded as golden files."""

from __future__ import annotations

import datetime as dt
import json
import re
from pathlib import Path
from typing import Any

import pytest

from server.errors import BadRequestError
from server.prompt.gotemplate.template import Template, TemplateError, parse

GOLDEN = Path(__file__).parents[1] / "golden" / "gotemplate"
TODAY = dt.date(2026, 8, 20)
SEMANTICS = json.loads((GOLDEN / "semantics.json").read_text(encoding="utf-8"))
DATA: dict[str, Any] = SEMANTICS["data"]


def cases(kind: str) -> list[Any]:
    return [pytest.param(c, id=c["name"]) for c in SEMANTICS["cases"] if kind in c]


@pytest.mark.parametrize("case", cases("refused"))
def test_malformed_template_is_refused_in_the_words_and_with_the_line_of_go(
    case: dict[str, str],
) -> None:
    with pytest.raises(TemplateError) as refused:
        parse(case["template"])
    assert str(refused.value) == case["refused"]
    assert refused.value.line == int(case["refused"].split(":")[2])


@pytest.mark.parametrize("case", cases("failed"))
def test_template_that_fails_in_go_fails_on_the_same_line(case: dict[str, str]) -> None:
    template = parse(case["template"])
    with pytest.raises(TemplateError) as failed:
        template.render(DATA, today=TODAY)
    assert failed.value.line == int(case["failed"].split(":")[2])


@pytest.mark.parametrize("case", cases("output"))
def test_template_renders_as_in_go(case: dict[str, str]) -> None:
    output = parse(case["template"]).render(DATA, today=TODAY)
    # Go's recorder writes one U+FFFD for a run of bytes that are no text.
    assert re.sub("\ufffd+", "\ufffd", output) == case["output"]


def test_template_error_is_the_clients_fault() -> None:
    assert issubclass(TemplateError, BadRequestError)
    with pytest.raises(TemplateError, match=r"^template: :3: unexpected EOF$") as refused:
        parse("a\n{{ if .X }}\nb")
    assert refused.value.status == 400
    assert refused.value.reason == "unexpected EOF"


def test_failure_inside_a_named_template_names_its_line() -> None:
    template = parse('{{ define "t" }}\n{{ .S.T }}\n{{ end }}\n{{ template "t" . }}')
    with pytest.raises(TemplateError) as failed:
        template.render({"S": "text"})
    assert failed.value.line == 2


def test_date_that_was_not_given_cannot_be_written() -> None:
    with pytest.raises(TemplateError, match="no date was given"):
        parse("{{ currentDate }}").render({})


def test_type_of_what_is_no_property_cannot_be_written() -> None:
    with pytest.raises(TemplateError, match="wrong type for value"):
        parse("{{ toTypeScriptType .S }}").render({"S": "text"})


@pytest.mark.parametrize("value", [b"bytes", {1, 2}, object(), parse, Path("/")])
def test_data_that_are_not_json_like_are_refused(value: object) -> None:
    with pytest.raises(TemplateError, match="expected JSON-like values"):
        parse("{{ .X }}").render({"X": value})


@pytest.mark.parametrize(
    "expression",
    [
        ".S.__class__",
        ".S.upper",
        ".L.append",
        ".L.__len__",
        ".I.real",
        ".F.hex",
        "(index .L 0).__class__.__mro__",
        "$.L.items",
    ],
)
def test_attributes_of_python_objects_are_out_of_reach(expression: str) -> None:
    with pytest.raises(TemplateError, match="can't evaluate field"):
        parse(f"{{{{ {expression} }}}}").render(DATA)


def test_keys_that_look_like_attributes_are_only_keys() -> None:
    data = {"M": {"__class__": "a key", "items": "another"}}
    assert parse("{{ .M.__class__ }} {{ .M.items }} {{ .M.keys }}").render(data) == (
        "a key another <no value>"
    )


def test_lone_surrogates_of_a_client_become_replacement_characters() -> None:
    output = parse("{{ .S }}{{ len .S }}{{ json .S }}").render({"S": "a\ud800\udc80b"})
    assert output == 'a\ufffd\ufffdb8"a\ufffd\ufffdb"'
    assert parse("x\ud800{{ 1 }}").render({}) == "x\ufffd1"


def test_integers_beyond_64_bits_become_floats() -> None:
    data = {"A": 2**70, "B": -(10**400), "C": 2**63 - 1}
    assert parse("{{ .A }} {{ .B }} {{ .C }}").render(data) == (
        "1.1805916207174113e+21 -Inf 9223372036854775807"
    )


def test_numbers_without_json_form_are_written_as_nothing() -> None:
    assert parse("[{{ json .X }}]").render({"X": [1, float("nan")]}) == "[]"


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("text", set()),
        ("{{ .Prompt }}", {"Prompt"}),
        ("{{ $.Messages }}{{ $x := 1 }}{{ $x }}", {"Messages"}),
        ("{{ range $i, $m := .Messages }}{{ $m.Role }}{{ end }}", {"Messages", "Role"}),
        ("{{ if .A }}{{ .B }}{{ else if .C }}{{ .D }}{{ else }}{{ .E }}{{ end }}", set("ABCDE")),
        ("{{ with .A.B }}{{ .C | print .D (or .E .F) }}{{ end }}", set("ABCDEF")),
        ('{{ define "t" }}{{ .A }}{{ end }}{{ template "t" .B }}', {"A", "B"}),
        ('{{ block "b" .A }}{{ .B }}{{ end }}{{ (.C).D }}', set("ABCD")),
        ('{{ "/* .No */" }}{{/* .No */}}.No', set()),
    ],
)
def test_variables_are_all_fields_that_are_mentioned(source: str, names: set[str]) -> None:
    assert parse(source).variables() == names


def test_else_if_does_not_count_as_nesting() -> None:
    arms = "".join(f"{{{{ else if eq .I {n} }}}}{n}" for n in range(1, 500))
    template = parse(f"{{{{ if eq .I 0 }}}}0{arms}{{{{ end }}}}")
    assert template.render({"I": 499}) == "499"


def test_template_can_be_rendered_again_and_does_not_remember() -> None:
    template: Template = parse("{{ $x := .X }}{{ range .L }}{{ $x = . }}{{ end }}{{ $x }}")
    assert template.render({"X": 1, "L": [2, 3]}) == "3"
    assert template.render({"X": 1, "L": []}) == "1"
