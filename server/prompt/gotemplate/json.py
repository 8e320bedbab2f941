"""JSON as Go's ``encoding/json`` writes it, or as models' own templates do. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from server.prompt.gotemplate.budget import Budget, Limits, Writer
from server.prompt.gotemplate.errors import TemplateError, UnsupportedJsonError
from server.prompt.gotemplate.format import (
    plain_digits,
    shortest_digits,
    sorted_keys,
    special_float,
)
from server.prompt.gotemplate.values import MAX_DATA_DEPTH, Composite, Map, Slice, Struct

_PLAIN_EXPONENTS = range(-6, 21)
"""Exponents written without ``e``. Source: Go's ``encoding/json``, floatEncoder."""

_GO_ESCAPES = re.compile("[<>&\u2028\u2029]")
_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How JSON is written.

    Attributes:
        comma: between two elements.
        colon: between key and value.
        go: write ``< > &`` and two line separators as escapes, and 1.0 as 1, as Go does.
        sort: keys in the order of their bytes.
    """

    comma: str
    colon: str
    go: bool
    sort: bool


GO = Layout(comma=",", colon=":", go=True, sort=True)
"""As Go writes maps, and so Ollama."""

GO_FIELDS = Layout(comma=",", colon=":", go=True, sort=False)
"""As Go writes structs, whose fields have an order."""

MODEL = Layout(comma=", ", colon=": ", go=False, sort=False)
"""As ``tojson`` of models' own templates writes, with which they were trained."""


def to_json(value: Any, budget: Budget, layout: Layout = GO) -> str:
    """Write JSON-like data or a template's value.

    Raises:
        TemplateError: it is nested too deep, has no JSON form, or the budget is used up.
    """
    writer = Writer(budget)
    _write(value, writer, layout, 0)
    return writer.text()


def plain_json(value: Any, layout: Layout) -> str:
    """Write JSON-like data that was checked on its way in, within a budget of its own.

    Raises:
        TemplateError: it is nested too deep, has no JSON form, or is very long.
    """
    return to_json(value, Budget(Limits()), layout)


def _write(value: Any, writer: Writer, layout: Layout, depth: int) -> None:
    if depth > MAX_DATA_DEPTH:
        raise TemplateError(f"json: expected at most {MAX_DATA_DEPTH} levels")
    match value:
        case Composite() if value.json is not None:
            writer.write(value.json())
        case Slice(nil=True) | Map(nil=True):
            writer.write("null")
        case Slice():
            _write_list(value.items, writer, layout, depth)
        case Map():
            _write_object(value.entries, writer, layout, depth)
        case Struct():
            _write_fields(value.fields, list(value.fields), writer, layout, depth)
        case list() | tuple():
            _write_list(value, writer, layout, depth)
        case Mapping():
            _write_object(value, writer, layout, depth)
        case _:
            writer.write(_scalar(value, layout))


def _write_list(
    items: list[Any] | tuple[Any, ...], writer: Writer, layout: Layout, depth: int
) -> None:
    writer.write("[")
    for index, item in enumerate(items):
        if index:
            writer.write(layout.comma)
        _write(item, writer, layout, depth + 1)
    writer.write("]")


def _write_object(entries: Mapping[str, Any], writer: Writer, layout: Layout, depth: int) -> None:
    keys = sorted_keys(entries) if layout.sort else list(entries)
    _write_fields(entries, keys, writer, layout, depth)


def _write_fields(
    entries: Mapping[str, Any], keys: list[str], writer: Writer, layout: Layout, depth: int
) -> None:
    writer.write("{")
    for index, key in enumerate(keys):
        writer.write((layout.comma if index else "") + _string(key, layout) + layout.colon)
        _write(entries[key], writer, layout, depth + 1)
    writer.write("}")


def _scalar(value: Any, layout: Layout) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int():
            return str(int(value))
        case float():
            return _float(value, layout)
        case str():
            return _string(value, layout)
    raise UnsupportedJsonError(f"json: unsupported type: {type(value).__name__}")


def _float(value: float, layout: Layout) -> str:
    special = special_float(value)
    if special is not None:
        raise UnsupportedJsonError(f"json: unsupported value: {special}")
    if not layout.go:
        return repr(value)
    sign, digits, exponent = shortest_digits(value)
    if exponent in _PLAIN_EXPONENTS:
        return sign + plain_digits(digits, exponent)
    fraction = f".{digits[1:]}" if digits[1:] else ""
    # Unlike fmt, JSON drops the leading zero of a negative exponent.
    written = f"+{exponent:02d}" if exponent > 0 else str(exponent)
    return f"{sign}{digits[0]}{fraction}e{written}"


def _string(text: str, layout: Layout) -> str:
    quoted = _SURROGATES.sub(r"\\ufffd", json.dumps(text, ensure_ascii=False))
    if not layout.go:
        return quoted
    return _GO_ESCAPES.sub(lambda match: f"\\u{ord(match[0]):04x}", quoted)
