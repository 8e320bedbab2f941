"""The values a Go template sees, and what Go says of them. Pure.

A value is ``None``, a bool, an int, a `Byte`, a float, a complex, a str, or one of `Slice`, `Map`
and `Struct`. Nothing else reaches a template: `from_python` refuses it. So a template cannot get
at an attribute of a Python object, and calls nothing but the functions it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from server.prompt.gotemplate.errors import TemplateError
from server.prompt.gotemplate.literals import INT64_MAX, INT64_MIN, clean, utf8_length

MAX_DATA_DEPTH = 100
"""Levels of lists and objects. Why: tool schemas stay below 20; a level takes three frames."""


class Byte(int):
    """Go's ``uint8``: an element of a string."""

    __slots__ = ()


class Absent(Enum):
    """A nil that an element holds: nil like ``None``, but without fields, even nil ones."""

    NIL = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Composite:
    """What slices, maps and structs share.

    Attributes:
        type_name: Go's name of the type, for error messages.
        text: how it prints, where it does not print as Go prints its kind.
        json: how it is written as JSON, likewise.
        methods: what its methods without arguments give, by name.
    """

    type_name: str
    text: Callable[[], str] | None = None
    json: Callable[[], str] | None = None
    methods: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice(Composite):
    """A list. A ``nil`` one is empty and equal to nil."""

    items: tuple[Value, ...]
    type_name: str = "[]interface {}"
    nil: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Map(Composite):
    """Values by text; ``missing`` stands for the keys that are not there."""

    entries: Mapping[str, Value]
    type_name: str = "map[string]interface {}"
    missing: Value = None
    nil: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Struct(Composite):
    """Fields by name; there are no others."""

    fields: Mapping[str, Value]


Value = None | bool | int | float | complex | str | Slice | Map | Struct


def from_python(value: Any, depth: int = 0) -> Value:
    """Take JSON-like data: numbers, texts, truth values, lists and mappings.

    Raises:
        TemplateError: it is something else, or nested too deep.
    """
    if depth > MAX_DATA_DEPTH:
        raise TemplateError(f"data: expected at most {MAX_DATA_DEPTH} levels")
    match value:
        case None | bool() | float() | Byte() | Slice() | Map() | Struct():
            return value
        case int():
            return int(value) if INT64_MIN <= value <= INT64_MAX else _large(value)
        case str():
            return clean(value)
        case list() | tuple():
            return Slice(items=tuple(from_python(item, depth + 1) for item in value))
        case Mapping():
            return Map(
                entries={
                    clean(str(key)): from_python(item, depth + 1) for key, item in value.items()
                }
            )
    raise TemplateError(f"data: expected JSON-like values, found {type(value).__name__}")


def _large(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def element(value: Value) -> Value | Absent:
    """A value as an element of a slice or a map."""
    return Absent.NIL if value is None else value


def taken(value: Value | Absent) -> Value:
    """An element as a value of its own."""
    return None if value is Absent.NIL else value


def field_of(value: Value | Absent, name: str, *, given: bool) -> Value | Absent:
    """A field of a struct, an entry of a map, or what a method gives.

    Args:
        value: where to look.
        name: of the field.
        given: arguments stand behind it, which only a function takes.

    Raises:
        TemplateError: there is no such field, or it has arguments.
    """
    if value is None:
        return None
    if value is Absent.NIL:
        raise TemplateError(f"nil pointer evaluating interface {{}}.{name}")
    if isinstance(value, Composite) and name in value.methods:
        if given:
            raise TemplateError(f"wrong number of args for {name}: want 0 got 1")
        return value.methods[name]
    match value:
        case Map():
            if given:
                raise TemplateError(f"{name} is not a method but has arguments")
            return element(value.entries.get(name, value.missing))
        case Struct() if name in value.fields:
            if given:
                raise TemplateError(f"{name} has arguments but cannot be invoked as function")
            return element(value.fields[name])
    raise TemplateError(f"can't evaluate field {name} in type {type_name(value)}")


def truth(value: Value) -> bool:
    """Whether Go calls it true: not nil, not false, not zero, not empty."""
    match value:
        case Slice():
            return bool(value.items)
        case Map():
            return bool(value.entries)
        case Struct():
            return True
    return bool(value)


def length(value: Value) -> int:
    """Bytes of a text, elements of a slice or map.

    Raises:
        TemplateError: it has no length.
    """
    match value:
        case str():
            return utf8_length(value)
        case Slice():
            return len(value.items)
        case Map():
            return len(value.entries)
        case None:
            raise TemplateError("len of nil pointer")
    raise TemplateError(f"len of type {type_name(value)}")


def is_nil(value: Value) -> bool:
    """Whether it equals nil."""
    return value is None or (isinstance(value, Slice | Map) and value.nil)


def type_name(value: Value) -> str:
    """Go's name of the type."""
    if isinstance(value, Composite):
        return value.type_name
    return _SCALARS.get(type(value), "<nil>")


_SCALARS: dict[type, str] = {
    bool: "bool",
    int: "int",
    Byte: "uint8",
    float: "float64",
    complex: "complex128",
    str: "string",
}
