"""A byte-level BPE vocabulary of any size, made by rule, whose words are single tokens. Pure.

Words are syllables of one consonant and one vowel: ``ba``, `` kite``, `` zoru`` and so on. The
merges are ranked so that a word of up to three syllables with a space before it always becomes
one token if the vocabulary holds it. So a prompt of n words from `Vocabulary.words` is n tokens
in every engine, and a text prompt is as exact as a list of token ids.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""Control tokens; the first ends a text, and is also the padding."""

_CONSONANTS = "bcdfghjklmnpqrstvwxyz"
_VOWELS = "aeiou"
_SPACE = "Ġ"
"""How GPT-2's byte alphabet writes the space."""

SMALLEST = 4096
"""Below this there are few words."""

_NORMAL, _CONTROL = 1, 3
_PRINTABLE = (range(0x21, 0x7F), range(0xA1, 0xAD), range(0xAE, 0x100))


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """What a GGUF file says about its tokenizer.

    Attributes:
        tokens: texts in GPT-2's byte alphabet, by id.
        merges: ``"left right"``, best first.
        types: 1 normal, 3 control, by id.
        silent: ids the model must never sample: control tokens and single bytes. Without them
            every generated token is letters: none ends the text early, none is half a character.
        words: single-token words of two and three syllables, each with the space before it.
    """

    tokens: tuple[str, ...]
    merges: tuple[str, ...]
    types: tuple[int, ...]
    silent: range
    words: tuple[str, ...]


def make(size: int) -> Vocabulary:
    """A vocabulary of exactly ``size`` tokens.

    Raises:
        ValueError: ``size`` is below `SMALLEST`, or larger than the rule can make.
    """
    base = [*SPECIALS, *byte_alphabet()]
    merged = tuple(itertools.islice(_merges(), max(size - len(base), 0)))
    if len(base) + len(merged) != size or size < SMALLEST:
        raise ValueError(f"vocabulary: expected {SMALLEST} or more tokens, found {size}")
    tokens = (*base, *(left + right for left, right in merged))
    assert len(set(tokens)) == size
    words = (token.replace(_SPACE, " ") for token in tokens if token.startswith(_SPACE))
    return Vocabulary(
        tokens=tokens,
        merges=tuple(f"{left} {right}" for left, right in merged),
        types=(*(_CONTROL for _ in SPECIALS), *(_NORMAL for _ in tokens[len(SPECIALS) :])),
        silent=range(len(base)),
        words=tuple(word for word in words if len(word) > 1 + 2),
    )


def byte_alphabet() -> tuple[str, ...]:
    """One printable character per byte, in the order of GPT-2's encoder table."""
    printable = [code for codes in _PRINTABLE for code in codes]
    others = [code for code in range(256) if code not in printable]
    return (*map(chr, printable), *(chr(256 + index) for index in range(len(others))))


def _merges() -> Iterator[tuple[str, str]]:
    """Pairs to join, best first.

    Syllables come before all else, so that a word is first cut into them; then growth from the
    left, which is unambiguous.
    """
    syllables = [left + right for left in _CONSONANTS for right in _VOWELS]
    yield from ((syllable[0], syllable[1]) for syllable in syllables)
    yield from ((_SPACE, syllable) for syllable in syllables)
    pairs = list(itertools.product(syllables, syllables))
    yield from ((_SPACE + first, second) for first, second in pairs)
    yield from pairs
    for third in syllables:
        yield from ((_SPACE + first + second, third) for first, second in pairs)
