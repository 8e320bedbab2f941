"""Bytes as a few texts that fit on paper, as QR codes or to be typed, in any order. Pure.

    SATCHELQ 1 <set> <part> <of> <data> <check>        without the spaces

Only letters and the digits are used, in one case: a hand scanner types like a keyboard, and other
characters lie elsewhere on other keyboards. ``set`` (six characters) is the same for all parts of
one thing, ``part`` and ``of`` are two digits each, ``data`` is base 32, and ``check`` (four
characters) tells a slip from the right text. None of this is a signature: what is read here is
judged like bytes of any other origin.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from bundler.format.errors import PaperError
from bundler.format.limits import MAX_UPDATE_STORED_BYTES

DEFAULT_CHARACTERS: Final = 1_200
"""A QR code of about 90 modules a side, which a telephone reads from paper."""
LEAST_CHARACTERS: Final = 64
MOST_CHARACTERS: Final = 3_391
"""The largest QR code, version 40, at error correction M (ISO/IEC 18004, table 7)."""
MAX_PARTS: Final = 99
_HEAD: Final = "SATCHELQ1"
_SET: Final = 6
_CHECK: Final = 4
_FRAME: Final = re.compile(
    rf"{_HEAD}([A-Z2-7]{{{_SET}}})([0-9]{{2}})([0-9]{{2}})([A-Z2-7]+)([A-Z2-7]{{{_CHECK}}})"
)
_OVERHEAD: Final = len(_HEAD) + _SET + 4 + _CHECK


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One text, read."""

    set_id: str
    number: int
    of: int
    data: str


def split(data: bytes, *, characters: int = DEFAULT_CHARACTERS) -> tuple[str, ...]:
    """Texts of at most so many characters; ``join(split(d)) == d``, in any order.

    Args:
        data: at least one byte.
        characters: 64 to 3 391.

    Raises:
        PaperError: it needs more than 99 texts.
    """
    assert data
    assert LEAST_CHARACTERS <= characters <= MOST_CHARACTERS
    encoded = base64.b32encode(data).decode("ascii").rstrip("=")
    each = characters - _OVERHEAD
    count = -(-len(encoded) // each)
    if count > MAX_PARTS or len(data) > MAX_UPDATE_STORED_BYTES:
        raise PaperError(
            f"paper: expected at most {MAX_PARTS} parts, found {count}",
            hint="take more characters for each, or leave out what the site has",
        )
    # Parts of about equal length make codes of one size.
    each = -(-len(encoded) // count)
    set_id = _sum(data, _SET)
    texts = []
    for place in range(count):
        head = f"{_HEAD}{set_id}{place + 1:02}{count:02}"
        text = head + encoded[place * each : (place + 1) * each]
        texts.append(text + _sum(text.encode("ascii"), _CHECK))
    return tuple(texts)


def read_part(text: str) -> Part:
    """Read one text; white space and case do not matter.

    Raises:
        PaperError: it is none, or not as it was printed.
    """
    plain = "".join(text.split())
    if not plain.isascii() or len(plain) > MOST_CHARACTERS:
        raise PaperError(f"code: expected a text of ours, found {text[:24]!r}")
    plain = plain.upper()
    match = _FRAME.fullmatch(plain)
    if match is None:
        raise PaperError(
            f"code: expected a text that begins with {_HEAD}, found {plain[:24]!r}",
            hint="a scanner may type for another keyboard than this computer's",
        )
    if _sum(plain[:-_CHECK].encode("ascii"), _CHECK) != match[5]:
        raise PaperError(
            f"code {match[2]} of {match[3]}: expected the text as it was printed, found another",
            hint="scan it again; a scanner may type for another keyboard than this computer's",
        )
    number, of = int(match[2]), int(match[3])
    if not 1 <= number <= of:
        raise PaperError(f"code: expected a number from 1 to {of}, found {number}")
    return Part(set_id=match[1], number=number, of=of, data=match[4])


def join(texts: Iterable[str]) -> bytes:
    """The bytes of a whole set; duplicates do not matter.

    Raises:
        PaperError: a text is wrong, of another set, or missing.
    """
    parts: dict[int, Part] = {}
    for text in texts:
        part = read_part(text)
        first = next(iter(parts.values()), part)
        if (part.set_id, part.of) != (first.set_id, first.of):
            raise PaperError(
                f"code {part.number} of {part.of}: expected one of the set {first.set_id}, "
                f"found one of {part.set_id}",
                hint="scan the codes of one sheet only",
            )
        if parts.setdefault(part.number, part).data != part.data:
            raise PaperError(f"code {part.number}: expected one text, found two that differ")
    if not parts:
        raise PaperError("codes: expected at least one, found none")
    of = next(iter(parts.values())).of
    missing = [number for number in range(1, of + 1) if number not in parts]
    if missing:
        listed = ", ".join(map(str, missing))
        raise PaperError(f"codes: expected {of}, missing: {listed}", hint="scan those as well")
    data = _decode("".join(parts[number].data for number in range(1, of + 1)))
    if _sum(data, _SET) != parts[1].set_id:
        raise PaperError("codes: expected the bytes that were printed, found others")
    return data


def _decode(encoded: str) -> bytes:
    try:
        return base64.b32decode(encoded + "=" * (-len(encoded) % 8))
    except (binascii.Error, ValueError) as error:
        raise PaperError("codes: expected whole base 32, found a part of it") from error


def _sum(data: bytes, characters: int) -> str:
    return base64.b32encode(hashlib.sha256(data).digest()).decode("ascii")[:characters]
