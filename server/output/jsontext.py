"""Pass JSON on while it is being written, and find out at once where it is none. Pure.

Rules:
 * what has been passed on is always the beginning of a JSON value;
 * a raw line break or other control character inside a string, which models write, is escaped;
 * names for numbers (``NaN``), numbers no reader can hold and half surrogates are refused;
 * nesting is bounded.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable

from server.output.source import Source, Wait

MAX_DEPTH = 64
"""Why: arguments of tools are a few levels deep; readers give up at some hundreds."""

MAX_NAME_CHARACTERS = 256
"""Of a function's name or a key that is looked at. Why: OpenAI allows 64."""

Sink = Callable[[str], None]

_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_NUMBER_CHARACTERS = re.compile(r"[-+0-9.eE]+")
_WORD_CHARACTERS = re.compile(r"[a-z]+")
_SURROGATE = re.compile(r"[dD][89a-fA-F]")
_LOW_SURROGATE = re.compile(r"\\u[dD][c-fC-F]")
_ESCAPES = frozenset('"\\/bfnrt')
_HEX = frozenset("0123456789abcdefABCDEF")


class MalformedCallError(ValueError):
    """What looked like a call is none."""


def pass_value(source: Source, sink: Sink) -> Wait[None]:
    """Pass on one JSON value, without the blanks around it.

    Raises:
        MalformedCallError: it is no JSON, or the text ended.
    """
    stack: list[str] = []
    while True:
        opened = yield from _begin(source, sink, stack)
        if opened:
            continue
        while stack:
            yield from _pass_blanks(source, sink)
            if (yield from source.peek()) == ",":
                sink(source.take(1))
                break
            yield from _pass_literal(source, sink, stack[-1])
            stack.pop()
        if not stack:
            return
        if stack[-1] == "}":
            yield from _pass_key(source, sink)


def _begin(source: Source, sink: Sink, stack: list[str]) -> Wait[bool]:
    """The beginning of a value; whether it is a container with something in it."""
    yield from _pass_blanks(source, sink)
    first = yield from source.peek()
    if first not in ("{", "["):
        yield from _pass_scalar(source, sink, first)
        return False
    if len(stack) == MAX_DEPTH:
        raise MalformedCallError("nested too deep")
    sink(source.take(1))
    closing = "}" if first == "{" else "]"
    yield from _pass_blanks(source, sink)
    if (yield from source.peek()) == closing:
        sink(source.take(1))
        return False
    stack.append(closing)
    if closing == "}":
        yield from _pass_key(source, sink)
    return True


def read_string(source: Source, *, most: int | None = None) -> Wait[str]:
    """Take one JSON string and return what it says.

    Args:
        source: where it begins here.
        most: characters it may have; ``None`` for any number.

    Raises:
        MalformedCallError: it is none, or too long.
    """
    parts: list[str] = []
    length = 0

    def keep(text: str) -> None:
        nonlocal length
        length += len(text)
        if most is not None and length > most:
            raise MalformedCallError("too long")
        parts.append(text)

    yield from _pass_string(source, keep)
    value: str = json.loads("".join(parts))
    return value


def read_value(source: Source) -> Wait[str]:
    """Take one JSON value and return its text. Raises as `pass_value`."""
    parts: list[str] = []
    yield from pass_value(source, parts.append)
    return "".join(parts)


def _pass_key(source: Source, sink: Sink) -> Wait[None]:
    yield from _pass_blanks(source, sink)
    yield from _pass_string(source, sink)
    yield from _pass_blanks(source, sink)
    yield from _pass_literal(source, sink, ":")


def _pass_blanks(source: Source, sink: Sink) -> Wait[None]:
    blanks = yield from source.blanks()
    if blanks:
        sink("".join(blank if blank in " \t\r\n" else " " for blank in blanks))


def _pass_literal(source: Source, sink: Sink, literal: str) -> Wait[None]:
    yield from expect(source, literal)
    sink(literal)


def expect(source: Source, literal: str) -> Wait[None]:
    """Take this text.

    Raises:
        MalformedCallError: there is something else.
    """
    if not (yield from source.accept((literal,))):
        raise MalformedCallError(f"expected {literal!r}")


def _pass_scalar(source: Source, sink: Sink, first: str) -> Wait[None]:
    if first == '"':
        yield from _pass_string(source, sink)
        return
    kind = _NUMBER_CHARACTERS if first and first in "-0123456789" else _WORD_CHARACTERS
    text = yield from _run(source, kind)
    if kind is _WORD_CHARACTERS and text not in {"true", "false", "null"}:
        raise MalformedCallError("no JSON value")
    if kind is _NUMBER_CHARACTERS and not (_NUMBER.fullmatch(text) and is_finite(text)):
        raise MalformedCallError("no JSON number")
    sink(text)


def is_finite(number: str) -> bool:
    """Whether readers of JSON can hold a number."""
    return len(number) <= MAX_NAME_CHARACTERS and math.isfinite(float(number))


def _run(source: Source, kind: re.Pattern[str]) -> Wait[str]:
    text = ""
    while kind.match((yield from source.peek())):
        text += source.take(len(source.match(kind)))
        if len(text) > MAX_NAME_CHARACTERS:
            raise MalformedCallError("too long")
    return text


def _pass_string(source: Source, sink: Sink) -> Wait[None]:
    yield from _pass_literal(source, sink, '"')
    while True:
        first = yield from source.peek()
        if first == '"':
            sink(source.take(1))
            return
        if first == "\\":
            sink((yield from _escape(source)))
        elif not first:
            raise MalformedCallError("the text ended inside a string")
        elif first < " ":
            sink(json.dumps(source.take(1))[1:-1])
        else:
            sink(source.take(len(source.match(_PLAIN))))


def _escape(source: Source) -> Wait[str]:
    code = yield from _escape_code(source)
    if not _SURROGATE.match(code[2:]):
        return code
    # The second half of a pair is an escape of its own.
    if code[3] in "89abAB" and (yield from source.begins(("\\",))):
        second = yield from _escape_code(source)
        if _LOW_SURROGATE.match(second):
            return code + second
    raise MalformedCallError("half a surrogate pair")


def _escape_code(source: Source) -> Wait[str]:
    taken = source.take(1)
    kind = yield from source.peek()
    taken += source.take(1)
    if kind in _ESCAPES and kind:
        return taken
    if kind != "u":
        raise MalformedCallError("no escape")
    for _ in range(4):
        digit = yield from source.peek()
        if not digit or digit not in _HEX:
            raise MalformedCallError("no escape")
        taken += source.take(1)
    return taken
