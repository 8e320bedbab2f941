"""What Go's literals mean, and how Go writes a string as one. Pure.

A Go string is bytes, mostly UTF-8. Here it is a `str` in which a byte that is not UTF-8 stands as
a lone surrogate (Python's ``surrogateescape``); `finished` turns such rests into U+FFFD.
"""

from __future__ import annotations

import contextlib
import math
import re
import unicodedata
from dataclasses import dataclass

INT64_MAX = (1 << 63) - 1
INT64_MIN = -(1 << 63)
UINT64_MAX = (1 << 64) - 1
MAX_INTEGER_DIGITS = 308
"""More make a number that is too large even for a float."""
MAX_RUNE = 0x10FFFF
SURROGATES = range(0xD800, 0xE000)
REPLACEMENT = "\ufffd"

_SIMPLE_ESCAPES = {
    "a": "\a",
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "v": "\v",
    "\\": "\\",
}
_WRITTEN_ESCAPES = {char: f"\\{letter}" for letter, char in _SIMPLE_ESCAPES.items()}
_ESCAPE = re.compile(
    r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-3][0-7]{2})|(.)", re.DOTALL
)
_INTEGER = re.compile(
    r"([+-]?)(?:0[xX](?P<x>[0-9a-fA-F]+)|0[bB](?P<b>[01]+)|0[oO]?(?P<o>[0-7]+)|(?P<d>0|[1-9][0-9]*))"
)
_BASES = {"x": 16, "b": 2, "o": 8, "d": 10}
_DECIMAL_FLOAT = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_HEX_FLOAT = re.compile(r"[+-]?0[xX](?:[0-9a-fA-F]+\.?[0-9a-fA-F]*|\.[0-9a-fA-F]+)[pP][+-]?[0-9]+")
_UNDERSCORES = re.compile(
    r"[+-]?(?:0[xX](?:_?[0-9a-fA-F])*|0[bBoO](?:_?[0-9])*|[0-9](?:_?[0-9])*)?"
    r"(?:\.(?:[0-9a-fA-F](?:_?[0-9a-fA-F])*)?)?(?:[eEpP][+-]?[0-9](?:_?[0-9])*)?"
)


def utf8(text: str) -> bytes:
    """The bytes Go would hold."""
    return text.encode("utf-8", "surrogateescape")


def from_utf8(data: bytes) -> str:
    """A Go string from its bytes."""
    return data.decode("utf-8", "surrogateescape")


def utf8_length(text: str) -> int:
    """Length in bytes."""
    return len(text) if text.isascii() else len(utf8(text))


def clean(text: str) -> str:
    """Text from outside, with its lone surrogates replaced, as Go's JSON reader does."""
    if text.isascii():
        return text
    return re.sub("[\ud800-\udfff]", REPLACEMENT, text)


def finished(text: str) -> str:
    """The valid text a Go string amounts to."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return utf8(text).decode("utf-8", "replace")
    return text


def unquote(literal: str) -> str:
    """What a quoted string stands for.

    Raises:
        ValueError: it holds an escape that Go does not know.
    """
    body = literal[1:-1]
    if literal[0] == "`":
        return body.replace("\r", "")
    parts: list[str] = []
    position = 0
    while (escape := body.find("\\", position)) >= 0:
        parts.append(body[position:escape])
        char, position = _unescape(body, escape + 1, mark='"')
        parts.append(char)
    parts.append(body[position:])
    return from_utf8(utf8("".join(parts)))


def unquote_char(literal: str) -> int:
    """The code point of a character constant.

    Raises:
        ValueError: it is not exactly one character.
    """
    body = literal[1:-1]
    if not body:
        raise ValueError("invalid syntax")
    if body[0] != "\\":
        char, end = body[0], 1
    else:
        char, end = _unescape(body, 1, mark="'")
    if end != len(body):
        raise ValueError(f"malformed character constant: {literal}")
    code = ord(char)
    # A byte escape of 0x80 or more is that number here, not a broken string.
    return code - 0xDC00 if code in SURROGATES else code


def _unescape(body: str, position: int, *, mark: str) -> tuple[str, int]:
    """Read the escape behind a backslash: its character, and where it ends."""
    match = _ESCAPE.match(body, position)
    if match is None:
        raise ValueError("invalid syntax")
    byte, short, long, octal, single = match.groups()
    if byte or octal:
        value = int(byte, 16) if byte else int(octal, 8)
        return from_utf8(bytes([value])), match.end()
    if short or long:
        value = int(short or long, 16)
        if value > MAX_RUNE or value in SURROGATES:
            raise ValueError("invalid syntax")
        return chr(value), match.end()
    if single != mark and single not in _SIMPLE_ESCAPES:
        raise ValueError("invalid syntax")
    return _SIMPLE_ESCAPES.get(single, single), match.end()


@dataclass(frozen=True, slots=True)
class Literal:
    """A number as written, and its value; an ``overflow`` has none that fits."""

    text: str
    value: int | float | complex = 0
    overflow: bool = False


def read_number(text: str) -> Literal:
    """What a number stands for, of the type its syntax gives it.

    Raises:
        ValueError: it is not a number of Go's.
    """
    if text.endswith("i"):
        return Literal(text, complex(0, _float_or_refuse(text[:-1], text)))
    integer = _integer(text)
    if integer is not None and INT64_MIN <= integer <= INT64_MAX:
        return Literal(text, integer)
    if integer is not None and INT64_MAX < integer <= UINT64_MAX and not text.startswith("+"):
        return Literal(text, overflow=True)
    value = _float_or_refuse(text, text)
    if not set(text) & set(".eEpP"):
        raise ValueError(f"integer overflow: {quote(text)}")
    return Literal(text, value)


def read_complex(text: str) -> complex:
    """What ``1+2i`` stands for.

    Raises:
        ValueError: it is not a complex number of Go's.
    """
    cut = max(
        index for index, char in enumerate(text) if char in "+-" and text[index - 1] not in "eEpP"
    )
    return complex(_float_or_refuse(text[:cut], text), _float_or_refuse(text[cut:-1], text))


def _integer(text: str) -> int | None:
    if "_" in text and not _UNDERSCORES.fullmatch(text):
        return None
    match = _INTEGER.fullmatch(text.replace("_", ""))
    if match is None:
        return None
    kind, digits = next((kind, match[kind]) for kind in _BASES if match[kind] is not None)
    if len(digits.lstrip("0")) > MAX_INTEGER_DIGITS:
        return None
    value = int(digits, _BASES[kind])
    return -value if match[1] == "-" else value


def _float_or_refuse(text: str, whole: str) -> float:
    plain = text.replace("_", "")
    value = math.inf
    if "_" not in text or _UNDERSCORES.fullmatch(text):
        if _DECIMAL_FLOAT.fullmatch(plain):
            value = float(plain)
        elif _HEX_FLOAT.fullmatch(plain):
            with contextlib.suppress(OverflowError):
                value = float.fromhex(plain)
    if math.isinf(value):
        raise ValueError(f"illegal number syntax: {quote(whole)}")
    return value


def quote(text: str, *, mark: str = '"', ascii_only: bool = False) -> str:
    """As Go's ``%q`` writes a string, or with another mark a character."""
    return mark + "".join(_written(char, mark, ascii_only=ascii_only) for char in text) + mark


def _written(char: str, mark: str, *, ascii_only: bool) -> str:
    code = ord(char)
    if char in (mark, "\\"):
        return f"\\{char}"
    if code in SURROGATES:
        return f"\\x{code - 0xDC00:02x}"
    if is_print(char) and (code < 0x80 or not ascii_only):  # noqa: PLR2004 - the end of ASCII
        return char
    if char in _WRITTEN_ESCAPES:
        return _WRITTEN_ESCAPES[char]
    if code < 0x20 or code == 0x7F:  # noqa: PLR2004 - the control characters
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"  # noqa: PLR2004 - beyond BMP


def is_print(char: str) -> bool:
    """Letters, marks, numbers, punctuation, symbols and the plain blank."""
    return char == " " or unicodedata.category(char)[0] in "LMNPS"
