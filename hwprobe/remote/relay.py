"""Carry bytes between two sockets, either of which may be TLS, in one thread."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
from collections.abc import Mapping
from typing import Final

from hwprobe.errors import WorkerError

CHUNK_BYTES: Final = 256 << 10
"""Why: weights go through it by the gigabyte; more gains nothing."""


def read_line(connection: socket.socket, most_bytes: int) -> bytes:
    """One line, read byte by byte so that nothing behind it is taken.

    Raises:
        WorkerError: it is longer, or the connection ends or is silent before its end.
    """
    line = bytearray()
    try:
        while not line.endswith(b"\n"):
            byte = connection.recv(1)
            if not byte or len(line) >= most_bytes:
                raise WorkerError("the connection ended before a line did")
            line += byte
    except OSError as error:
        raise WorkerError(f"the connection broke: {error}") from error
    return bytes(line)


def hang_up(listener: socket.socket) -> None:
    """Close a listening socket, and wake the thread that waits in it."""
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def pump(one: socket.socket, other: socket.socket) -> str:
    """Carry bytes both ways until one side ends; returns how it ended, in words.

    What one side sent before its end still reaches the other. Both are left open.
    """
    one.setblocking(False)
    other.setblocking(False)
    waiting = {one: memoryview(b""), other: memoryview(b"")}
    opposite = {one: other, other: one}
    try:
        while True:
            moved = False
            for source, target in opposite.items():
                if not waiting[target]:
                    data = _read(source)
                    if data == b"":
                        return _flush(waiting)
                    if data is not None:
                        waiting[target] = memoryview(data)
                        moved = True
                if waiting[target]:
                    sent = _write(target, waiting[target])
                    waiting[target] = waiting[target][sent:]
                    moved = moved or sent > 0
            if not moved:
                _wait(waiting, opposite)
    except (OSError, ValueError) as error:
        return f"the connection broke: {str(error) or type(error).__name__}"


def _flush(waiting: Mapping[socket.socket, memoryview]) -> str:
    for target, data in waiting.items():
        if data:
            target.settimeout(1.0)
            target.sendall(data)
    return "the connection was closed"


def _wait(
    waiting: Mapping[socket.socket, memoryview], opposite: Mapping[socket.socket, socket.socket]
) -> None:
    poll = select.poll()
    for end, data in waiting.items():
        # TLS may need to write before it can read; it never does so on its own for long.
        events = select.POLLOUT if data else 0
        events |= 0 if waiting[opposite[end]] else select.POLLIN
        poll.register(end, events)
    poll.poll()


def _read(source: socket.socket) -> bytes | None:
    """What is there; nothing at the end, ``None`` where nothing is there yet."""
    try:
        return source.recv(CHUNK_BYTES)
    except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
        return None
    except (ConnectionError, ssl.SSLError):
        return b""


def _write(target: socket.socket, data: memoryview) -> int:
    try:
        return target.send(data)
    except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
        return 0
