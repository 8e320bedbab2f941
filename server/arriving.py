"""A request body that is read while it arrives.

Rules:
 * a streamed request begins when its header is there: whoever answers it judges the header first,
   and reads the body piece by piece;
 * a few megabytes are held at most; while they are not taken, the socket is not read, and the
   client waits;
 * a client that asks first (``Expect: 100-continue``) is told to send when the body is wanted,
   not before;
 * what is not read is thrown away as it arrives, so that the client can read its answer.

The library keeps whole bodies, in memory or in a temporary file. A model of ten gigabytes would
need its room twice, the second time in the directory for temporary files.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import waitress.parser

STREAMED = (("POST", "/api/blobs/"),)
"""Method and beginning of the path of requests whose bodies are streamed."""

HELD_BYTES = 4 << 20
"""How much may wait to be taken: the time of one slow write to a disk at 1 Gbit/s."""

_ENDLESS = 1 << 62
"""The library's limit on bodies does not apply; whoever reads a streamed body has limits of its
own."""


class BodyBrokenError(Exception):
    """The body ended before it was whole: the client left, was silent for too long, or erred."""


class Body:
    """A body between the event loop, which fills it, and a request's thread, which takes it."""

    def __init__(self, *, wanted: Callable[[], None], taken: Callable[[], None]) -> None:
        """Take who is told that the body is wanted, and who that there is room again."""
        self._wanted = wanted
        self._taken = taken
        self._pieces: deque[bytes] = deque()
        self._held_bytes = 0
        self._asked = False
        self._over = False
        self._broken = False
        self._unread = False
        self._changed = threading.Condition()

    @property
    def is_full(self) -> bool:
        """Whether the socket should not be read for now."""
        return self._held_bytes >= HELD_BYTES

    def append(self, data: bytes) -> None:
        """Put down what has arrived; thrown away where nobody reads any more."""
        with self._changed:
            if data and not self._unread:
                self._pieces.append(bytes(data))
                self._held_bytes += len(data)
                self._changed.notify()

    def end(self, *, broken: bool = False) -> None:
        """No more will arrive."""
        with self._changed:
            self._broken = self._broken or (broken and not self._over)
            self._over = True
            self._changed.notify()

    def read(self, size: int = -1) -> bytes:
        """The next piece, at most ``size`` bytes; empty at the end.

        Raises:
            BodyBrokenError: the rest will never arrive.
        """
        if not self._asked:
            self._asked = True
            self._wanted()
        with self._changed:
            while not self._pieces and not self._over:
                self._changed.wait()
            if self._broken:
                raise BodyBrokenError("the body broke off")
            if not self._pieces:
                return b""
            piece = self._pieces.popleft()
            if 0 <= size < len(piece):
                self._pieces.appendleft(piece[size:])
                piece = piece[:size]
            was_full = self.is_full
            self._held_bytes -= len(piece)
        if was_full and not self.is_full:
            self._taken()
        return piece

    def close(self) -> None:
        """Nobody reads any more."""
        with self._changed:
            self._unread = True
            self._pieces.clear()
            self._held_bytes = 0
        self._taken()

    def getfile(self) -> Body:
        """The library's name for the stream that the application reads."""
        return self

    def __len__(self) -> int:
        return self._held_bytes


class Channel(Protocol):
    """What a request needs of its connection."""

    def body_begins(self, rest: Rest) -> None:
        """A streamed request has begun; its body goes into ``rest``."""

    def ask_for_body(self) -> None:
        """Send an interim answer; called by the request's thread."""

    def wake(self) -> None:
        """Let the loop look at its connections again."""


class Request(waitress.parser.HTTPRequestParser):  # type: ignore[misc]  # the library has no types
    """A request's header, and its body unless that is streamed."""

    adj: Any
    completed: bool
    expect_continue: bool

    def __init__(self, adj: Any, channel: Channel) -> None:
        super().__init__(adj)
        self._channel = channel
        self._body: Body | None = None

    def parse_header(self, header_plus: bytes) -> None:
        """Read the header; decide where the body goes."""
        super().parse_header(header_plus)
        path = self.path if isinstance(self.path, str) else self.path.decode("latin-1")
        streamed = any(self.command == one and path.startswith(at) for one, at in STREAMED)
        if self.body_rcv is None or not streamed:
            return
        asks, self.expect_continue = self.expect_continue, False
        wanted = self._channel.ask_for_body if asks else _nothing
        self._body = Body(wanted=wanted, taken=self._channel.wake)
        self.body_rcv.buf = self._body
        self.adj = _Unlimited(self.adj)

    def received(self, data: bytes) -> int:
        """Take bytes of the header or the body; returns how many."""
        count: int = super().received(data)
        if self._body is not None and self.error is None and not self.completed:
            self.completed = True
            self._channel.body_begins(Rest(self.body_rcv, self._body))
        return count


class Rest:
    """What follows the header of a streamed request; to the library it looks like a request.

    Attributes:
        completed: the body is whole, or never will be.
        failed: what arrived is no body; nothing behind it can be understood.
        since_s: when bytes last arrived, or were taken.
    """

    empty = True  # nothing to answer
    headers_finished = True
    expect_continue = False
    error = None

    def __init__(self, receiver: Any, body: Body) -> None:
        self.completed = False
        self.failed = False
        self.since_s = time.monotonic()
        self._receiver = receiver
        self._body = body

    @property
    def is_full(self) -> bool:
        """Whether the socket should not be read for now."""
        return self._body.is_full

    def received(self, data: bytes) -> int:
        """Take bytes of the body; returns how many."""
        count: int = self._receiver.received(data)
        if self._receiver.error:
            self.failed = True
            self.abandon()
            return len(data)
        if self._receiver.completed:
            self.completed = True
            self._body.end()
        return count

    def abandon(self) -> None:
        """The rest will never arrive."""
        self.completed = True
        self._body.end(broken=True)


class _Unlimited:
    """The library's settings, but for its limit on bodies."""

    max_request_body_size = _ENDLESS

    def __init__(self, adj: Any) -> None:
        self._adj = adj

    def __getattr__(self, name: str) -> Any:
        return getattr(self._adj, name)


def _nothing() -> None:
    return None
