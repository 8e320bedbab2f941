"""Go's ``Sprintf``: formats with flags, width, precision and numbered arguments. Pure.

A verb that does not suit its value, a missing or a surplus argument gives no error but Go's notes
in the text, such as ``%!d(string=hi)``. Pointers have no place here, so ``%p`` never suits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from server.prompt.gotemplate.budget import Budget, Writer
from server.prompt.gotemplate.format import NIL, sorted_keys, write_composite, write_value
from server.prompt.gotemplate.literals import quote
from server.prompt.gotemplate.values import Composite, Map, Slice, Struct, Value, type_name
from server.prompt.gotemplate.verbs import Spec, cut, scalar, text_of

MAX_WIDTH = 1_000_000
"""Largest width and precision. Source: Go's ``fmt``, tooLarge."""

_TEXT_VERBS = frozenset("vsxXq")
_FLAGS = {"-": "minus", "+": "plus", "#": "sharp", " ": "space", "0": "zero"}


class _Printer:
    """Reads a format from front to back and writes the result."""

    def __init__(self, template: str, values: Sequence[Value], writer: Writer) -> None:
        self._template = template
        self._position = 0
        self._values = values
        self._next = 0
        self._reordered = False
        self._good = True
        self._writer = writer

    def run(self) -> None:
        """Write everything."""
        while (start := self._template.find("%", self._position)) >= 0:
            self._writer.write(self._template[self._position : start])
            self._position = start + 1
            self._directive()
        self._writer.write(self._template[self._position :])
        if not self._reordered and self._next < len(self._values):
            self._surplus()

    def _surplus(self) -> None:
        self._writer.write("%!(EXTRA ")
        for index, value in enumerate(self._values[self._next :]):
            self._writer.write(", " if index else "")
            self._writer.write("" if value is None else f"{type_name(value)}=")
            write_value(value, self._writer)
        self._writer.write(")")

    def _peek(self) -> str:
        return self._template[self._position : self._position + 1]

    def _directive(self) -> None:
        spec = Spec()
        self._good = True
        while self._peek() in _FLAGS:
            setattr(spec, _FLAGS[self._peek()], True)
            self._position += 1
        indexed = self._width(spec, indexed=self._index())
        indexed = self._precision(spec, indexed=indexed)
        if not indexed:
            self._index()
        spec.verb = self._peek()
        self._position += 1
        if spec.verb == "":
            self._writer.write("%!(NOVERB)")
        elif spec.verb == "%":
            self._writer.write("%")
        elif not self._good:
            self._writer.write(f"%!{spec.verb}(BADINDEX)")
        elif self._next >= len(self._values):
            self._writer.write(f"%!{spec.verb}(MISSING)")
        else:
            if spec.verb == "v":
                spec.names, spec.syntax = spec.plus, spec.sharp
                spec.plus = spec.sharp = False
            _write(self._values[self._next], spec, self._writer)
            self._next += 1

    def _index(self) -> bool:
        """Read ``[n]``, which makes that argument the next; whether there was one."""
        if self._peek() != "[":
            return False
        self._reordered = True
        close = self._template.find("]", self._position + 1)
        digits = self._template[self._position + 1 : close] if close >= 0 else ""
        self._position = close + 1 if close >= 0 else self._position + 1
        number = _small_number(digits)
        if number is None:
            self._good = False
            return False
        if 1 <= number <= len(self._values):
            self._next = number - 1
        else:
            self._good = False
        return True

    def _width(self, spec: Spec, *, indexed: bool) -> bool:
        if self._peek() == "*":
            self._position += 1
            spec.width = self._measure("WIDTH")
            if spec.width is not None and spec.width < 0:
                spec.width = -spec.width
                spec.minus, spec.zero = True, False
            return False
        spec.width = self._number()
        self._good = self._good and not (indexed and spec.width is not None)
        return indexed

    def _precision(self, spec: Spec, *, indexed: bool) -> bool:
        if self._peek() != "." or self._position + 1 >= len(self._template):
            return indexed
        self._position += 1
        self._good = self._good and not indexed
        indexed = self._index()
        if self._peek() == "*":
            self._position += 1
            spec.precision = self._measure("PREC")
            return False
        spec.precision = self._number() or 0
        return indexed

    def _number(self) -> int | None:
        start = self._position
        while self._peek() in _DIGITS:
            self._position += 1
        number = _small_number(self._template[start : self._position])
        if number is None and self._position > start:
            # Too large: nothing of the format is left, as in Go.
            self._position = len(self._template)
        return number

    def _measure(self, what: str) -> int | None:
        """A width or precision that the next argument holds."""
        value: Value = None
        if self._next < len(self._values):
            value = self._values[self._next]
            self._next += 1
        good = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_WIDTH
        if good and isinstance(value, int) and (value >= 0 or what == "WIDTH"):
            return int(value)
        self._writer.write(f"%!(BAD{what})")
        return None


_DIGITS = frozenset("0123456789")


def _small_number(digits: str) -> int | None:
    """A number in a format. Go looks at all but its last digit to see whether it is too large."""
    if (
        not digits
        or not set(digits) <= _DIGITS
        or len(digits.lstrip("0")) > len(str(MAX_WIDTH)) + 1
    ):
        return None
    number = int(digits)
    return number if number // 10 <= MAX_WIDTH else None


def sprintf(template: str, values: Sequence[Value], budget: Budget) -> str:
    """Fill values into a format.

    Raises:
        TemplateError: the budget is used up.
    """
    writer = Writer(budget)
    _Printer(template, values, writer).run()
    return writer.text()


def _write(value: Value, spec: Spec, writer: Writer) -> None:
    if spec.verb == "T":
        writer.write(spec.pad(NIL if value is None else cut(type_name(value), spec)))
    elif value is None:
        writer.write(spec.pad(NIL) if spec.verb == "v" else f"%!{spec.verb}({NIL})")
    else:
        _write_part(value, spec, writer)


def _write_part(value: Value, spec: Spec, writer: Writer) -> None:
    """One value, or an element of one."""
    texts = spec.verb in _TEXT_VERBS and not spec.syntax
    if isinstance(value, Composite) and value.text is not None and texts:
        writer.write(text_of(value.text(), spec) or "")
    elif value is None:
        writer.write("interface {}(nil)" if spec.syntax else NIL)
    elif isinstance(value, Composite):
        _write_composite(value, spec, writer)
    else:
        if isinstance(value, str) and spec.verb in "qxX":
            writer.work(len(value))
        written = scalar(value, spec)
        if written is None:
            shown = scalar(value, replace(spec, verb="v"))
            written = f"%!{spec.verb}({type_name(value)}={shown})"
        writer.write(written)


def _write_composite(value: Composite, spec: Spec, writer: Writer) -> None:
    def write(part: Value, into: Writer) -> None:
        _write_part(part, spec, into)

    if not spec.syntax:
        assert isinstance(value, Slice | Map | Struct)  # there are no others
        write_composite(value, writer, write, names=spec.names)
        return
    parts: list[tuple[str, Value]] = []
    match value:
        case Slice() | Map() if value.nil:
            writer.write(f"{value.type_name}(nil)")
            return
        case Slice():
            parts = [("", item) for item in value.items]
        case Map():
            keys = sorted_keys(value.entries)
            parts = [(f"{quote(key)}:", value.entries[key]) for key in keys]
        case Struct():
            parts = [(f"{name}:", part) for name, part in value.fields.items()]
    writer.write(f"{value.type_name}{{")
    for index, (label, part) in enumerate(parts):
        writer.write((", " if index else "") + label)
        _write_part(part, spec, writer)
    writer.write("}")
