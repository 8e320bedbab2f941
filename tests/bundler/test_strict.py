from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundler.format.errors import JsonError, ManifestError
from bundler.format.limits import MAX_INTEGER
from bundler.format.strict import Reader, encode_json, parse_json

LIMIT = 1 << 20

scalars = st.none() | st.booleans() | st.integers(-MAX_INTEGER, MAX_INTEGER) | st.text(max_size=30)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=20,
)
objects = st.dictionaries(st.text(max_size=8), values, max_size=5)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a":1,"a":2}', "twice"),
        ('{"x":{"a":1,"a":1}}', "twice"),
        ('{"a":1.0}', "integers only"),
        ('{"a":1e3}', "integers only"),
        ('{"a":NaN}', "integers only"),
        ('{"a":Infinity}', "integers only"),
        ('{"a":-Infinity}', "integers only"),
        ('{"a":-0}', "53 bits"),
        ('{"a":9007199254740992}', "53 bits"),
        ('{"a":' + "9" * 5000 + "}", "53 bits"),
        ('{"a":"\\ud800"}', "surrogate"),
        ('{"\\udfff":1}', "surrogate"),
        ('{"a":' + "[" * 40 + "]" * 40 + "}", "levels"),
        ('{"a":"' + "x" * 70_000 + '"}', "strings of at most"),
        ('{"a":["' + "x" * 70_000 + '"]}', "strings of at most"),
        ('{"a":{"b":"' + "x" * 70_000 + '"}}', "strings of at most"),
        ('{"a":["\\ud800"]}', "surrogate"),
        ("[]", "an object"),
        ('"text"', "an object"),
        ("1", "an object"),
        ("", "Expecting value"),
        ("{", "Expecting"),
        ('{"a":1} x', "Extra data"),
        ("{'a':1}", "Expecting"),
        ('{"a":"\n"}', "control character"),
        ('\ufeff{"a":1}', "BOM"),
    ],
)
def test_json_that_two_readers_might_read_differently_is_refused(text: str, reason: str) -> None:
    with pytest.raises(JsonError, match=reason):
        parse_json(text.encode("utf-8", "surrogatepass"), max_bytes=LIMIT)


def test_bytes_that_are_not_utf8_are_refused() -> None:
    with pytest.raises(JsonError, match="UTF-8"):
        parse_json(b'{"a":"\xff"}', max_bytes=LIMIT)


def test_a_document_over_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(JsonError, match="at most 10 bytes"):
        parse_json(b"[" * 11, max_bytes=10)


def test_a_hundred_thousand_brackets_do_not_exhaust_the_stack() -> None:
    with pytest.raises(JsonError, match="levels"):
        parse_json(b'{"a":' * 100_000, max_bytes=LIMIT)


def test_an_open_string_full_of_escapes_is_refused_in_linear_work() -> None:
    with pytest.raises(JsonError):
        parse_json(b'{"a":"' + b'\\"' * 500_000, max_bytes=LIMIT + 10)


def test_brackets_in_strings_do_not_count_as_nesting() -> None:
    text = json.dumps({"a": "[" * 100 + '"{'})
    assert parse_json(text.encode(), max_bytes=LIMIT) == {"a": "[" * 100 + '"{'}


@settings(deadline=None, max_examples=200)
@given(objects)
def test_what_was_written_is_read_back_equal(value: dict[str, Any]) -> None:
    assert parse_json(encode_json(value), max_bytes=LIMIT) == value


@settings(deadline=None, max_examples=100)
@given(objects)
def test_canonical_bytes_do_not_depend_on_the_order_of_members(value: dict[str, Any]) -> None:
    backwards = dict(reversed(value.items()))
    assert encode_json(backwards) == encode_json(value)
    assert encode_json(parse_json(encode_json(value), max_bytes=LIMIT)) == encode_json(value)


@settings(deadline=None, max_examples=300)
@given(
    st.binary(max_size=80)
    | st.text(alphabet='{}[]":,0123456789.eE-tfn\\u ad', max_size=60).map(str.encode)
)
def test_any_bytes_are_an_object_or_refused(data: bytes) -> None:
    try:
        value = parse_json(data, max_bytes=LIMIT)
    except JsonError:
        return
    assert parse_json(encode_json(value), max_bytes=LIMIT) == value


def test_members_are_sorted_by_utf16_code_units() -> None:
    # RFC 8785, section 3.2.3: an astral character sorts before U+FB33.
    assert encode_json({"\ufb33": 1, "\U0001f600": 2, "a": 3}) == (
        '{"a":3,"\U0001f600":2,"\ufb33":1}'.encode()
    )


@pytest.mark.parametrize("value", [{"a": 1.5}, {"a": MAX_INTEGER + 1}, {"a": {1}}, {"a": "\ud800"}])
def test_values_outside_strict_json_are_not_written(value: dict[str, Any]) -> None:
    with pytest.raises(JsonError):
        encode_json(value)


@pytest.mark.parametrize(
    ("found", "read", "message"),
    [
        (True, lambda r: r.integer("x"), "predicate.x: expected an integer, found true"),
        ("1", lambda r: r.integer("x"), "predicate.x: expected an integer, found '1'"),
        (-1, lambda r: r.integer("x"), "expected an integer from 0"),
        (1, lambda r: r.boolean("x"), "expected true or false, found 1"),
        (1, lambda r: r.text("x"), "expected text, found 1"),
        ("", lambda r: r.text("x"), "not empty"),
        ("a\x1b[2J", lambda r: r.text("x"), "control characters"),
        ("é" * 65, lambda r: r.text("x"), "at most 128 bytes"),
        ("A", lambda r: r.text("x", pattern="[a-z]"), "of the form"),
        ("a\n", lambda r: r.text("x", pattern="[a-z]"), "of the form"),
        ("c", lambda r: r.choice("x", ("a", "b")), "one of a, b"),
        ("sha256:00", lambda r: r.digest("x"), "sha256:<64 hex>"),
        (7, lambda r: r.digest("x"), "sha256:<64 hex>"),
        ({}, lambda r: r.objects("x", lambda _: 0, at_most=3), "a list"),
        ([1, 2], lambda r: r.objects("x", lambda _: 0, at_most=1), "a list of 0 to 1"),
        ([1], lambda r: r.objects("x", lambda _: 0, at_most=1), "x[0]: expected an object"),
        ([{"y": 1}], lambda r: r.objects("x", lambda _: 0, at_most=1), "x[0].y: expected no such"),
        ([1, "a"], lambda r: r.items("x", Reader.integer, at_most=3), "x[1]: expected an integer"),
        ([], lambda r: r.object("x", lambda _: 0), "x: expected an object, found a list of 0"),
        ([], lambda r: r.anything("x"), "x: expected an object"),
    ],
)
def test_a_refusal_names_the_field_the_expectation_and_the_finding(
    found: Any, read: Any, message: str
) -> None:
    with pytest.raises(ManifestError) as caught, Reader({"x": found}, "predicate") as reader:
        read(reader)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_member_is_refused() -> None:
    with pytest.raises(ManifestError, match="x: expected a value, found nothing"):
        Reader({}, "").integer("x")


def test_a_member_nobody_asked_for_is_refused_with_its_name_escaped() -> None:
    with pytest.raises(ManifestError) as caught, Reader({"\x1b[2Jevil": 1}, "predicate"):
        pass
    assert "\x1b" not in str(caught.value)


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def test_what_could_not_be_read_again_is_not_written() -> None:
    for value in ({"a": nested(32)}, {1: 2}, {"\ud800": 1}, {"a": "\ud800"}, {"a": 1.5}):
        with pytest.raises(JsonError):
            encode_json(value)


def test_the_deepest_nesting_is_written_and_read_again() -> None:
    value = {"a": nested(31)}
    assert parse_json(encode_json(value), max_bytes=1000) == value
