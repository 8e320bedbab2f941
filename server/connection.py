"""One client's connection, where the HTTP library's own is not enough.

Rules:
 * a client that has sent its request and closed its sending side is answered; only one that has
   closed the whole connection has left;
 * a client that is refused while it still sends can read the refusal: the rest of what it sends
   is thrown away for a while, because closing at once would destroy the answer on its way;
 * a body that will be refused is not asked for;
 * a connection lasts beyond a streamed answer;
 * a request that has not arrived whole after `RECEIVE_S` is given up; a body that is read while it
   arrives (`server.arriving`) may take longer, but may not stop for `SILENCE_S`.

What this does not do: a client of HTTP/1.0 that leaves is noticed with the first byte of its
answer only. To a client of HTTP/1.1 an interim answer is sent; one that has left resets it.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from typing import Any

import waitress.channel
import waitress.task

from server.api.framing import JSON_TYPE, json_bytes
from server.api.refusal import refusal
from server.arriving import Request, Rest

LINGER_S = 5.0
"""How long a refused client may go on sending: 64 MiB take this long at 100 Mbit/s."""

RECEIVE_S = 300.0
"""How long a request may take to arrive: the largest body at 2 Mbit/s. Why there is a limit: a
connection that sends a byte a minute would otherwise be held for ever."""

SILENCE_S = 60.0
"""How long a streamed body may stand still while there is room for more of it."""

_BODY_BYTES = 256 << 10
"""Bytes taken from a socket at once while a streamed body arrives."""

_INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
"""Clients must take any number of these before the answer. Source: RFC 9110, section 15.2."""


class Task(waitress.task.WSGITask):  # type: ignore[misc]  # the library has no types
    """One request and its answer."""

    def set_close_on_finish(self) -> None:
        """Close after this answer; not because it is chunked, which tells where it ends."""
        if self.wrote_header or not self.chunked_response:
            super().set_close_on_finish()


class ErrorTask(waitress.task.ErrorTask):  # type: ignore[misc]  # the library has no types
    """What the library refuses by itself, in the words and the form of the rest."""

    def execute(self) -> None:
        """Write the refusal."""
        error = self.request.error
        message = str(error.body).lower()
        if error.code == 413:  # noqa: PLR2004 - the status of a body over the limit
            limit = self.channel.adj.max_request_body_size - 1
            message = f"request body: expected at most {limit} bytes"
        path = getattr(self.request, "path", "") or ""
        body = json_bytes(refusal(path, message, error.code))
        self.status = f"{error.code} {error.reason}"
        self.response_headers.append(("Content-Type", JSON_TYPE))
        self.set_close_on_finish()
        self.content_length = len(body)
        self.channel.refused = True
        self.write(body)


class Connection(waitress.channel.HTTPChannel):  # type: ignore[misc]  # the library has no types
    """A connection. Request threads call `service`, `write_soon` and `check_client_disconnected`.

    Everything else is the event loop's.

    Attributes:
        refused: the library has refused a request by itself; it may not have been read whole.
    """

    task_class = Task
    error_task_class = ErrorTask
    will_close: bool
    close_when_flushed: bool

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.refused = False
        self._sending_ended = False  # by the client
        self._answering = False  # bytes of the current answer have been written
        self._lingers_until_s: float | None = None
        self._begun_s = 0.0  # when the first byte of the request that arrives now came
        self._rest: Rest | None = None  # of the last streamed body
        super().__init__(*arguments, **named)

    def parser_class(self, adj: Any) -> Request | Rest:
        """What takes the next bytes, for the library: a new request, or the rest of a body."""
        rest = self._arriving()
        return Request(adj, self) if rest is None else rest

    def body_begins(self, rest: Rest) -> None:
        """A streamed request has begun."""
        self._rest = rest

    def ask_for_body(self) -> None:
        """Tell a client that asked first to send its body; called by the request's thread."""
        with contextlib.suppress(waitress.channel.ClientDisconnected):  # then the body breaks off
            self.write_soon(_INTERIM)
            self._answering = False

    def wake(self) -> None:
        """Let the loop look at this connection again."""
        self.server.pull_trigger()

    def _arriving(self) -> Rest | None:
        """The streamed body that is arriving now."""
        return None if self._rest is None or self._rest.completed else self._rest

    def check_client_disconnected(self) -> bool:
        """Whether the client has left."""
        return not self.connected or (self._sending_ended and _is_reset(self.socket))

    def write_soon(self, data: Any) -> int:
        """Queue bytes of an answer."""
        with self.outbuf_lock:
            self._answering = True
        written: int = super().write_soon(data)
        return written

    def service(self) -> None:
        """Answer one request."""
        self._answering = False
        super().service()
        if self._rest is not None and self._rest.failed:
            self.close_when_flushed = True
            self.server.pull_trigger()
        if self._sending_ended and self.connected:
            with self.requests_lock:
                self.close_when_flushed = self.close_when_flushed or not self.requests
            self.server.pull_trigger()

    def readable(self) -> bool:
        """Whether to read, for the loop; deadlines are looked at on the way."""
        now_s = time.monotonic()
        if self._lingers_until_s is not None:
            self.will_close = self.will_close or now_s >= self._lingers_until_s
            return not self.will_close
        rest = self._arriving()
        if rest is not None:
            if rest.is_full:
                rest.since_s = now_s
                return False
            self.will_close = self.will_close or now_s - rest.since_s > SILENCE_S
        elif self.request is not None and now_s - self._begun_s > RECEIVE_S:
            self.will_close = True
        ended = self._sending_ended or (self._rest is not None and self._rest.failed)
        return not ended and bool(super().readable())

    def handle_read(self) -> None:
        """Take what the client has sent."""
        rest = self._arriving()
        try:
            data = self.socket.recv(self.adj.recv_bytes if rest is None else _BODY_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self.handle_close()
            return
        if self._lingers_until_s is not None:
            if not data:
                self.handle_close()
        elif data:
            self.last_activity = time.time()
            self._begun_s = self._begun_s if self.request is not None else time.monotonic()
            if rest is not None:
                rest.since_s = time.monotonic()
            self.received(data)
        else:
            self._end_of_sending()

    def send_continue(self) -> None:
        """Ask for the body, unless it is going to be refused."""
        if self.request.error is None:
            super().send_continue()
        else:
            self.request.expect_continue = False

    def handle_close(self) -> None:
        """Close; after a refusal first let the client read it."""
        rest = self._arriving()
        if rest is not None:
            rest.abandon()
        may_send_on = self.connected and not self._sending_ended
        told = self.refused or rest is not None
        if told and may_send_on and self._lingers_until_s is None and self._stop_sending():
            self._lingers_until_s = time.monotonic() + LINGER_S
            self.will_close = self.close_when_flushed = False
        else:
            super().handle_close()

    def close(self) -> None:
        """Close at once, as the end of the listener does."""
        if self._rest is not None and not self._rest.completed:
            self._rest.abandon()
        super().close()

    def _stop_sending(self) -> bool:
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:  # the client has gone
            return False
        return True

    def _end_of_sending(self) -> None:
        """The client sends no more; it may still wait for the answer to what it has sent."""
        rest = self._arriving()
        if rest is not None:
            rest.abandon()
        with self.requests_lock:
            self._sending_ended = bool(self.requests)
            interim = self._sending_ended and self.requests[0].version == "1.1"
        if not self._sending_ended:
            self.handle_close()
            return
        with self.outbuf_lock:
            if interim and not self._answering:
                self.outbufs[-1].append(_INTERIM)
                self.current_outbuf_count += len(_INTERIM)
                self.total_outbufs_len += len(_INTERIM)
                self._flush_exception(self._flush_some)


def _is_reset(sock: socket.socket | None) -> bool:
    """Whether the other side has closed the connection, not only its sending side."""
    if sock is None:
        return True
    poller = select.poll()
    try:
        poller.register(sock, 0)  # hang-ups and errors are always told
    except (OSError, ValueError):  # closed meanwhile
        return True
    return bool(poller.poll(0))
