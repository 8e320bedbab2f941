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

_U64 = struct.Struct("<Q")


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
        unpack_from = _U64.unpack_from
        left = count
        while left:
            if self._index + _U64.size > len(self.window):
                self._slide(_U64.size, what)
            window, index = self.window, self._index
            last = len(window) - _U64.size
            while left and index <= last:
                (length,) = unpack_from(window, index)
                if length > max_bytes:
                    raise self.fault(
                        f"at most {max_bytes} bytes in a string of {what}",
                        f"{length}",
                        at=self._start + index,
                    )
                index += _U64.size + length
                left -= 1
            if self._start + index > self._limit:
                raise self._ends_early(index - self._index, what)
            self._index = index

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
