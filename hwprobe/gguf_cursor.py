"""A bounded cursor over the header of a file: no read beyond its end, no large allocation.

Rules:
 * at most `WINDOW_BYTES` of the file are in memory at a time;
 * every length is compared with what is left of the file before it is used;
 * a fault names the byte it stands at.
"""

from __future__ import annotations

import os
import struct
from typing import Final

from hwprobe.errors import GgufError

WINDOW_BYTES: Final = 1 << 20
"""1 MiB. Why: large enough that a 10 MB header takes ten reads, small against any machine."""

MAX_STRING_BYTES: Final = 64 << 20
"""64 MiB. Why: an embedded tokenizer.json is the longest value seen, about 30 MB."""
LENGTH_BYTES: Final = 8
"""Size of the number before a string or an array."""
STRING: Final = "string"
BOOL: Final = "bool"
SCALARS: Final[dict[str, struct.Struct]] = {
    "uint8": struct.Struct("<B"),
    "int8": struct.Struct("<b"),
    "uint16": struct.Struct("<H"),
    "int16": struct.Struct("<h"),
    "uint32": struct.Struct("<I"),
    "int32": struct.Struct("<i"),
    "float32": struct.Struct("<f"),
    BOOL: struct.Struct("<B"),
    "uint64": struct.Struct("<Q"),
    "int64": struct.Struct("<q"),
    "float64": struct.Struct("<d"),
}
"""Scalar value types by GGUF's names; all little endian."""
_U32, _U64 = SCALARS["uint32"], SCALARS["uint64"]


class Cursor:
    """Reads a file front to back through a sliding window.

    ``take`` hands out an index into ``window``; it stays valid until the next call.
    """

    __slots__ = ("_fd", "_index", "_limit", "_start", "window")

    def __init__(self, fd: int, *, size_bytes: int, position: int = 0) -> None:
        self._fd = fd
        self._limit = size_bytes
        self._start = position
        self._index = 0
        self.window = b""

    @property
    def position(self) -> int:
        """Offset in the file of the next byte."""
        return self._start + self._index

    @property
    def left_bytes(self) -> int:
        """Bytes between here and the end of the file."""
        return self._limit - self.position

    def fault(self, expected: str, found: str, *, at: int | None = None) -> GgufError:
        """An error at ``at``, or at the next byte."""
        offset = self.position if at is None else at
        return GgufError(offset=offset, expected=expected, found=found)

    def take(self, count: int, what: str) -> int:
        """Step over ``count`` bytes (at most `WINDOW_BYTES`); their index in ``window``.

        Raises:
            GgufError: the file ends before them.
        """
        index = self._index
        if index + count > len(self.window):
            self._slide(count, what)
            index = 0
        self._index = index + count
        return index

    def skip(self, count: int, what: str) -> None:
        """Step over ``count`` bytes without reading them.

        Raises:
            GgufError: the file ends before them.
        """
        if count > self.left_bytes:
            raise self._ends_early(count, what)
        self._index += count

    def skip_strings(self, count: int, *, max_bytes: int, what: str) -> None:
        """Step over ``count`` length-prefixed strings of at most ``max_bytes`` each.

        Raises:
            GgufError: a string is longer, or the file ends before the last one does.
        """
        # A string longer than the window ends the inner loop, so its length is checked behind it.
        assert max_bytes >= WINDOW_BYTES
        unpack_from = _U64.unpack_from
        left = count
        while left:
            if self._index + _U64.size > len(self.window):
                self._slide(_U64.size, what)
            window, index = self.window, self._index
            at, length, last = index, 0, len(window) - _U64.size
            while left and index <= last:
                at = index
                (length,) = unpack_from(window, index)
                index += 8 + length
                left -= 1
            if length > max_bytes:
                raise self.fault(
                    f"at most {max_bytes} bytes in a string of {what}",
                    f"{length}",
                    at=self._start + at,
                )
            if self._start + index > self._limit:
                raise self._ends_early(index - self._index, what)
            self._index = index

    def scalar(self, kind: str, what: str) -> bool | int | float:
        """One value of a scalar type.

        Raises:
            GgufError: the file ends, or a boolean is neither 0 nor 1.
        """
        form = SCALARS[kind]
        at = self.position
        index = self.take(form.size, what)
        (value,) = form.unpack_from(self.window, index)
        if kind != BOOL:
            assert isinstance(value, int | float)
            return value
        if value > 1:
            raise self.fault(f"0 or 1 for the boolean {what}", str(value), at=at)
        return bool(value)

    def u32(self, what: str) -> int:
        """An unsigned number of four bytes."""
        index = self.take(_U32.size, what)
        (value,) = _U32.unpack_from(self.window, index)
        return int(value)

    def u64(self, what: str) -> int:
        """An unsigned number of eight bytes."""
        index = self.take(_U64.size, what)
        (value,) = _U64.unpack_from(self.window, index)
        return int(value)

    def length(self, maximum: int, what: str) -> int:
        """The length before a string: at most ``maximum``, and no more than is left of the file."""
        at = self.position
        length = self.u64(f"the length of {what}")
        if length > min(maximum, self.left_bytes):
            most = min(maximum, self.left_bytes)
            raise self.fault(f"at most {most} bytes for {what}", str(length), at=at)
        return length

    def text(self, maximum: int, what: str) -> str:
        """A string of at most ``maximum`` bytes of UTF-8."""
        return self.decoded(self.length(maximum, what), what)

    def decoded(self, length: int, what: str) -> str:
        """The next ``length`` bytes as UTF-8."""
        at = self.position
        index = self.take(length, what)
        try:
            return self.window[index : index + length].decode()
        except UnicodeDecodeError as error:
            raise self.fault(f"UTF-8 text for {what}", str(error.reason), at=at) from error

    def long_string(self, what: str) -> bytes:
        """A string of up to `MAX_STRING_BYTES`, read piece by piece."""
        left = self.length(MAX_STRING_BYTES, what)
        pieces: list[bytes] = []
        while left:
            part = min(left, WINDOW_BYTES)
            index = self.take(part, what)
            pieces.append(self.window[index : index + part])
            left -= part
        return b"".join(pieces)

    def _slide(self, count: int, what: str) -> None:
        assert count <= WINDOW_BYTES
        if count > self.left_bytes:
            raise self._ends_early(count, what)
        position = self.position
        pieces: list[bytes] = []
        wanted = min(WINDOW_BYTES, self._limit - position)
        got = 0
        while got < wanted:
            piece = os.pread(self._fd, wanted - got, position + got)
            if not piece:
                break
            pieces.append(piece)
            got += len(piece)
        self.window = b"".join(pieces)
        self._start, self._index = position, 0
        if got < count:
            raise self.fault(f"{count} bytes of {what}", "a file that became shorter while read")

    def _ends_early(self, count: int, what: str) -> GgufError:
        left = max(0, self.left_bytes)
        return self.fault(f"{count} bytes of {what}", f"{left} bytes left")
