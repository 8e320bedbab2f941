"""How Go's ``Sprintf`` lays out texts and numbers, verb by verb. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from server.prompt.gotemplate.format import shortest_float, special_float
from server.prompt.gotemplate.literals import (
    MAX_RUNE,
    REPLACEMENT,
    SURROGATES,
    is_print,
    quote,
    utf8,
)
from server.prompt.gotemplate.values import Value

DEFAULT_PRECISION = 6

_BASES = {"b": "b", "o": "o", "O": "o", "d": "d", "v": "d", "x": "x", "X": "X"}
_PREFIXES = {"b": "0b", "o": "0", "O": "0", "x": "0x", "X": "0X"}
_FLOAT_VERBS = frozenset("beEfFgGvxX")


@dataclass(slots=True, kw_only=True)
class Spec:
    """One directive: its verb and how to lay it out; filled in while it is read.

    Attributes:
        names: write the names of fields (``%+v``).
        syntax: write what Go source would have (``%#v``).
    """

    verb: str = ""
    minus: bool = False
    plus: bool = False
    sharp: bool = False
    space: bool = False
    zero: bool = False
    names: bool = False
    syntax: bool = False
    width: int | None = None
    precision: int | None = None

    def pad(self, text: str, *, zero: bool = True) -> str:
        """Fill up to the width, counted in characters; with zeros if asked for and allowed."""
        width = self.width or 0
        if self.minus:
            return text.ljust(width)
        return text.rjust(width, "0" if self.zero and zero else " ")

    def sign(self, *, negative: bool) -> str:
        """The sign to write."""
        return "-" if negative else "+" if self.plus else " " if self.space else ""


def scalar(value: Value, spec: Spec) -> str | None:
    """A value without parts; ``None`` if the verb does not suit it."""
    match value:
        case bool():
            return spec.pad("true" if value else "false") if spec.verb in "tv" else None
        case int():
            return _integer(int(value), spec)
        case float():
            return _float(value, spec) if spec.verb in _FLOAT_VERBS else None
        case complex():
            return _complex(value, spec) if spec.verb in _FLOAT_VERBS else None
        case str():
            return text_of(value, spec)
    return None


def _complex(value: complex, spec: Spec) -> str:
    imaginary = _float(value.imag, replace(spec, plus=True))
    return f"({_float(value.real, spec)}{imaginary}i)"


# Texts.


def text_of(text: str, spec: Spec) -> str | None:
    """A text; ``None`` if the verb does not suit it."""
    writers: dict[str, Callable[[str, Spec], str]] = {
        "v": _quoted if spec.syntax else cut,
        "s": cut,
        "q": _quoted,
        "x": _hex,
        "X": _hex,
    }
    if spec.verb not in writers:
        return None
    return spec.pad(writers[spec.verb](text, spec))


def cut(text: str, spec: Spec) -> str:
    """As many characters as the precision says."""
    return text if spec.precision is None else text[: spec.precision]


def _quoted(text: str, spec: Spec) -> str:
    text = cut(text, spec)
    raw = spec.sharp and "`" not in text
    if raw and spec.verb == "q" and all(is_print(char) or char == "\t" for char in text):
        return f"`{text}`"
    return quote(text, ascii_only=spec.plus)


def _hex(text: str, spec: Spec) -> str:
    data = utf8(text)[: spec.precision]
    digits = data.hex(" ") if spec.space else data.hex()
    if spec.sharp and data:
        digits = "0x" + digits.replace(" ", " 0x")
    return digits.upper() if spec.verb == "X" else digits


# Numbers.


def _integer(value: int, spec: Spec) -> str | None:
    if spec.verb in _BASES:
        return _in_base(value, spec)
    if spec.verb not in "cqU":
        return None
    if spec.verb == "U":
        return _code_point(value, spec)
    char = chr(value) if 0 <= value <= MAX_RUNE and value not in SURROGATES else REPLACEMENT
    if spec.verb == "q":
        return spec.pad(quote(char, mark="'", ascii_only=spec.plus))
    return spec.pad(char)


def _in_base(value: int, spec: Spec) -> str:
    sign = spec.sign(negative=value < 0)
    if spec.precision == 0 and value == 0:
        return " " * (spec.width or 0)
    digits = format(abs(value), _BASES[spec.verb])
    if spec.precision is not None:
        digits = digits.rjust(spec.precision, "0")
    elif spec.zero and not spec.minus and spec.width is not None:
        digits = digits.rjust(spec.width - len(sign), "0")
    if spec.sharp and not (_BASES[spec.verb] == "o" and digits.startswith("0")):
        digits = _PREFIXES.get(spec.verb, "") + digits
    if spec.verb == "O":
        digits = "0o" + digits
    return spec.pad(sign + digits, zero=False)


def _code_point(value: int, spec: Spec) -> str:
    digits = format(value & ((1 << 64) - 1), "X").rjust(max(4, spec.precision or 0), "0")
    shown = ""
    if spec.sharp and 0 <= value <= MAX_RUNE and value not in SURROGATES and is_print(chr(value)):
        shown = f" '{chr(value)}'"
    return spec.pad(f"U+{digits}{shown}", zero=False)


def _float(value: float, spec: Spec) -> str:
    special = special_float(value)
    if special is not None:
        sign = spec.sign(negative=special == "-Inf")
        sign = sign or ("+" if special == "+Inf" else "")
        return spec.pad(sign + special.lstrip("+-"), zero=False)
    digits = _unsigned_float(abs(value), spec)
    if spec.sharp and spec.verb != "b":
        digits = _with_point(digits, spec)
    sign = spec.sign(negative=math.copysign(1, value) < 0)
    if spec.zero and not spec.minus:
        digits = digits.rjust((spec.width or 0) - len(sign), "0")
    return spec.pad(sign + digits)


def _unsigned_float(value: float, spec: Spec) -> str:
    verb = spec.verb.replace("v", "g").replace("F", "f")
    if verb in "bxX":
        written = _binary(value) if verb == "b" else _hexadecimal(value, spec.precision)
        return written.upper() if verb == "X" else written
    if verb in "gG" and spec.precision is None:
        written = shortest_float(value)
        return written.upper() if verb == "G" else written
    precision = DEFAULT_PRECISION if spec.precision is None else spec.precision
    return format(value, f".{precision}{verb}")


def _with_point(digits: str, spec: Spec) -> str:
    """A number with a decimal point, and for ``g`` as many digits as the precision says."""
    marks = {"E": "E", "G": "E", "x": "p", "X": "P"}
    mantissa, mark, exponent = digits.partition(marks.get(spec.verb, "e"))
    wanted = 0
    if spec.verb in "gGvx":
        wanted = DEFAULT_PRECISION if spec.precision is None else spec.precision
        significant = mantissa.replace(".", "").lstrip("0")
        wanted -= len(significant) + (mantissa == "0")
    if "." not in mantissa:
        mantissa += "."
    return mantissa + "0" * wanted + mark + exponent


def _binary(value: float) -> str:
    """An integer times a power of two."""
    if value == 0:
        return "0p-1074"
    fraction, exponent = math.frexp(value)
    # Numbers below the normal range have fewer digits, not smaller exponents.
    exponent = max(exponent - _MANTISSA_BITS, _LEAST_EXPONENT)
    return f"{int(math.ldexp(value, -exponent))}p{exponent:+d}" if fraction else ""


def _hexadecimal(value: float, precision: int | None) -> str:
    """A hexadecimal fraction from one to two, times a power of two."""
    fraction, exponent = math.frexp(value)
    mantissa = int(fraction * (1 << _MANTISSA_BITS))  # the first digit is its top bit
    exponent = exponent - 1 if value else 0
    bits = _MANTISSA_BITS - 1
    if precision is not None and precision * 4 < bits:
        shift = bits - precision * 4
        rest, mantissa = mantissa & ((1 << shift) - 1), mantissa >> shift
        half = 1 << (shift - 1)
        mantissa += rest > half or (rest == half and mantissa & 1)
        bits -= shift
        if mantissa >> (bits + 1):
            mantissa, exponent = mantissa >> 1, exponent + 1
    digits = format(mantissa & ((1 << bits) - 1), "x").rjust(bits // 4, "0") if bits else ""
    digits = digits.rstrip("0") if precision is None else digits.ljust(precision, "0")
    point = f".{digits}" if digits else ""
    return f"0x{mantissa >> bits}{point}p{exponent:+03d}"


_MANTISSA_BITS = 53
_LEAST_EXPONENT = -1074
