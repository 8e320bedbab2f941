"""Read a request body: bytes to an object, and fields out of it by type. Pure.

Rules, which are Ollama's:
 * the content type is not looked at; the body is JSON whatever it says;
 * unknown fields are ignored, ``null`` is the same as absent;
 * a wrong type is 400, and the text names the field, what was expected and what was found.

This reader forgives what the manifest parser must not; the two are apart on purpose.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from server.errors import BadRequestError

_MOST_INT = 1 << 63
"""Integers beyond 64 bits are refused: nothing downstream can hold them."""


def read_object(body: bytes) -> Fields:
    """Decode a whole body.

    Raises:
        BadRequestError: it is empty, not JSON, or not an object.
    """
    if not body.strip():
        raise BadRequestError("missing request body")
    try:
        value = json.loads(body.decode("utf-8-sig"), parse_constant=_no_constant)
    except RecursionError as error:
        raise BadRequestError("request body: expected JSON, found too many levels") from error
    except ValueError as error:
        raise BadRequestError(f"request body: expected JSON, found an error: {error}") from error
    if not isinstance(value, dict):
        raise BadRequestError(f"request body: expected an object, found {type_name(value)}")
    if b"\\u" in body or b"\\U" in body:
        value = _whole_characters(value)
    return Fields(values=value)


def type_name(value: object) -> str:
    """The JSON name of a value's type."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list() | tuple():
            return "array"
        case _:
            return "object"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """An object whose fields are read one by one.

    Attributes:
        values: the decoded object.
        at: where it stands in the body, for messages; empty for the body itself.
    """

    values: Mapping[str, Any]
    at: str = ""

    def path(self, name: str) -> str:
        """The full name of a field, as messages spell it."""
        return f"{self.at}.{name}" if self.at else name

    def refuse(self, name: str, expected: str) -> NoReturn:
        """Say that a field has the wrong type.

        Raises:
            BadRequestError: always.
        """
        found = type_name(self.values.get(name))
        raise BadRequestError(f"{self.path(name)}: expected {expected}, found {found}")

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.values.get(name) is not None

    def string(self, name: str, default: str = "") -> str:
        """A text."""
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            self.refuse(name, "string")
        return value

    def boolean(self, name: str, *, default: bool) -> bool:
        """A truth value."""
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.refuse(name, "boolean")
        return value

    def integer(self, name: str, default: int = 0) -> int:
        """A whole number of at most 64 bits."""
        value = self.values.get(name)
        if value is None:
            return default
        whole = whole_number(value)
        if whole is None:
            self.refuse(name, "integer")
        return whole

    def object(self, name: str) -> Fields:
        """An object; an absent one is empty."""
        value = self.values.get(name)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            self.refuse(name, "object")
        return Fields(values=value, at=self.path(name))

    def array(self, name: str) -> tuple[Any, ...]:
        """An array of anything; an absent one is empty."""
        value = self.values.get(name)
        if value is None:
            return ()
        if not isinstance(value, list):
            self.refuse(name, "array")
        return tuple(value)

    def objects(self, name: str) -> tuple[Fields, ...]:
        """An array of objects."""
        found = []
        for index, value in enumerate(self.array(name)):
            at = f"{self.path(name)}[{index}]"
            if not isinstance(value, dict):
                raise BadRequestError(f"{at}: expected object, found {type_name(value)}")
            found.append(Fields(values=value, at=at))
        return tuple(found)

    def images(self, name: str) -> tuple[bytes, ...]:
        """An array of files in standard base64."""
        return tuple(
            decode_base64(value, at=f"{self.path(name)}[{index}]")
            for index, value in enumerate(self.array(name))
        )


def own_options(fields: Fields) -> Mapping[str, Any]:
    """The options of a request, with what llama-server's clients send beside them."""
    beside = {name: fields.values[name] for name in ("grammar", "lora") if fields.has(name)}
    return {**fields.object("options").values, **beside}


def whole_number(value: object) -> int | None:
    """A JSON number as an int (``3.0`` counts), or nothing where it is none of 64 bits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not -_MOST_INT <= value < _MOST_INT or value != int(value):
        return None
    return int(value)


def decode_base64(value: object, *, at: str) -> bytes:
    """Bytes of a base64 text in the standard alphabet, padded.

    Raises:
        BadRequestError: it is not.
    """
    if not isinstance(value, str):
        raise BadRequestError(f"{at}: expected base64 string, found {type_name(value)}")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequestError(f"{at}: expected base64 string, found other text") from error


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _whole_characters(value: Any) -> Any:
    r"""Replace halves of surrogate pairs (``"\ud800"``): they cannot be written as UTF-8."""
    match value:
        case str():
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        case list():
            return [_whole_characters(item) for item in value]
        case dict():
            return {_whole_characters(key): _whole_characters(item) for key, item in value.items()}
        case _:
            return value
