"""The functions a Go template may call: Go's own and Ollama's. Pure.

A function gets its arguments evaluated and gives a value. ``and`` and ``or`` are not here: they
do not evaluate all their arguments, so the evaluator knows them itself.
"""

from __future__ import annotations

import datetime as dt
import itertools
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server.prompt.gotemplate.budget import Budget
from server.prompt.gotemplate.errors import TemplateError, UnsupportedJsonError
from server.prompt.gotemplate.format import NO_VALUE, sprint, sprintln
from server.prompt.gotemplate.json import to_json
from server.prompt.gotemplate.literals import from_utf8, is_print, utf8
from server.prompt.gotemplate.printf import sprintf
from server.prompt.gotemplate.values import (
    Byte,
    Map,
    Slice,
    Struct,
    Value,
    is_nil,
    length,
    truth,
    type_name,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What functions need besides their arguments; ``today`` is the local date, if given."""

    budget: Budget
    today: dt.date | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GoFunction:
    """A function and what it takes.

    Attributes:
        run: makes the value.
        fixed: arguments it must have.
        variadic: it may have more.
        texts: how many of its first arguments must be texts; -1 for all.
    """

    run: Callable[[Context, Sequence[Value]], Value]
    fixed: int
    variadic: bool = False
    texts: int = 0


# Comparison.


def _kind(value: Value) -> str:
    """The kinds that can be compared; integers are one kind, whatever their size."""
    match value:
        case bool():
            return "bool"
        case int():
            return "int"
        case float():
            return "float"
        case complex():
            return "complex"
        case str():
            return "string"
    return ""


def _equal_any(_context: Context, given: Sequence[Value]) -> bool:
    if len(given) == 1:
        raise TemplateError("missing argument for comparison")
    return any(_equal(given[0], other) for other in given[1:])


def _equal(first: Value, second: Value) -> bool:
    kind = _kind(first)
    if kind and kind == _kind(second):
        return first == second
    if first is None or second is None:
        return is_nil(first) and is_nil(second)
    if kind or _kind(second):
        raise _incompatible(first, second)
    if type(first) is not type(second):
        raise TemplateError(f"non-comparable types {type_name(first)} and {type_name(second)}")
    if is_nil(first) or is_nil(second):
        return is_nil(first) and is_nil(second)
    return _same_structs(first, second)


def _same_structs(first: Value, second: Value) -> bool:
    if not isinstance(first, Struct) or not isinstance(second, Struct):
        raise TemplateError(f"non-comparable type {type_name(second)}")
    if first.type_name != second.type_name or first.fields.keys() != second.fields.keys():
        return False
    return all(_equal(value, second.fields[name]) for name, value in first.fields.items())


def _incompatible(first: Value, second: Value) -> TemplateError:
    return TemplateError(
        f"incompatible types for comparison: {type_name(first)} and {type_name(second)}"
    )


def _less(first: Value, second: Value) -> bool:
    kind, other = _kind(first), _kind(second)
    if not kind or not other:
        raise TemplateError("invalid type for comparison")
    if kind != other:
        raise _incompatible(first, second)
    if isinstance(first, str) and isinstance(second, str):
        return utf8(first) < utf8(second)
    if kind in ("bool", "complex") or isinstance(first, complex) or isinstance(second, complex):
        raise TemplateError("invalid type for comparison")
    assert isinstance(first, int | float)
    assert isinstance(second, int | float)
    return first < second


def _less_or_equal(first: Value, second: Value) -> bool:
    return _less(first, second) or _equal(first, second)


# Parts of things.


def _index_of(index: Value, limit: int) -> int:
    if index is None:
        raise TemplateError("cannot index slice/array with nil")
    if isinstance(index, bool) or not isinstance(index, int):
        raise TemplateError(f"cannot index slice/array with type {type_name(index)}")
    if not 0 <= index <= limit:
        raise TemplateError(f"index out of range: {index}")
    return int(index)


def _index(_context: Context, given: Sequence[Value]) -> Value:
    item, *indexes = given
    if item is None:
        raise TemplateError("index of untyped nil")
    for index in indexes:
        item = _part(item, index)
    return item


def _part(item: Value, index: Value) -> Value:
    match item:
        case None:
            raise TemplateError("index of nil pointer")
        case str():
            data = utf8(item)
            return Byte(data[_index_of(index, len(data) - 1)])
        case Slice():
            return item.items[_index_of(index, len(item.items) - 1)]
        case Map():
            if index is None:
                raise TemplateError("value is nil; should be of type string")
            if not isinstance(index, str):
                raise TemplateError(f"value has type {type_name(index)}; should be string")
            return item.entries.get(index, item.missing)
    raise TemplateError(f"can't index item of type {type_name(item)}")


def _slice(context: Context, given: Sequence[Value]) -> Value:
    item, *indexes = given
    if item is None:
        raise TemplateError("slice of untyped nil")
    if len(indexes) > 3:  # noqa: PLR2004 - from, to, capacity
        raise TemplateError(f"too many slice indexes: {len(indexes)}")
    if not isinstance(item, str | Slice):
        raise TemplateError(f"can't slice item of type {type_name(item)}")
    if isinstance(item, str) and len(indexes) == 3:  # noqa: PLR2004 - likewise
        raise TemplateError("cannot 3-index slice a string")
    size = length(item)
    bounds = [0, size]
    bounds[: len(indexes)] = [_index_of(index, size) for index in indexes]
    for low, high in itertools.pairwise(bounds):
        if low > high:
            raise TemplateError(f"invalid slice index: {low} > {high}")
    start, stop = bounds[:2]
    context.budget.step((stop - start) // 64)
    if isinstance(item, str):
        return from_utf8(utf8(item)[start:stop])
    return Slice(items=item.items[start:stop], type_name=item.type_name, nil=item.nil)


# Printing and escaping.


def _printed(context: Context, given: Sequence[Value]) -> str:
    """What the escaping functions escape."""
    text = sprint([NO_VALUE if value is None else value for value in given], context.budget)
    context.budget.work(len(text))
    return text


def _printf(context: Context, given: Sequence[Value]) -> str:
    template, *values = given
    assert isinstance(template, str)  # the evaluator checks it
    return sprintf(template, values, context.budget)


_HTML = str.maketrans(
    {'"': "&#34;", "'": "&#39;", "&": "&amp;", "<": "&lt;", ">": "&gt;", "\0": "\ufffd"}
)


def _html(context: Context, given: Sequence[Value]) -> str:
    return _printed(context, given).translate(_HTML)


_JS = {"\\": "\\\\", "'": "\\'", '"': '\\"'}
_JS_ESCAPED = frozenset("<>&=")


def _js_char(char: str) -> str:
    if char in _JS:
        return _JS[char]
    if char in _JS_ESCAPED or char < " ":
        return f"\\u{ord(char):04X}"
    # A byte that is no UTF-8 is U+FFFD, which prints.
    if char.isascii() or is_print(char):
        return char
    return "\ufffd" if "\ud800" <= char <= "\udfff" else f"\\u{ord(char):04X}"


def _js(context: Context, given: Sequence[Value]) -> str:
    return "".join(map(_js_char, _printed(context, given)))


def _urlquery(context: Context, given: Sequence[Value]) -> str:
    return urllib.parse.quote_plus(utf8(_printed(context, given)), safe="~")


def _call(_context: Context, given: Sequence[Value]) -> Value:
    if given[0] is None:
        raise TemplateError("call of nil")
    raise TemplateError(f"non-function of type {type_name(given[0])}")


# Ollama's.


def _json(context: Context, given: Sequence[Value]) -> str:
    try:
        return to_json(given[0], context.budget)
    except UnsupportedJsonError:
        return ""


def _date(context: Context, *, days_ago: int) -> str:
    if context.today is None:
        raise TemplateError("no date was given")
    return (context.today - dt.timedelta(days=days_ago)).isoformat()


def _today(context: Context, _given: Sequence[Value]) -> str:
    return _date(context, days_ago=0)


def _yesterday(context: Context, _given: Sequence[Value]) -> str:
    return _date(context, days_ago=1)


def _typescript(_context: Context, given: Sequence[Value]) -> Value:
    """The type of a tool's property, which brings it along."""
    match given[0]:
        case Struct(methods={"ToTypeScriptType": written}):
            return written
    raise TemplateError(
        f"wrong type for value; expected api.ToolProperty; got {type_name(given[0])}"
    )


FUNCTIONS: dict[str, GoFunction] = {
    "call": GoFunction(run=_call, fixed=1, variadic=True),
    "eq": GoFunction(run=_equal_any, fixed=1, variadic=True),
    "ge": GoFunction(run=lambda _, given: not _less(*given), fixed=2),
    "gt": GoFunction(run=lambda _, given: not _less_or_equal(*given), fixed=2),
    "html": GoFunction(
        run=lambda c, given: _printed(c, given).translate(_HTML), fixed=0, variadic=True
    ),
    "index": GoFunction(run=_index, fixed=1, variadic=True),
    "js": GoFunction(run=_js, fixed=0, variadic=True),
    "le": GoFunction(run=lambda _, given: _less_or_equal(*given), fixed=2),
    "len": GoFunction(run=lambda _, given: length(given[0]), fixed=1),
    "lt": GoFunction(run=lambda _, given: _less(*given), fixed=2),
    "ne": GoFunction(run=lambda _, given: not _equal(*given), fixed=2),
    "not": GoFunction(run=lambda _, given: not truth(given[0]), fixed=1),
    "print": GoFunction(run=lambda c, given: sprint(given, c.budget), fixed=0, variadic=True),
    "printf": GoFunction(run=_printf, fixed=1, variadic=True, texts=1),
    "println": GoFunction(run=lambda c, given: sprintln(given, c.budget), fixed=0, variadic=True),
    "slice": GoFunction(run=_slice, fixed=1, variadic=True),
    "urlquery": GoFunction(run=_urlquery, fixed=0, variadic=True),
    "currentDate": GoFunction(
        run=lambda c, _: _date(c, days_ago=0), fixed=0, variadic=True, texts=-1
    ),
    "json": GoFunction(run=_json, fixed=1),
    "toTypeScriptType": GoFunction(run=_typescript, fixed=1),
    "yesterdayDate": GoFunction(
        run=lambda c, _: _date(c, days_ago=1), fixed=0, variadic=True, texts=-1
    ),
}

SHORT_CIRCUITS = frozenset({"and", "or"})
NAMES = frozenset(FUNCTIONS) | SHORT_CIRCUITS
