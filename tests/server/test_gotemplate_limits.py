"""No template runs for ever, fills the memory, or breaks the interpreter."""

from __future__ import annotations

import datetime as dt
import json
import string
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.prompt.gotemplate.functions import NAMES
from server.prompt.gotemplate.json import GO, MODEL, plain_json
from server.prompt.gotemplate.literals import quote, unquote
from server.prompt.gotemplate.template import Limits, TemplateError, parse

SMALL = Limits(steps=2_000, chars=5_000, depth=20)
TODAY = dt.date(2026, 8, 20)


@pytest.mark.parametrize(
    "source",
    [
        "{{ range 1000000000 }}{{ end }}",
        "{{ range 1000000000 }}{{ continue }}{{ end }}",
        "{{ range .W }}{{ range 9999 }}{{ range 9999 }}{{ end }}{{ end }}{{ end }}",
        '{{ $x := "aaaaaaaa" }}{{ range 99999 }}{{ $y := eq $x "b" }}{{ end }}',
        "{{ range 9999999 }}{{ $x := 1 }}{{ end }}",
        '{{ define "t" }}{{ range 99999999 }}{{ end }}{{ end }}{{ template "t" }}',
    ],
)
def test_endless_template_runs_out_of_steps(source: str) -> None:
    with pytest.raises(TemplateError, match="took more than 2000 steps"):
        parse(source).render({"W": [1, 2, 3]}, limits=SMALL)


@pytest.mark.parametrize(
    "source",
    [
        "{{ range 999 }}{{ $.S }}{{ end }}",
        '{{ printf "%9999d" 1 }}',
        '{{ printf "%.9999f" 1.5 }}',
        '{{ printf "%*s" 9999 "x" }}',
        '{{ len (printf "%9999d" 1) }}',
        '{{ $x := "x" }}{{ range 99 }}{{ $x = printf "%s%s" $x $x }}{{ end }}',
        '{{ $x := "x" }}{{ range 99 }}{{ $x = print $x $x }}{{ end }}',
        '{{ $x := "<" }}{{ range 99 }}{{ $x = html $x $x }}{{ end }}',
        '{{ $x := "<" }}{{ range 99 }}{{ $x = js $x $x }}{{ end }}',
        '{{ $x := "<" }}{{ range 99 }}{{ $x = urlquery $x $x }}{{ end }}',
        '{{ $x := "<" }}{{ range 99 }}{{ $x = json (print $x $x) }}{{ end }}',
    ],
)
def test_growing_text_runs_out_of_characters(source: str) -> None:
    with pytest.raises(TemplateError, match="made more than 5000 characters"):
        parse(source).render({"S": "0123456789"}, limits=Limits(chars=5_000))


def test_template_that_calls_itself_is_stopped() -> None:
    template = parse('{{ define "t" }}{{ template "t" }}{{ end }}{{ template "t" }}')
    with pytest.raises(TemplateError, match="exceeded maximum template depth"):
        template.render({})


@pytest.mark.parametrize(
    "source",
    [
        "{{ if 1 }}" * 60 + "{{ end }}" * 60,
        "{{ range 1 }}" * 10_000,
        "{{ " + "(" * 60 + "1" + ")" * 60 + " }}",
        "{{ " + "(" * 100_000,
        '{{ if ((((1)))) }}{{ block "b" 1 }}' * 30,
    ],
)
def test_source_that_nests_too_deep_is_refused(source: str) -> None:
    with pytest.raises(TemplateError, match="depth exceeded"):
        parse(source)


def test_source_that_is_too_long_is_refused() -> None:
    with pytest.raises(TemplateError, match="expected at most 262144 characters"):
        parse("x" * 262_145)


@pytest.mark.parametrize("literal", ["1" * 5_000, "1_" * 5_000 + "1", "0x" + "f" * 5_000])
def test_endless_number_is_refused_in_a_short_message(literal: str) -> None:
    with pytest.raises(TemplateError, match="illegal number syntax") as refused:
        parse(f"{{{{ {literal} }}}}")
    assert len(str(refused.value)) < 600


def test_text_too_long_to_be_looked_at_one_by_one_is_refused() -> None:
    doubled = '{{ $x := "é" }}{{ range 20 }}{{ $x = print $x $x }}{{ end }}'
    for function in ("js", "html", "urlquery", 'printf "%q"', 'printf "%x"'):
        source = f"{doubled}{{{{ range 99 }}}}{{{{ $y := {function} $x }}}}{{{{ end }}}}"
        with pytest.raises(TemplateError, match="took more than 1000000 steps"):
            parse(source).render({})


def test_data_that_nest_too_deep_are_refused() -> None:
    deep: list[Any] = []
    for _ in range(500):
        deep = [deep]
    with pytest.raises(TemplateError, match="expected at most 100 levels"):
        parse("{{ .X }}").render({"X": deep})


def test_deepest_nesting_that_is_allowed_runs() -> None:
    source = "{{ with 1 }}" * 49 + "{{ . }}" + "{{ end }}" * 49
    assert parse(source).render({}) == "1"
    deep: list[Any] = []
    for _ in range(95):
        deep = [deep]
    assert parse("{{ json .X }}").render({"X": deep}) == "[" * 96 + "]" * 96


def test_many_variables_are_looked_up_within_the_budget() -> None:
    source = "{{ $x := 1 }}" + "{{ $y := 2 }}" * 2_000 + "{{ range 100 }}{{ $x }}{{ end }}"
    with pytest.raises(TemplateError, match="steps"):
        parse(source).render({}, limits=Limits(steps=10_000))
    assert parse(source).render({}) == "1" * 100


def test_format_with_a_huge_width_is_cut_off_as_in_go() -> None:
    assert parse('{{ printf "%99999999999999999999d" 1 }}').render({}) == (
        "%!(NOVERB)%!(EXTRA int=1)"
    )


# Properties.

WORDS = st.one_of(
    st.sampled_from(
        [
            "{{", "}}", "{{- ", " -}}", "if", "else", "end", "range", "with", "define", "template",
            "block", "break", "continue", "nil", "true", ".", "$", "$x", "$y", ":=", "=", ",", "|",
            "(", ")", " ", "\n", '"a"', '"%v %d"', "`r`", "'c'", "1", "-2.5", "0x1F", "1i", ".A",
            ".B", ".C", ".A.B", "$.A", "/*", "*/", '"', "\\", *sorted(NAMES),
        ]
    ),
    st.text(max_size=3),
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from("ABC") | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)
DATA = st.fixed_dictionaries({"A": VALUES, "B": VALUES, "C": VALUES})

ATOM = st.sampled_from(
    [".", "$", ".A", ".B", ".C", ".A.B", "$x", "1", "2.5", '"a"', "`é`", "'c'", "nil", "true"]
)
OPERAND = st.deferred(lambda: ATOM | PIPE.map(lambda pipe: f"({pipe})"))
COMMAND = st.one_of(
    OPERAND,
    st.builds(
        lambda name, operands: " ".join([name, *operands]),
        st.sampled_from(sorted(NAMES)),
        st.lists(OPERAND, max_size=3),
    ),
)
PIPE: st.SearchStrategy[str] = st.lists(COMMAND, min_size=1, max_size=2).map(" | ".join)
BODY = st.deferred(lambda: st.lists(NODE, max_size=3).map("".join))
NODE: st.SearchStrategy[str] = st.one_of(
    st.sampled_from(["text", " ", "\n"]),
    PIPE.map(lambda pipe: f"{{{{ {pipe} }}}}"),
    PIPE.map(lambda pipe: f"{{{{- $x = {pipe} -}}}}"),
    st.builds(
        lambda word, pipe, body, other: (
            f"{{{{ {word} {pipe} }}}}{body}{{{{ else }}}}{other}{{{{ end }}}}"
        ),
        st.sampled_from(["if", "with", "range", "range $i, $x :="]),
        PIPE,
        BODY,
        BODY,
    ),
)


def outcome(source: str, data: dict[str, Any]) -> str | None:
    """The output; ``None`` if it was refused, which is the only other thing that may happen."""
    refusal: TemplateError | None = None
    output = ""
    try:
        output = parse(source).render(data, today=TODAY, limits=SMALL)
    except TemplateError as error:
        refusal = error
    if refusal is not None:
        assert str(refusal).startswith("template: ")
        assert 0 <= refusal.line <= source.count("\n") + 1
        return None
    assert len(output) <= SMALL.chars
    output.encode("utf-8")
    return output


@settings(deadline=None, max_examples=400)
@given(st.lists(WORDS, max_size=25).map("".join), DATA)
def test_any_words_give_an_output_or_a_template_error(source: str, data: dict[str, Any]) -> None:
    outcome(source, data)


@settings(deadline=None, max_examples=400)
@given(BODY, DATA)
def test_any_template_and_data_give_an_output_or_a_template_error(
    body: str, data: dict[str, Any]
) -> None:
    source = "{{ $x := 0 }}" + body
    assert outcome(source, data) == outcome(source, data)


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_text_without_actions_stays_as_it_is(text: str) -> None:
    plain = text.replace("{{", "{ ")
    assert parse(plain).render({}) == plain


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_text_survives_quoting_printing_and_json(text: str) -> None:
    assert unquote(quote(text)) == text
    assert parse(f"{{{{ {quote(text)} }}}}").render({}) == text
    assert parse("{{ .S }}").render({"S": text}) == text
    assert json.loads(parse("{{ json .S }}").render({"S": text})) == text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(alphabet=string.printable, max_size=4), inner, max_size=4),
    max_leaves=15,
)  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(JSON)
def test_json_of_either_layout_means_the_same(value: Any) -> None:
    expected = json.dumps(value, ensure_ascii=False)
    assert plain_json(value, MODEL) == expected
    written = plain_json(value, GO)
    # Go writes 1.0 as 1.
    assert json.loads(written, parse_int=float) == json.loads(expected, parse_int=float)
    assert not set("<>&") & set(written)
