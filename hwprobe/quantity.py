"""Byte quantities: parse ``24 GiB``, print ``1.5 GiB``, add and subtract. Nothing else."""

from __future__ import annotations

import re

from hwprobe.errors import QuantityError

_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "k": 2**10,
    "m": 2**20,
    "g": 2**30,
    "t": 2**40,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_TEXT = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")
_STEPS = (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


class Bytes(int):
    """A number of bytes that prints itself in binary units.

    ``Bytes.parse(str(b))`` is within 0.5 % of ``b``; arithmetic stays exact.
    """

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Bytes:
        """Read ``1073741824``, ``1 GiB``, ``1.5g`` or ``2 GB``; a bare letter is binary.

        Raises:
            QuantityError: the text is not a quantity.
        """
        match = _TEXT.fullmatch(text)
        unit = _UNITS.get(match[2].lower()) if match else None
        if match is None or unit is None:
            raise QuantityError(
                f"expected a size such as 24 GiB, found {text!r}",
                hint="units are B, KiB, MiB, GiB, TiB and KB, MB, GB, TB",
            )
        whole, _, fraction = match[1].partition(".")
        return cls((int(whole + fraction) * unit) // 10 ** len(fraction))

    def __str__(self) -> str:
        sign, size = ("-", -int(self)) if self < 0 else ("", int(self))
        for name, step in _STEPS:
            if size >= step:
                value = size / step
                digits = 2 if value < 10 else 1 if value < 100 else 0  # noqa: PLR2004
                return f"{sign}{value:.{digits}f} {name}"
        return f"{sign}{size} B"

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    def __add__(self, other: int) -> Bytes:
        return Bytes(int(self) + int(other))

    __radd__ = __add__

    def __sub__(self, other: int) -> Bytes:
        return Bytes(int(self) - int(other))

    def __rsub__(self, other: int) -> Bytes:
        return Bytes(int(other) - int(self))

    def __mul__(self, other: int) -> Bytes:
        return Bytes(int(self) * int(other))

    __rmul__ = __mul__
