"""P+Q parity over groups of stored chunks: any two lost chunks of a group come back. Pure.

Layout and rules: docs/bundle-format.md, section 5.6. P is the XOR of the members, Q the sum of
2^j times member j in GF(2^8) with the polynomial 0x11d, as RAID-6 has them (H. P. Anvin, "The
mathematics of RAID-6"). The digest of every chunk says which are lost, so two are enough for two.

Members are added from the last to the first: Q is doubled before each, which eight bytes of a
word do at once, and no table is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bundler.format.errors import ChunkIndexError
from bundler.format.index import ChunkIndex, Codec
from bundler.format.manifest import Parity

SCHEME: Final = "pq-2"
GROUP: Final = 64
"""Members of a group as writers make them: two blocks for 64 cost 3.1 %."""
MAX_GROUP: Final = 255
"""Powers of 2 repeat after 255."""
_POLYNOMIAL: Final = 0x11D
_WORDS: Final = 16 << 10
"""Block of words that stays in the processor's cache."""
_HIGH: Final = np.uint64(0x8080808080808080)
_LOW_SEVEN: Final = np.uint64(0x7F7F7F7F7F7F7F7F)
_REDUCE: Final = np.uint64(_POLYNOMIAL & 0xFF)
_ONE: Final = np.uint64(1)
_SEVEN: Final = np.uint64(7)

Words = NDArray[np.uint64]
Octets = NDArray[np.uint8]


def group_count(chunks: int, group: int) -> int:
    """How many groups so many chunks make."""
    return -(-chunks // group)


def group_members(number: int, chunks: int, group: int) -> range:
    """Places of the chunks of one group: neighbours are in different ones."""
    return range(number, chunks, group_count(chunks, group))


def block_lengths(stored_lens: Sequence[int], group: int) -> tuple[int, ...]:
    """Length of both parity blocks of each group: its longest member, and at least one byte."""
    count = len(stored_lens)
    return tuple(
        max(1, *(stored_lens[place] for place in group_members(number, count, group)))
        for number in range(group_count(count, group))
    )


class Accumulator:
    """P and Q of one group, as they grow."""

    def __init__(self, size_bytes: int) -> None:
        self._size = size_bytes
        words = -(-size_bytes // 8)
        self._p: Words = np.zeros(words, dtype=np.uint64)
        self._q: Words = np.zeros(words, dtype=np.uint64)
        self._carry: Words = np.zeros(min(words, _WORDS), dtype=np.uint64)

    def add(self, stored: bytes | bytearray | memoryview) -> None:
        """The next member, from the last of the group to the first; an empty one counts, too."""
        whole = len(stored) // 8
        data: Words = np.frombuffer(stored, dtype=np.uint64, count=whole)
        for start in range(0, len(self._q), _WORDS):
            block = self._q[start : start + _WORDS]
            carry = self._carry[: len(block)]
            np.bitwise_and(block, _HIGH, out=carry)
            np.right_shift(carry, _SEVEN, out=carry)
            np.multiply(carry, _REDUCE, out=carry)
            np.bitwise_and(block, _LOW_SEVEN, out=block)
            np.left_shift(block, _ONE, out=block)
            np.bitwise_xor(block, carry, out=block)
            part = data[start : start + _WORDS]
            if len(part):
                np.bitwise_xor(block[: len(part)], part, out=block[: len(part)])
                sums = self._p[start : start + len(part)]
                np.bitwise_xor(sums, part, out=sums)
        rest = np.frombuffer(stored, dtype=np.uint8)[8 * whole :]
        for total in (self._p, self._q):
            octets: Octets = total.view(np.uint8)
            octets[8 * whole : 8 * whole + len(rest)] ^= rest

    @property
    def p(self) -> Octets:
        """The XOR so far."""
        return self._p.view(np.uint8)[: self._size]

    @property
    def q(self) -> Octets:
        """The weighted sum so far."""
        return self._q.view(np.uint8)[: self._size]


def _tables() -> tuple[list[int], list[int]]:
    powers, logs, value = [0] * 510, [0] * 256, 1
    for exponent in range(255):
        powers[exponent] = powers[exponent + 255] = value
        logs[value] = exponent
        value <<= 1
        if value > 0xFF:  # noqa: PLR2004 - a byte
            value ^= _POLYNOMIAL
    return powers, logs


_POWERS, _LOGS = _tables()


def _times(factor: int, data: Octets) -> Octets:
    """Every byte times a factor, which is not 0."""
    log = _LOGS[factor]
    table = np.array([0, *(_POWERS[_LOGS[byte] + log] for byte in range(1, 256))], dtype=np.uint8)
    product: Octets = table[data]
    return product


def _inverse(factor: int) -> int:
    return _POWERS[255 - _LOGS[factor]]


def recover(
    lost: Sequence[int], known: Accumulator, p: Any | None, q: Any | None
) -> Mapping[int, Octets] | None:
    """The lost members of a group.

    Args:
        lost: their numbers in the group, from 0.
        known: the group with nothing in the place of the lost ones.
        p: the group's P block, or ``None`` if it is lost, too.
        q: the group's Q block, likewise.

    Returns:
        By number, as long as the parity blocks; ``None`` if too much is lost. What comes back is
        right only if the blocks were.
    """
    match lost:
        case []:
            return {}
        case [one] if p is not None:
            return {one: known.p ^ np.frombuffer(p, dtype=np.uint8)}
        case [one] if q is not None:
            weighted = known.q ^ np.frombuffer(q, dtype=np.uint8)
            return {one: _times(_inverse(_POWERS[one]), weighted)}
        case [one, other] if p is not None and q is not None:
            both = known.p ^ np.frombuffer(p, dtype=np.uint8)
            weighted = known.q ^ np.frombuffer(q, dtype=np.uint8)
            mixed = weighted ^ _times(_POWERS[one], both)
            second = _times(_inverse(_POWERS[one] ^ _POWERS[other]), mixed)
            return {one: both ^ second, other: second}
        case _:
            return None


def check_parity(parity: Parity, own: ChunkIndex, index: ChunkIndex) -> None:
    """Compare a parity index with the artifact it belongs to.

    Args:
        parity: what the signed statement says.
        own: the parity's own index, in the format of section 6.
        index: the checked index of the artifact.

    Raises:
        ChunkIndexError: it describes other blocks.
    """
    lengths = block_lengths([one.stored_len for one in index.records], parity.group)
    expected = [length for length in lengths for _ in ("P", "Q")]
    found = [one.plain_len for one in own.records]
    named = [(one.digest, one.size_bytes) for one in parity.segments]
    if found != expected:
        raise ChunkIndexError(
            at="parity", expected=f"{len(expected)} blocks of their groups", found="others"
        )
    if any(one.codec is not Codec.RAW for one in own.records):
        raise ChunkIndexError(at="parity", expected="unencoded blocks", found="encoded ones")
    if [(one.digest, one.size_bytes) for one in own.segments] != named:
        raise ChunkIndexError(at="parity", expected="segments of the statement", found="others")
