"""The worker: takes connections of known keys, and has a child process serve each.

A child holds what one connection has put there; when the connection ends, it and its memory are
gone. The engine's protocol is spoken inside the child only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Final

from hwprobe.errors import WorkerError
from hwprobe.remote.relay import hang_up, pump, read_line
from hwprobe.remote.terms import MOST_LINE_BYTES, Offer, refusal, wants_service
from hwprobe.remote.tls import HANDSHAKE_S, Trust

MOST_CONNECTIONS: Final = 8
"""Served at once. Why: each takes memory of its own; more than a few models never fit."""
MOST_STRANGERS: Final = 16
"""Connections that have not yet said who they are; further ones are closed at once."""
COMMAND: Final = (sys.executable, "-P", "-m", "hwprobe.remote.child")
"""A child's argument vector; its socket, threads and memory are appended."""


class Worker:
    """Serves connections until it is closed."""

    def __init__(
        self,
        listener: socket.socket,
        trust: Trust,
        *,
        offer: Callable[[], Offer],
        tell: Callable[[str], None],
    ) -> None:
        """Begin.

        Args:
            listener: a listening socket.
            trust: whom it serves.
            offer: what there is now; ``busy`` is filled in here.
            tell: told who comes and goes.
        """
        self._listener = listener
        self._trust = trust
        self._offer = offer
        self._tell = tell
        self._lock = threading.Lock()
        self._strangers = threading.BoundedSemaphore(MOST_STRANGERS)
        self._children: set[int] = set()
        self._served = 0
        self._closed = False

    def run(self) -> None:
        """Take connections until `close`."""
        while True:
            try:
                connection, peer = self._listener.accept()
            except OSError:
                return
            if not self._strangers.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(
                target=self._meet, args=(connection, str(peer[0])), daemon=True
            ).start()

    def close(self) -> None:
        """Stop listening, and end what is served."""
        with self._lock:
            self._closed = True
            children = set(self._children)
        hang_up(self._listener)
        for pid in children:
            _kill(pid)

    def _meet(self, connection: socket.socket, peer: str) -> None:
        try:
            try:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                known = self._trust.wrap(connection)
            finally:
                self._strangers.release()
            with known:
                self._greet(known, peer)
        except (WorkerError, OSError) as error:
            self._tell(f"{peer}: {error}")

    def _greet(self, known: socket.socket, peer: str) -> None:
        known.settimeout(HANDSHAKE_S)
        with self._lock:
            busy = self._served
        if busy >= MOST_CONNECTIONS:
            known.sendall(refusal(f"it serves {busy} connections already"))
            return
        offer = self._offer()
        known.sendall(
            Offer(
                release=offer.release,
                memory_bytes=offer.memory_bytes,
                threads=offer.threads,
                busy=busy,
            ).encode()
        )
        if wants_service(read_line(known, MOST_LINE_BYTES)):
            self._serve(known, peer, offer)

    def _serve(self, known: socket.socket, peer: str, offer: Offer) -> None:
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                child = subprocess.Popen(
                    [
                        *COMMAND,
                        str(theirs.fileno()),
                        str(offer.threads),
                        str(int(offer.memory_bytes)),
                    ],
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,
                )
            with self._lock:
                self._served += 1
                self._children.add(child.pid)
                closed = self._closed
            try:
                self._tell(f"{peer}: served by process {child.pid}")
                if not closed:
                    pump(known, ours)
            finally:
                _kill(child.pid)
                child.wait()
                with self._lock:
                    self._served -= 1
                    self._children.discard(child.pid)
        self._tell(f"{peer}: process {child.pid} ended")


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
