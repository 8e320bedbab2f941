from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.api.body import Fields, read_object
from server.api.framing import json_bytes, local_timestamp, ndjson_line, sse_event, utc_timestamp
from server.api.keep_alive import parse_keep_alive
from server.errors import BadRequestError


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "missing request body"),
        (b"  \n", "missing request body"),
        (b"{", "request body: expected JSON"),
        (b"nope", "request body: expected JSON"),
        (b'{"a": NaN}', "request body: expected JSON"),
        (b'{"a": -Infinity}', "request body: expected JSON"),
        (b'{"a": "\xff"}', "request body: expected JSON"),
        (b"[" * 100_000, "request body: expected JSON, found too many levels"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "request body: expected JSON"),
        (b"[1]", "request body: expected an object, found array"),
        (b"null", "request body: expected an object, found null"),
        (b'"text"', "request body: expected an object, found string"),
    ],
)
def test_body_that_is_no_object_is_refused(body: bytes, text: str) -> None:
    with pytest.raises(BadRequestError, match=text):
        read_object(body)


def test_byte_order_mark_is_passed_over() -> None:
    assert read_object(b'\xef\xbb\xbf{"a": 1}').values == {"a": 1}


def test_half_a_surrogate_pair_becomes_a_replacement_mark() -> None:
    fields = read_object(
        b'{"a": "x\\ud800y", "b": ["\\uD83D\\uDE00"], "\\udfff": {"c": "\\ud800"}}'
    )
    assert fields.values == {
        "a": "x\N{REPLACEMENT CHARACTER}y",
        "b": ["\N{GRINNING FACE}"],
        "\N{REPLACEMENT CHARACTER}": {"c": "\N{REPLACEMENT CHARACTER}"},
    }


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(deadline=None, max_examples=200)
@given(value=st.dictionaries(st.text(), JSON, max_size=5), escaped=st.booleans())
def test_any_object_reads_back_as_it_is(value: dict[str, Any], *, escaped: bool) -> None:
    body = json.dumps(value, ensure_ascii=escaped).encode("utf-8", "replace")
    assert read_object(body).values == json.loads(body)


@settings(deadline=None, max_examples=200)
@given(body=st.binary(max_size=60))
def test_any_bytes_are_an_object_or_a_refusal(body: bytes) -> None:
    try:
        fields = read_object(body)
    except BadRequestError:
        return
    assert isinstance(fields, Fields)
    json_bytes(fields.values)


@pytest.mark.parametrize(
    ("reader", "value", "text"),
    [
        (lambda f: f.string("a"), 3, r"b\.a: expected string, found number"),
        (lambda f: f.boolean("a", default=True), "true", r"b\.a: expected boolean, found string"),
        (lambda f: f.integer("a"), 1.5, r"b\.a: expected integer, found number"),
        (lambda f: f.integer("a"), True, r"b\.a: expected integer, found boolean"),
        (lambda f: f.integer("a"), 1 << 64, r"b\.a: expected integer, found number"),
        (lambda f: f.integer("a"), 10**400, r"b\.a: expected integer, found number"),
        (lambda f: f.integer("a"), 1e300, r"b\.a: expected integer, found number"),
        (lambda f: f.object("a"), [], r"b\.a: expected object, found array"),
        (lambda f: f.array("a"), {}, r"b\.a: expected array, found object"),
        (lambda f: f.objects("a"), [{}, 3], r"b\.a\[1\]: expected object, found number"),
        (lambda f: f.images("a"), ["AAAA", "!"], r"b\.a\[1\]: expected base64 string"),
        (lambda f: f.images("a"), [3], r"b\.a\[0\]: expected base64 string, found number"),
        (lambda f: f.images("a"), ["AAA"], r"b\.a\[0\]: expected base64 string"),
    ],
)
def test_wrong_type_is_refused_by_name(reader: Any, value: object, text: str) -> None:
    with pytest.raises(BadRequestError, match=text):
        reader(Fields(values={"a": value}, at="b"))


def test_null_is_the_same_as_absent() -> None:
    for values in ({}, {"a": None}):
        fields = Fields(values=values)
        assert fields.string("a", "x") == "x"
        assert fields.boolean("a", default=True) is True
        assert fields.integer("a", 7) == 7
        assert fields.object("a").values == {}
        assert fields.array("a") == ()
        assert not fields.has("a")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        (0, 0.0),
        (300, 300.0),
        (1.5, 1.5),
        (-1, -1.0),
        (-0.5, -1.0),
        (10**30, -1.0),
        ("5m", 300.0),
        ("1.5h", 5400.0),
        ("2h45m", 9900.0),
        ("300ms", 0.3),
        ("-1m", -1.0),
        ("0", 0.0),
    ],
)
def test_keep_alive_takes_every_form(value: object, seconds: float | None) -> None:
    assert parse_keep_alive(value) == seconds


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("300", 'time: missing unit in duration "300"'),
        ("soon", 'time: invalid duration "soon"'),
        ("", 'time: invalid duration ""'),
        (True, "Unsupported type: 'bool'"),
        ([], "Unsupported type: '[]interface {}'"),
        ({}, "Unsupported type: 'map[string]interface {}'"),
    ],
)
def test_keep_alive_of_another_form_is_refused(value: object, text: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        parse_keep_alive(value)
    assert str(caught.value) == text


def test_timestamps_have_nine_digits() -> None:
    assert utc_timestamp(1_700_000_000_000_000_001) == "2023-11-14T22:13:20.000000001Z"
    assert local_timestamp(1_700_000_000_120_000_000)[19:29] == ".120000000"
    assert local_timestamp(1_700_000_000_120_000_000)[-6] in "+-"


@settings(deadline=None, max_examples=100)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_no_record_holds_a_line_break_of_its_own(text: str) -> None:
    line = ndjson_line({"a": text})
    assert line.count(b"\n") == 1
    assert json.loads(line) == {"a": text}
    event = sse_event({"a": text})
    assert event.startswith(b"data: ")
    assert event.count(b"\n") == 2
    assert event.endswith(b"\n\n")


def test_what_json_cannot_carry_is_replaced() -> None:
    value = {"a": [float("nan"), -float("inf"), 1.5], "b": {"\ud800": "x\udfff"}, "c": (True, None)}
    assert json.loads(json_bytes(value)) == {
        "a": [None, None, 1.5],
        "b": {"\ufffd": "x\ufffd"},
        "c": [True, None],
    }
