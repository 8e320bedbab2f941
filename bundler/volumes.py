"""Media by name: how much goes on one volume, and what is kept free on it. Pure."""

from __future__ import annotations

from typing import Final

from bundler.errors import PackError
from hwprobe.errors import QuantityError
from hwprobe.quantity import Bytes

LABEL: Final = "SATCHEL-{}"
"""What a volume is called: at most eleven characters up to SATCHEL-999, which FAT takes as a
label, in letters that are the same in either case and in every encoding."""
SIZES: Final = {
    "cd": 359_847 * 2_048,
    "dvd": 2_295_104 * 2_048,
    "dvd-dl": 4_173_824 * 2_048,
    "bd": 12_219_392 * 2_048,
    "bd-dl": 24_438_784 * 2_048,
    "bd-xl": 48_878_592 * 2_048,
    "fat32": 32 * 10**9,
}
"""Bytes of an 80 minute CD-R, DVD+R (the smaller of the two DVDs), DVD+R DL, BD-R, BD-R DL and
BD-R XL TL, in sectors as their standards have them; and the largest stick that Windows formats
as FAT32. Files are far below FAT32's limit of 4 GiB - 1 in any case."""
_SPARE: Final = 100
"""One part in so many is left to the file system."""
_RECORD_BYTES: Final = 104
_SMALL_BYTES: Final = 256 << 10
"""Statement, OCI documents, texts and roots of an ordinary bundle, with their last clusters."""


def parse_size(text: str) -> int:
    """A size of a volume: a name of `SIZES`, or a quantity such as ``4G`` or ``700 MB``.

    Raises:
        PackError: it is neither.
    """
    named = SIZES.get(text.strip().lower())
    if named is not None:
        return named
    try:
        size = int(Bytes.parse(text))
    except QuantityError as error:
        raise PackError(
            f"volume-size: expected a size such as 4G, or one of {', '.join(SIZES)}, found {text!r}"
        ) from error
    if size < 2 * _SMALL_BYTES:
        raise PackError(
            f"volume-size: expected at least {Bytes(2 * _SMALL_BYTES)}, found {Bytes(size)}"
        )
    return size


def segments_room(volume_bytes: int, chunks: int, small_bytes: int) -> int:
    """Bytes of segments that go on one volume; the rest is for what stands on every volume.

    Args:
        volume_bytes: size of the medium.
        chunks: of everything that is packed.
        small_bytes: of texts, licences and roots.

    Raises:
        PackError: the medium is too small for what stands on every volume.
    """
    everywhere = _SMALL_BYTES + small_bytes + (chunks + chunks // 16) * _RECORD_BYTES
    room = volume_bytes - volume_bytes // _SPARE - everywhere
    if room <= 0:
        raise PackError(
            f"volume-size: expected more than {Bytes(everywhere)}, which stand on every volume, "
            f"found {Bytes(volume_bytes)}"
        )
    return room
