"""One end of the socket pair to a runner: bounded writes, complete lines. Parent side."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from typing import TYPE_CHECKING

from server.errors import BadRequestError, RunnerCrashedError
from server.runner import protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RECEIVE_BYTES = 1 << 16


class StuckError(Exception):
    """The other side did not take a line in time."""


class Channel:
    """A stream socket that carries lines. `send` from any thread, `lines` from one."""

    def __init__(self, sock: socket.socket, *, send_s: float) -> None:
        """Own ``sock``; no write blocks longer than about twice ``send_s`` seconds."""
        self._sock = sock
        self._send_s = send_s
        self._sending = threading.Lock()
        timeval = struct.pack("ll", int(send_s), int(send_s % 1 * 1e6))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)

    def send(self, line: bytes) -> None:
        """Write one line whole.

        Raises:
            StuckError: it was not taken within ``send_s``, or an earlier one still waits.
            OSError: the other side has gone.
        """
        if not self._sending.acquire(timeout=self._send_s):
            raise StuckError
        try:
            self._sock.sendall(line)
        except BlockingIOError as error:  # SO_SNDTIMEO has passed
            raise StuckError from error
        finally:
            self._sending.release()

    def lines(self, *, tick_s: float, on_silence: Callable[[], None]) -> Iterator[bytes]:
        r"""Complete lines without their ``\n`` until the other side closes.

        Args:
            tick_s: ``on_silence`` is called after so many seconds without data, again and again.
            on_silence: may kill the other side, which then ends the lines.

        Raises:
            RunnerCrashedError: a line is longer than the protocol allows.
            OSError: the socket broke.
        """
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        pending = bytearray()
        while True:
            if not poll.poll(1000 * tick_s):
                on_silence()
                continue
            data = self._sock.recv(RECEIVE_BYTES)
            if not data:
                return
            searched, start = len(pending), 0
            pending += data
            while (end := pending.find(b"\n", max(start, searched))) >= 0:
                yield bytes(pending[start:end])
                start = end + 1
            del pending[:start]
            if len(pending) > protocol.MAX_LINE_BYTES:
                raise RunnerCrashedError(f"it sent a line of over {protocol.MAX_LINE_BYTES} bytes")

    def hang_up(self) -> None:
        """End the conversation in both directions; `lines` ends, the other side reads EOF."""
        with contextlib.suppress(OSError):  # it may be closed already
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the descriptor back. Only the thread that reads `lines` may call this."""
        with self._sending:
            self._sock.close()


def encode(message: protocol.Command) -> bytes:
    """One line; a request that no line can carry is the client's fault.

    Raises:
        BadRequestError: a text is no valid Unicode, or the line is too long.
    """
    try:
        line = protocol.encode(message)
    except UnicodeEncodeError as error:
        raise BadRequestError("prompt: expected valid Unicode, found a lone surrogate") from error
    if len(line) > protocol.MAX_LINE_BYTES:
        raise BadRequestError(
            f"prompt: expected at most {protocol.MAX_LINE_BYTES} bytes, found {len(line)}"
        )
    return line
