"""Pictures inside prompts: rows that are no tokens of the vocabulary. Pure.

A picture takes as many places of a prompt as it has rows. Each place holds a negative number made
of the picture's digest and the row, so that two prompts begin the same way where, and only where,
they hold the same picture: sharing what is computed needs no rule of its own.

A client's prompt never holds such numbers: the runner makes them from the pictures it was sent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

_ROW_BITS = 24
"""A picture has fewer rows than this can count: the longest contexts have 2^20 tokens."""

_KEY_BYTES = 16
"""Of the digest. Why: 128 bits, so that nobody makes two pictures that share a place."""


def picture_key(data: bytes, part: int = 0) -> int:
    """What a picture is known by; ``part`` counts the pieces it was cut into."""
    digest = hashlib.sha256(part.to_bytes(4, "big") + data).digest()
    return int.from_bytes(digest[:_KEY_BYTES], "big")


def places(key: int, rows: int) -> tuple[int, ...]:
    """The places of a whole picture in a prompt."""
    base = key << _ROW_BITS
    return tuple(-1 - (base | row) for row in range(rows))


def is_place(token: int) -> bool:
    """Whether this place of a prompt belongs to a picture."""
    return token < 0


def key_of(place: int) -> int:
    """Whose place it is."""
    return (-1 - place) >> _ROW_BITS


def row_of(place: int) -> int:
    """Which row of the picture."""
    return (-1 - place) & ((1 << _ROW_BITS) - 1)


def only_tokens(prompt: Sequence[int]) -> tuple[int, ...]:
    """A prompt without its pictures."""
    return tuple(token for token in prompt if token >= 0)


def stretch(prompt: Sequence[int], start: int, end: int) -> int:
    """How far from ``start`` a prompt is all text, or all one picture; at most ``end``."""
    if not is_place(prompt[start]):
        part = prompt[start:end]
        if min(part) >= 0:
            return end
        return start + next(at for at, token in enumerate(part) if is_place(token))
    at = start + 1
    while at < end and prompt[at] == prompt[start] - (at - start):
        at += 1
    return at


def before_picture(prompt: Sequence[int], length: int) -> int:
    """The most of the first ``length`` places that does not end inside a picture."""
    if 0 < length < len(prompt) and is_place(prompt[length]):
        return max(0, length - row_of(prompt[length]))
    return length
