"""The filters of chat templates: Jinja's own where they cannot grow, ours where they could.

Left out are those that make a text as wide as a number says (``center``, ``wordwrap``, …), those
for web pages, and ``random``: a prompt must not depend on luck.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sized
from typing import Any

import jinja2
from jinja2.filters import FILTERS as JINJA

from server.prompt.meter import METER

_TEXT = (
    *("capitalize", "float", "int", "lower", "string", "title"),
    *("trim", "truncate", "upper", "wordcount"),
)
"""They make a text of their arguments."""

_SORTING = ("dictsort", "groupby", "max", "min", "sort", "unique")
"""They compare elements with each other."""

_READING = (
    *("abs", "count", "d", "default", "first", "items", "last", "length", "list", "map"),
    *("reject", "rejectattr", "reverse", "round", "select", "selectattr", "sum"),
)
"""They look at elements one by one, or not at all."""

_MAX_INDENT = 100
"""Characters. Why: nobody indents deeper."""

_HTML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "'": "&#39;", '"': "&#34;"})


def tojson(
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002 - as templates call it
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    """JSON as transformers writes it: characters as they are, nothing escaped for HTML."""
    if hasattr(value, "__next__"):
        value = list(value)
    METER.get().convert(value)
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=None if indent is None else min(max(int(indent), 0), _MAX_INDENT),
        separators=separators,
        sort_keys=sort_keys,
    )


def join(value: Any, d: Any = "", attribute: str | None = None) -> str:
    """The texts of values with ``d`` between them."""
    values = list(value)
    if attribute is not None:
        values = [_get(item, attribute) for item in values]
    meter = METER.get()
    meter.convert(d)
    between = str(d)
    meter.produce(meter.weigh(values) + len(between) * len(values))
    return between.join(map(str, values))


def replace(value: Any, old: Any, new: Any, count: int | None = None) -> str:
    """``value`` with ``new`` for each ``old``."""
    meter = METER.get()
    meter.convert(value, old, new)
    text, before, after = str(value), str(old), str(new)
    meter.produce(replaced_length(text, before, after))
    return text.replace(before, after, -1 if count is None else count)


def replaced_length(text: str, old: str, new: str) -> int:
    """Length of ``text`` with ``new`` for each ``old``, or more."""
    return len(text) + max(text.count(old) * (len(new) - len(old)), 0)


def indent(
    value: Any,
    width: int | str = 4,
    first: bool = False,  # noqa: FBT001, FBT002 - as templates call it
    blank: bool = False,  # noqa: FBT001, FBT002
) -> str:
    """Lines moved to the right; the first and empty ones only on request."""
    meter = METER.get()
    meter.convert(value, width)
    space = width if isinstance(width, str) else " " * min(max(int(width), 0), _MAX_INDENT)
    text = str(value)
    lines = text.splitlines() or [""]
    meter.produce(len(text) + len(lines) * len(space))
    rest = [space + line if line or blank else line for line in lines[1:]]
    return "\n".join([space + lines[0] if first else lines[0], *rest])


def escape(value: Any) -> str:
    """HTML escapes, as plain text."""
    METER.get().convert(value)
    return str(value).translate(_HTML)


def plain(value: Any) -> str:
    """``safe``: without escaping there is nothing to mark."""
    METER.get().convert(value)
    return str(value)


def _get(item: Any, attribute: str) -> Any:
    for part in str(attribute).split("."):
        item = item[int(part)] if part.isdecimal() else item[part]
    return item


def _metered(filter_: Callable[..., Any], charge: Callable[[Any], None]) -> Callable[..., Any]:
    """A filter of Jinja's that charges for its value first; its other marks stay."""
    position = 1 if hasattr(filter_, "jinja_pass_arg") else 0

    @functools.wraps(filter_)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        charge(args[position] if len(args) > position else None)
        return filter_(*args, **kwargs)

    return wrapper


def _charge_text(value: Any) -> None:
    METER.get().convert(value)


def _charge_sorting(value: Any) -> None:
    meter = METER.get()
    size = len(value) if isinstance(value, Sized) else 0
    meter.produce(meter.weigh(value) * max(size.bit_length(), 1))


def _charge_reading(value: Any) -> None:
    lazy = isinstance(value, str | jinja2.Undefined) or not isinstance(value, Sized)
    METER.get().step(1 if lazy else 1 + len(value))


FILTERS: dict[str, Callable[..., Any]] = {
    **{name: _metered(JINJA[name], _charge_text) for name in _TEXT},
    **{name: _metered(JINJA[name], _charge_sorting) for name in _SORTING},
    **{name: _metered(JINJA[name], _charge_reading) for name in _READING},
    "e": escape,
    "escape": escape,
    "indent": indent,
    "join": join,
    "replace": replace,
    "safe": plain,
    "tojson": tojson,
}
"""By the name templates use."""
