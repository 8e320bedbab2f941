"""Values as programs write them, passed on as JSON while they are being written. Pure.

Two dialects: Python's literals, and the objects of Gemma's calls, whose keys are bare and whose
strings stand between two marks, without escapes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from server.output.bodies.tagged import value_json
from server.output.jsontext import MAX_DEPTH, MAX_NAME_CHARACTERS, MalformedCallError
from server.output.source import Source, Wait

Sink = Callable[[str], None]

_QUOTES = ('"', "'")
_CLOSING = {"{": "}", "[": "]", "(": ")"}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "0": "\0", "\n": ""}
_CODES = {"x": 2, "u": 4, "U": 8}
_WORDS = {"True": "true", "False": "false", "None": "null"}
_SEPARATORS = (",", "}", "]", ")", "\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Literals:
    """One dialect.

    Attributes:
        mark: stands around strings, beside ordinary quotes; ``None`` for ordinary quotes only.
        bare: keys need no quotes, and a word that is no value is a string.
    """

    mark: str | None = None
    bare: bool = False

    def value(self, source: Source, sink: Sink, depth: int = 0) -> Wait[None]:
        """Pass on one value.

        Raises:
            MalformedCallError: there is none.
        """
        if depth > MAX_DEPTH:
            raise MalformedCallError("nested too deep")
        yield from source.blanks()
        first = yield from source.peek()
        if self.mark and (yield from source.accept((self.mark,))):
            yield from _marked(source, sink, self.mark)
        elif first in _QUOTES:
            yield from _quoted(source, sink)
        elif first == "{":
            yield from self.object(source, sink, depth + 1)
        elif first in ("[", "("):
            yield from self._items(source, sink, depth + 1)
        else:
            yield from self._word(source, sink)

    def object(self, source: Source, sink: Sink, depth: int = 0) -> Wait[None]:
        """Pass on an object that begins here. Raises as `value`."""
        sink(source.take(1))
        first = True
        yield from source.blanks()
        while not (yield from source.accept(("}",))):
            if not first:
                sink(", ")
            first = False
            yield from self._key(source, sink)
            sink(": ")
            yield from self.value(source, sink, depth)
            yield from _separator(source, "}")
        sink("}")

    def _key(self, source: Source, sink: Sink) -> Wait[None]:
        if self.mark and (yield from source.accept((self.mark,))):
            yield from _marked(source, sink, self.mark)
        elif (yield from source.peek()) in _QUOTES:
            yield from _quoted(source, sink)
        elif self.bare:
            key = yield from _until(source, (":", *_SEPARATORS))
            sink(json.dumps(key.strip(), ensure_ascii=False))
        else:
            raise MalformedCallError("no key")
        yield from source.blanks()
        if not (yield from source.accept((":",))):
            raise MalformedCallError("no value")

    def _items(self, source: Source, sink: Sink, depth: int) -> Wait[None]:
        closing = _CLOSING[source.take(1)]
        sink("[")
        first = True
        yield from source.blanks()
        while not (yield from source.accept((closing,))):
            if not first:
                sink(", ")
            first = False
            yield from self.value(source, sink, depth)
            yield from _separator(source, closing)
        sink("]")

    def _word(self, source: Source, sink: Sink) -> Wait[None]:
        word = (yield from _until(source, _SEPARATORS)).strip()
        text = value_json(_WORDS.get(word, word), frozenset())
        if not word or (text.startswith('"') and not self.bare):
            raise MalformedCallError("no value")
        sink(text)


def _separator(source: Source, closing: str) -> Wait[None]:
    """Take a comma, or stay before the end."""
    yield from source.blanks()
    if (yield from source.accept((",",))):
        yield from source.blanks()
    elif (yield from source.peek()) != closing:
        raise MalformedCallError("no separator")


def _until(source: Source, stops: tuple[str, ...]) -> Wait[str]:
    parts: list[str] = []

    def keep(text: str) -> None:
        parts.append(text)
        if sum(map(len, parts)) > MAX_NAME_CHARACTERS:
            raise MalformedCallError("too long")

    if not (yield from source.until(stops, keep)):
        raise MalformedCallError("the text ended")
    return "".join(parts)


def _marked(source: Source, sink: Sink, mark: str) -> Wait[None]:
    sink('"')
    if not (yield from source.until((mark,), lambda text: sink(_inner(text)))):
        raise MalformedCallError("the text ended inside a string")
    source.take(len(mark))
    sink('"')


def _quoted(source: Source, sink: Sink) -> Wait[None]:
    quote = source.take(1)
    sink('"')
    while True:
        found = yield from source.until((quote, "\\"), lambda text: sink(_inner(text)))
        if not found:
            raise MalformedCallError("the text ended inside a string")
        source.take(1)
        if found == quote:
            sink('"')
            return
        sink(_inner((yield from _escaped(source))))


def _escaped(source: Source) -> Wait[str]:
    kind = yield from source.peek()
    if not kind:
        raise MalformedCallError("the text ended inside a string")
    source.take(1)
    if kind not in _CODES:
        return _ESCAPES.get(kind, kind if kind in "\"'\\" else "\\" + kind)
    digits = ""
    for _ in range(_CODES[kind]):
        digit = yield from source.peek()
        if not digit or digit not in "0123456789abcdefABCDEF":
            raise MalformedCallError("no escape")
        digits += source.take(1)
    try:
        character = chr(int(digits, 16))
        character.encode()
    except (ValueError, OverflowError) as error:  # beyond Unicode, or half a surrogate pair
        raise MalformedCallError("no character") from error
    return character


def _inner(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
