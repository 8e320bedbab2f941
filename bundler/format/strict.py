"""Strict JSON for signed documents, its canonical writing, and typed readers of fields. Pure.

Readers carry the path of the field, so that a refusal names it:
``malformed statement: predicate.blobs[2].size: expected an integer, found true``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NoReturn, Self, TypeVar

from bundler.format.digest import Digest
from bundler.format.errors import DigestFormatError, FieldError, JsonError, ManifestError
from bundler.format.limits import MAX_INTEGER, MAX_JSON_DEPTH, MAX_STRING_BYTES

T = TypeVar("T")

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# The closing quote is optional, so that an open string is taken whole and work stays linear.
_TOKEN: Final = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)
_SHOWN: Final = 60


def parse_json(
    data: bytes,
    *,
    max_bytes: int,
    max_depth: int = MAX_JSON_DEPTH,
    max_string_bytes: int = MAX_STRING_BYTES,
) -> dict[str, Any]:
    """Read one JSON object, refusing all that two readers might read differently.

    Args:
        data: the document, UTF-8.
        max_bytes: most bytes accepted.
        max_depth: most levels of nesting accepted.
        max_string_bytes: most bytes of UTF-8 in one string.

    Raises:
        JsonError: too large, not UTF-8, not JSON, a member twice, a number that is no integer
            of 53 bits, a lone surrogate, too deep, or not an object.
    """
    if len(data) > max_bytes:
        raise JsonError(f"json: expected at most {max_bytes} bytes, found {len(data)}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise JsonError(f"json: expected UTF-8, found another byte at {error.start}") from error
    _check_depth(text, max_depth)
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique_members,
            parse_float=_refuse_float,
            parse_constant=_refuse_float,
            parse_int=_bounded_integer,
        )
    except (ValueError, RecursionError) as error:
        raise JsonError(f"json: {_one_line(str(error))}") from error
    if not isinstance(value, dict):
        raise JsonError(f"json: expected an object, found {describe(value)}")
    _check_strings(value, max_string_bytes)
    return value


def encode_json(value: Any, *, max_string_bytes: int = MAX_STRING_BYTES) -> bytes:
    """Write a value canonically (RFC 8785 without fractions): equal values, equal bytes.

    Args:
        value: objects, lists, texts, integers of 53 bits, booleans and ``None``.
        max_string_bytes: most bytes of UTF-8 in one string.

    Raises:
        JsonError: the value holds something that strict JSON does not allow.
    """
    return "".join(_pieces(value, 0, max_string_bytes)).encode("utf-8")


def _pieces(value: Any, depth: int, max_bytes: int) -> Iterable[str]:
    if depth >= MAX_JSON_DEPTH and isinstance(value, list | tuple | Mapping):
        raise JsonError(f"json: expected at most {MAX_JSON_DEPTH} levels, found more")
    match value:
        case None | bool():
            yield {None: "null", True: "true", False: "false"}[value]
        case int():
            if abs(value) > MAX_INTEGER:
                raise JsonError(f"json: expected an integer of 53 bits, found {value}")
            yield str(int(value))
        case str():
            _check_string(value, max_bytes)
            yield json.dumps(value, ensure_ascii=False)
        case list() | tuple():
            yield "["
            for position, item in enumerate(value):
                yield "," if position else ""
                yield from _pieces(item, depth + 1, max_bytes)
            yield "]"
        case Mapping():
            yield "{"
            for position, key in enumerate(sorted(value, key=_utf16)):
                yield ("," if position else "") + json.dumps(key, ensure_ascii=False) + ":"
                yield from _pieces(value[key], depth + 1, max_bytes)
            yield "}"
        case _:
            raise JsonError(f"json: expected no {type(value).__name__}, found {value!r}")


def _utf16(key: Any) -> bytes:
    if not isinstance(key, str):
        raise JsonError(f"json: expected member names of text, found {key!r}")
    _check_string(key)
    return key.encode("utf-16-be")


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise JsonError(f"json: expected each member once, found {_shorten(name)} twice")
            seen.add(name)
    return members


def _refuse_float(text: str) -> NoReturn:
    raise JsonError(f"json: expected integers only, found {text[:_SHOWN]}")


def _bounded_integer(text: str) -> int:
    # 17 characters: 16 digits of 2^53 and a sign. Also keeps int() from quadratic work.
    if len(text) > 17 or text == "-0" or abs(int(text)) > MAX_INTEGER:  # noqa: PLR2004
        raise JsonError(f"json: expected an integer of 53 bits, found {text[:_SHOWN]}")
    return int(text)


def _check_depth(text: str, max_depth: int) -> None:
    """Count brackets outside strings before the recursive parser sees them."""
    depth = 0
    for token in _TOKEN.finditer(text):
        first = token.group()[0]
        if first in "[{":
            depth += 1
            if depth > max_depth:
                raise JsonError(f"json: expected at most {max_depth} levels, found more")
        elif first in "]}":
            depth -= 1


def _check_strings(value: Any, max_bytes: int) -> None:
    """Every string short enough and encodable; depth is bounded already."""
    if isinstance(value, str):
        _check_string(value, max_bytes)
    elif isinstance(value, list):
        for item in value:
            _check_strings(item, max_bytes)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_string(key)
            _check_strings(item, max_bytes)


def _check_string(text: str, max_bytes: int = MAX_STRING_BYTES) -> None:
    try:
        size_bytes = len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise JsonError("json: expected whole characters, found half a surrogate pair") from error
    if size_bytes > max_bytes:
        raise JsonError(f"json: expected strings of at most {max_bytes} bytes, found more")


def describe(value: Any) -> str:
    """What a JSON value is, in a few words, for the ``found`` of a refusal."""
    match value:
        case None | bool() | int():
            return json.dumps(value)
        case str():
            return _shorten(value)
        case list() | tuple():
            return f"a list of {len(value)}"
        case Mapping():
            return f"an object of {len(value)}"
        case _:
            return f"a {type(value).__name__}"


def _shorten(text: str) -> str:
    """Quoted and escaped: what stands on a medium must not write into a terminal."""
    cut = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
    return ascii(cut)


def _one_line(text: str) -> str:
    return _CONTROL.sub("?", text.replace("\n", " "))[:200]


class Reader:
    """Reads the members of one JSON object, once each, and refuses those nobody asked for.

    Use as a context manager: leaving the block normally checks that no member was left over.
    """

    def __init__(self, value: Any, at: str, *, error: type[FieldError] = ManifestError) -> None:
        self._error = error
        self.at = at
        if not isinstance(value, dict):
            raise error(at=at or "document", expected="an object", found=describe(value))
        self._members: dict[str, Any] = dict(value)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._members:
            name = min(self._members)
            raise self._error(
                at=self.path(_printable(name)),
                expected="no such member",
                found=describe(self._members[name]),
                hint="a newer release may know it",
            )

    def path(self, name: str) -> str:
        """Path of a member, for messages."""
        return f"{self.at}.{name}" if self.at else name

    def refuse(self, name: str, expected: str, found: Any) -> NoReturn:
        """Refuse a member; ``found`` is shown shortened and escaped."""
        raise self._error(at=self.path(name), expected=expected, found=describe(found))

    def names(self) -> tuple[str, ...]:
        """Members that were not read yet, in order; for objects of free member names."""
        return tuple(sorted(self._members))

    def take(self, name: str) -> Any:
        """The member as it is; refused when it is missing."""
        if name not in self._members:
            raise self._error(at=self.path(name), expected="a value", found="nothing")
        return self._members.pop(name)

    def integer(self, name: str, *, at_least: int = 0, at_most: int = MAX_INTEGER) -> int:
        """An integer within bounds; true and false are none."""
        value = self.take(name)
        if isinstance(value, bool) or not isinstance(value, int):
            self.refuse(name, "an integer", value)
        if not at_least <= value <= at_most:
            self.refuse(name, f"an integer from {at_least} to {at_most}", value)
        return value

    def boolean(self, name: str) -> bool:
        """True or false."""
        value = self.take(name)
        if not isinstance(value, bool):
            self.refuse(name, "true or false", value)
        return value

    def text(
        self, name: str, *, pattern: str = "", max_bytes: int = 128, empty: bool = False
    ) -> str:
        """A string without control characters, of at most ``max_bytes`` bytes of UTF-8."""
        value = self.take(name)
        if not isinstance(value, str):
            self.refuse(name, "text", value)
        if not value and not empty:
            self.refuse(name, "text that is not empty", value)
        if len(value.encode()) > max_bytes:
            self.refuse(name, f"at most {max_bytes} bytes of text", value)
        if _CONTROL.search(value):
            self.refuse(name, "text without control characters", value)
        if pattern and not re.fullmatch(pattern, value, re.ASCII):
            self.refuse(name, f"text of the form {pattern}", value)
        return value

    def choice(self, name: str, allowed: tuple[str, ...]) -> str:
        """One of these texts."""
        value = self.take(name)
        if not isinstance(value, str) or value not in allowed:
            self.refuse(name, "one of " + ", ".join(allowed), value)
        return value

    def digest(self, name: str) -> Digest:
        """A digest in text form."""
        value = self.take(name)
        if not isinstance(value, str):
            self.refuse(name, "sha256:<64 hex>", value)
        try:
            return Digest.parse(value)
        except DigestFormatError as error:
            raise self._error(
                at=self.path(name), expected="sha256:<64 hex>", found=describe(value)
            ) from error

    def optional(self, name: str, read: Callable[[str], T]) -> T | None:
        """``null`` as ``None``, anything else as ``read`` reads it."""
        if name in self._members and self._members[name] is None:
            del self._members[name]
            return None
        return read(name)

    def objects(
        self, name: str, read: Callable[[Reader], T], *, at_most: int, at_least: int = 0
    ) -> tuple[T, ...]:
        """A list of objects, each read by ``read`` to its last member."""
        read_items: list[T] = []
        for position, item in enumerate(self._list(name, at_least=at_least, at_most=at_most)):
            at = f"{self.path(name)}[{position}]"
            with Reader(item, at, error=self._error) as reader:
                read_items.append(read(reader))
        return tuple(read_items)

    def items(
        self,
        name: str,
        read: Callable[[Reader, str], T],
        *,
        at_most: int,
        at_least: int = 0,
    ) -> tuple[T, ...]:
        """A list of plain values: each is offered as a member named like its place."""
        values = self._list(name, at_least=at_least, at_most=at_most)
        places = {f"[{position}]": item for position, item in enumerate(values)}
        with _PlaceReader(places, self.path(name), error=self._error) as reader:
            return tuple(read(reader, place) for place in places)

    def object(self, name: str, read: Callable[[Reader], T]) -> T:
        """A nested object, read by ``read`` to its last member."""
        with Reader(self.take(name), self.path(name), error=self._error) as reader:
            return read(reader)

    def anything(self, name: str) -> dict[str, Any]:
        """An object of any members."""
        value = self.take(name)
        if not isinstance(value, dict):
            self.refuse(name, "an object", value)
        return value

    def _list(self, name: str, *, at_least: int, at_most: int) -> list[Any]:
        value = self.take(name)
        if not isinstance(value, list):
            self.refuse(name, "a list", value)
        if not at_least <= len(value) <= at_most:
            self.refuse(name, f"a list of {at_least} to {at_most}", value)
        return value


class _PlaceReader(Reader):
    """A reader of list places: ``names[0]`` instead of ``names.[0]``."""

    def path(self, name: str) -> str:
        """Path of a place, for messages."""
        return self.at + name


def _printable(name: str) -> str:
    return ascii(name[:_SHOWN])[1:-1]
