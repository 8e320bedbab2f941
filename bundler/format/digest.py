"""Digests and descriptors: what a file is called, and how large it is. Pure values."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final

from bundler.format.errors import DigestFormatError

_HEX: Final = re.compile(r"[0-9a-f]{64}")
_PREFIX: Final = "sha256:"


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A SHA-256 digest; ``Digest.parse(str(d)) == d``.

    Attributes:
        hex: 64 lower-case hexadecimal digits, so it is safe as a file name.
    """

    hex: str

    def __post_init__(self) -> None:
        """Refuse anything but 64 lower-case hexadecimal digits."""
        if not _HEX.fullmatch(self.hex):
            raise DigestFormatError(
                f"digest: expected 64 lower-case hexadecimal digits, found {self.hex[:80]!r}"
            )

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Read ``sha256:<64 lower-case hex>``.

        Raises:
            DigestFormatError: the text has another form.
        """
        if not text.startswith(_PREFIX):
            raise DigestFormatError(f"digest: expected sha256:<64 hex>, found {text[:80]!r}")
        return cls(text[len(_PREFIX) :])

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview) -> Digest:
        """Digest of these bytes."""
        return cls(hashlib.sha256(data).hexdigest())

    @classmethod
    def from_raw(cls, raw: bytes) -> Digest:
        """Digest from its 32 bytes."""
        return cls(raw.hex())

    @property
    def raw(self) -> bytes:
        """The 32 bytes of the digest."""
        return bytes.fromhex(self.hex)

    def short(self) -> str:
        """The first 12 digits, for screens."""
        return self.hex[:12]

    def __str__(self) -> str:
        return _PREFIX + self.hex


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """A file named by digest, in OCI's sense.

    Attributes:
        media_type: what the bytes are.
        digest: of the bytes.
        size_bytes: how many there are.
    """

    media_type: str
    digest: Digest
    size_bytes: int
