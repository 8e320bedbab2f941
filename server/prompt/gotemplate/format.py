"""How Go prints values: ``fmt``'s ``%v``, ``Sprint`` and ``Sprintln``. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal

from server.prompt.gotemplate.budget import Budget, Writer
from server.prompt.gotemplate.literals import utf8
from server.prompt.gotemplate.values import Composite, Map, Slice, Struct, Value

NO_VALUE = "<no value>"
NIL = "<nil>"
_PLAIN_EXPONENTS = range(-4, 6)
"""Exponents that ``%v`` writes without ``e``. Source: Go's ``strconv``, format 'g', shortest."""


def sorted_keys(entries: Mapping[str, Value]) -> list[str]:
    """Keys in the order of their bytes, as Go visits them."""
    return sorted(entries, key=utf8)


def sprint(values: Sequence[Value], budget: Budget) -> str:
    """Print values, with a blank between two that are not texts.

    Raises:
        TemplateError: the budget is used up.
    """
    writer = Writer(budget)
    for index, value in enumerate(values):
        if index and not isinstance(value, str) and not isinstance(values[index - 1], str):
            writer.write(" ")
        write_value(value, writer)
    return writer.text()


def sprintln(values: Sequence[Value], budget: Budget) -> str:
    """Print values with a blank between any two, and a line break.

    Raises:
        TemplateError: the budget is used up.
    """
    writer = Writer(budget)
    for index, value in enumerate(values):
        if index:
            writer.write(" ")
        write_value(value, writer)
    writer.write("\n")
    return writer.text()


def write_value(value: Value, writer: Writer) -> None:
    """Write one value as ``%v`` does.

    Raises:
        TemplateError: the budget is used up.
    """
    if isinstance(value, Composite) and value.text is not None:
        writer.write(value.text())
    elif not write_composite(value, writer, write_value, names=False):
        writer.write(scalar(value))


def write_composite(
    value: Value, writer: Writer, write: Callable[[Value, Writer], None], *, names: bool
) -> bool:
    """Write a slice, map or struct in Go's brackets, each part of it with ``write``.

    Args:
        value: any value.
        writer: where to.
        write: writes an element.
        names: write the names of a struct's fields.

    Returns:
        Whether it was one of the three.
    """
    match value:
        case Slice():
            _between(value.items, writer, write, "[", "]")
        case Map():
            writer.write("map[")
            for index, key in enumerate(sorted_keys(value.entries)):
                writer.write(" " if index else "")
                write(key, writer)
                writer.write(":")
                write(value.entries[key], writer)
            writer.write("]")
        case Struct() if names:
            writer.write("{")
            for index, (name, part) in enumerate(value.fields.items()):
                writer.write(f" {name}:" if index else f"{name}:")
                write(part, writer)
            writer.write("}")
        case Struct():
            _between(value.fields.values(), writer, write, "{", "}")
        case _:
            return False
    return True


def _between(
    parts: Iterable[Value],
    writer: Writer,
    write: Callable[[Value, Writer], None],
    left: str,
    right: str,
) -> None:
    writer.write(left)
    for index, part in enumerate(parts):
        if index:
            writer.write(" ")
        write(part, writer)
    writer.write(right)


def scalar(value: Value) -> str:
    """A value that has no parts, as ``%v`` writes it."""
    match value:
        case None:
            return NIL
        case bool():
            return "true" if value else "false"
        case int():
            return str(int(value))
        case float():
            return shortest_float(value)
        case complex():
            sign = "" if _signed(value.imag) else "+"
            return f"({shortest_float(value.real)}{sign}{shortest_float(value.imag)}i)"
        case str():
            return value
    raise AssertionError(f"not a scalar: {type(value).__name__}")


def _signed(value: float) -> bool:
    return math.copysign(1, value) < 0 or math.isinf(value)


def special_float(value: float) -> str | None:
    """Infinities and not-a-number; ``None`` for the others."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return None


def shortest_digits(value: float) -> tuple[str, str, int]:
    """Sign, the fewest digits that read back as the value, and the exponent of the first."""
    sign, digits, exponent = Decimal(repr(value)).as_tuple()
    text = "".join(map(str, digits)).lstrip("0") or "0"
    first = int(exponent) + len(text) - 1 if text != "0" else 0
    return "-" if sign else "", text.rstrip("0") or "0", first


def shortest_float(value: float) -> str:
    """The fewest digits that read back as the value, as ``%v`` and ``%g`` write it."""
    special = special_float(value)
    if special is not None:
        return special
    sign, digits, exponent = shortest_digits(value)
    if exponent in _PLAIN_EXPONENTS:
        return sign + plain_digits(digits, exponent)
    fraction = f".{digits[1:]}" if digits[1:] else ""
    return f"{sign}{digits[0]}{fraction}e{exponent:+03d}"


def plain_digits(digits: str, exponent: int) -> str:
    """Digits as a decimal fraction, without an exponent."""
    if exponent < 0:
        return f"0.{'0' * (-exponent - 1)}{digits}"
    whole = digits[: exponent + 1].ljust(exponent + 1, "0")
    fraction = digits[exponent + 1 :]
    return f"{whole}.{fraction}" if fraction else whole
