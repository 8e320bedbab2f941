"""Listen: sockets, threads and limits of the HTTP server, and its orderly end.

Rules:
 * one event loop in the calling thread; each request has a thread of its own from a fixed number;
 * the second listener, for health and administration, has threads of its own, so that it answers
   while every other thread streams;
 * to stop, no new connection is accepted, running answers get until the deadline, then the rest
   is cut off;
 * there are never more connections than descriptors allow: without a free one the loop could
   neither accept nor refuse, and would turn without pause.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import socket
import stat
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import waitress.server
import waitress.wasyncore

from server.app import Traffic
from server.connection import Connection
from server.errors import ServerError

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

LOG = logging.getLogger("satchel.server")

ADMIN_THREADS = 2
"""Threads of the second listener: its answers take milliseconds; two, so that one slow reader of
the socket does not stop the other."""

SPARE_THREADS = 2
"""Threads beyond those that generate or wait: they say 503, list models, answer probes."""

MAX_HEADER_BYTES = 64 << 10
"""64 KiB. Why: the largest headers seen from clients and proxies are about 8 KiB."""

IDLE_CONNECTION_S = 120
"""Seconds an idle kept-alive connection stays open."""

TICK_S = 1.0
"""How often the loop looks at its deadlines. Bytes to send and `Listener.stop` wake it at once."""

FLUSH_S = 1.0
"""How long the last bytes of the last answers may take. Loopback takes a millisecond; a client
that does not read is not waited for."""

SPARE_DESCRIPTORS = 64
"""For everything but connections: files, runners (three each, ten to start one), other sockets."""

FEWEST_CONNECTIONS = 8

LISTEN_FDS_START = 3
"""First descriptor a service manager passes. Source: sd_listen_fds(3)."""

ADMIN_SOCKET_MODE = 0o660


def threads_needed(*, max_in_flight: int, max_queue: int) -> int:
    """Threads of the main listener: one for each request that may generate or wait, and spares.

    With fewer, a request that should be told 503 would wait unheard, and so would every probe.
    An idle thread costs address space and a few kilobytes.
    """
    return max_in_flight + max_queue + SPARE_THREADS


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerLimits:
    """Limits of the main listener.

    Attributes:
        max_body_bytes: larger bodies are refused with 413 before they are read.
        threads: see `threads_needed`.
        drain_s: how long running answers may go on after `Listener.stop`.
    """

    max_body_bytes: int
    threads: int
    drain_s: float


def room_for(connections: int) -> int:
    """How many of so many connections there are descriptors for; asks for more if need be.

    Services commonly start with 1024 and may have more for the asking.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + SPARE_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return connections
    return min(connections, max(FEWEST_CONNECTIONS, soft - SPARE_DESCRIPTORS))


def bind(host: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0 takes a free one.

    Raises:
        ServerError: the address is in use, not this machine's, or not allowed.
    """
    try:
        found = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise ServerError(f"{host}: expected an address of this machine: {error}") from error
    # A name such as localhost may have both; clients expect IPv4, as Ollama's server has it.
    family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen()
    except OSError as error:
        sock.close()
        raise _cannot_listen(f"{host}:{port}", error) from error
    return sock


def bind_unix(path: Path) -> socket.socket:
    """A listening Unix socket for the owner and the group; a stale one is replaced.

    Raises:
        ServerError: another server listens there, or the path cannot be used.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        sock.bind(str(path))
        path.chmod(ADMIN_SOCKET_MODE)
        sock.listen()
    except OSError as error:
        sock.close()
        raise _cannot_listen(str(path), error) from error
    return sock


def inherited_sockets(*, listen_pid: str, listen_fds: str) -> tuple[socket.socket, ...]:
    """Sockets a service manager has opened, from the variables it sets; usually none.

    Raises:
        ServerError: a passed descriptor is no listening socket.
    """
    if not listen_fds.isdecimal() or listen_pid != str(os.getpid()):
        return ()
    sockets = []
    for descriptor in range(LISTEN_FDS_START, LISTEN_FDS_START + int(listen_fds)):
        try:
            sock = socket.socket(fileno=descriptor)
            if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                raise ServerError(f"descriptor {descriptor}: expected a listening socket")
        except OSError as error:
            raise ServerError(
                f"descriptor {descriptor}: expected a socket, found {error.strerror}"
            ) from error
        sock.set_inheritable(False)
        sockets.append(sock)
    return tuple(sockets)


class Listener:
    """The HTTP server of one process. `run` is to be called once, in the main thread."""

    def __init__(
        self,
        *,
        app: WSGIApplication,
        sockets: Sequence[socket.socket],
        limits: ListenerLimits,
        admin_app: WSGIApplication | None = None,
        admin_sockets: Sequence[socket.socket] = (),
        log_requests: bool = False,
    ) -> None:
        self._limits = limits
        self._map: dict[int, Any] = {}
        self._traffic = Traffic(app, log_requests=log_requests)
        self._stopping = threading.Event()
        self._servers = [self._serve(self._traffic, sockets, limits.threads)]
        self._admin: list[Any] = []
        if admin_app is not None and admin_sockets:
            self._admin.append(self._serve(admin_app, admin_sockets, ADMIN_THREADS))
        self.addresses = tuple(_shown(sock) for sock in sockets)

    @property
    def stopping(self) -> bool:
        """Whether `stop` has been called."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Begin the end; may be called from a signal handler and from any thread."""
        self._stopping.set()
        for dispatcher in [*self._map.values()]:
            if isinstance(dispatcher, waitress.server.BaseWSGIServer):
                with contextlib.suppress(OSError):  # closed meanwhile: then nobody waits
                    dispatcher.pull_trigger()

    def run(
        self,
        *,
        on_turn: Callable[[], None] = lambda: None,
        on_stopping: Callable[[], None] = lambda: None,
    ) -> bool:
        """Serve until `stop`, then let running answers finish.

        Args:
            on_turn: called at every turn of the loop, at least once in `TICK_S`.
            on_stopping: called once no new connection is accepted.

        Returns:
            Whether every answer finished within the deadline.
        """
        while not self._stopping.is_set():
            self._turn()
            on_turn()
        self._stop_accepting()
        on_stopping()
        deadline_s = time.monotonic() + self._limits.drain_s
        while self._traffic.in_flight and time.monotonic() < deadline_s:
            self._turn()
            on_turn()
        drained = not self._traffic.in_flight
        self._flush()
        self._close_idle()
        return drained

    def close(self) -> None:
        """Cut off what is left and close every socket."""
        for server in (*self._servers, *self._admin):
            server.task_dispatcher.shutdown(timeout=1)
        waitress.wasyncore.close_all(self._map)

    def _serve(self, app: WSGIApplication, sockets: Sequence[socket.socket], threads: int) -> Any:
        server = waitress.server.create_server(
            app,
            map=self._map,
            sockets=list(sockets),
            threads=threads,
            ident=None,
            # Lets a request see that its client has left before the first byte of the answer.
            channel_request_lookahead=1,
            # The library refuses a body of exactly its limit.
            max_request_body_size=self._limits.max_body_bytes + 1,
            max_request_header_size=MAX_HEADER_BYTES,
            # Connections, counted with some descriptors of the loop itself: more than threads,
            # so that idle kept-alive connections do not lock new clients out.
            connection_limit=room_for(2 * threads + 512),
            channel_timeout=IDLE_CONNECTION_S,
            asyncore_use_poll=True,  # select() ends at descriptor 1023
            log_socket_errors=False,  # clients leave; that is no error
            clear_untrusted_proxy_headers=True,
        )
        for dispatcher in self._map.values():
            if isinstance(dispatcher, waitress.server.BaseWSGIServer):
                dispatcher.channel_class = Connection
        return server

    def _turn(self) -> None:
        waitress.wasyncore.loop(timeout=TICK_S, use_poll=True, map=self._map, count=1)

    def _stop_accepting(self) -> None:
        """Close the main listening sockets; connections and the second listener stay."""
        for dispatcher in [*self._map.values()]:
            listening = isinstance(dispatcher, waitress.server.BaseWSGIServer)
            if listening and dispatcher not in self._admin:
                # Not the server's own close(): that would also close the pipe that wakes the loop.
                waitress.wasyncore.dispatcher.close(dispatcher)

    def _flush(self) -> None:
        """Send what finished answers have left in their buffers, and close what is to close."""
        deadline_s = time.monotonic() + FLUSH_S
        while time.monotonic() < deadline_s and any(map(_unfinished, self._map.values())):
            self._turn()

    def _close_idle(self) -> None:
        """Close the main listener's connections that wait for another request."""
        for channel in [*self._map.values()]:
            if isinstance(channel, Connection) and channel.server not in self._admin:
                with channel.requests_lock:
                    channel.will_close = channel.will_close or not channel.requests
                if channel.will_close:
                    channel.handle_close()


def _unfinished(dispatcher: Any) -> bool:
    """Whether a connection still has bytes to send, or waits to be closed."""
    return isinstance(dispatcher, Connection) and bool(
        dispatcher.total_outbufs_len or dispatcher.close_when_flushed or dispatcher.will_close
    )


def _shown(sock: socket.socket) -> str:
    """A socket's address as a URL, or as the path of a Unix socket."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"unix:{name}"
    host = f"[{name[0]}]" if sock.family == socket.AF_INET6 else name[0]
    return f"http://{host}:{name[1]}"


def _cannot_listen(where: str, error: OSError) -> ServerError:
    reason = (error.strerror or str(error)).lower()
    hint = ""
    if error.errno == errno.EADDRINUSE:
        hint = "another server is running there; stop it, or choose another port with --port"
    elif error.errno == errno.EACCES:
        hint = "ports below 1024 need a privilege; choose another with --port"
    return ServerError(f"cannot listen on {where}: {reason}", hint=hint)


def _remove_stale(path: Path) -> None:
    """Remove a socket nobody listens on.

    Raises:
        OSError: somebody does, or it is no socket.
    """
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(errno.EEXIST, "a file that is no socket is there", str(path))
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            return
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), str(path))
