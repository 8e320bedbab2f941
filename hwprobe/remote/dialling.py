"""The side that uses workers: ask what they offer, and lead the engine's protocol to them.

The engine can only connect to an address. A tunnel listens on a loopback port for this process
alone, and carries each of its connections through a TLS connection of its own.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from hwprobe.errors import WorkerError
from hwprobe.remote.relay import hang_up, pump, read_line
from hwprobe.remote.terms import MOST_LINE_BYTES, Offer, WorkerAddress, request
from hwprobe.remote.tls import HANDSHAKE_S, Trust

CONNECT_S: Final = 5.0


def release() -> str:
    """The release of the engine's bindings; empty without them."""
    try:
        return version("llama-cpp-python")
    except PackageNotFoundError:
        return ""


def offer_of(address: WorkerAddress, trust: Trust) -> Offer:
    """Ask a worker what it offers.

    Raises:
        WorkerError: it cannot be reached, is none we know, or of another release.
    """
    connection, offer = _dial(address, trust, serve=False)
    connection.close()
    return offer


class Tunnel:
    """A loopback port that leads to a worker, for connections of this process.

    Attributes:
        address: the worker's.
        endpoint: what to connect to instead, ``127.0.0.1:PORT``.
        lost: how a connection ended that was to be kept; empty while none did.
    """

    def __init__(self, address: WorkerAddress, trust: Trust) -> None:
        """Make sure that the worker is there, and listen.

        Raises:
            WorkerError: it cannot be reached, is none we know, or of another release.
        """
        self.address = address
        self.lost = ""
        self._kept = False
        self._trust = trust
        offer_of(address, trust)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._port: int = self._listener.getsockname()[1]
        self.endpoint = f"127.0.0.1:{self._port}"
        threading.Thread(target=self._accept, name="tunnel", daemon=True).start()

    def keep(self) -> None:
        """From now on no connection is to end before this process does."""
        self._kept = True

    def close(self) -> None:
        """Take no more connections; those that run go on."""
        hang_up(self._listener)

    def _accept(self) -> None:
        while True:
            try:
                connection, peer = self._listener.accept()
            except OSError:
                return
            if is_own_socket(peer[1], self._port):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._carry, args=(connection,), daemon=True).start()
            else:
                connection.close()

    def _carry(self, connection: socket.socket) -> None:
        with connection:
            try:
                remote, _ = _dial(self.address, self._trust, serve=True)
            except WorkerError as error:
                self._end(str(error).removeprefix(f"worker {self.address}: "))
                return
            with remote:
                self._end(pump(connection, remote))

    def _end(self, how: str) -> None:
        if self._kept:
            self.lost = how


def is_own_socket(local_port: int, remote_port: int) -> bool:
    """Whether the socket with these loopback ports is one of this process."""
    wanted = (f":{local_port:04X}", f":{remote_port:04X}")
    links = set()
    for line in Path("/proc/self/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(wanted[0]) and fields[2].endswith(wanted[1]):
            links.add(f"socket:[{fields[9]}]")
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed since
            if str(entry.readlink()) in links:
                return True
    return False


def _dial(address: WorkerAddress, trust: Trust, *, serve: bool) -> tuple[socket.socket, Offer]:
    try:
        try:
            plain = socket.create_connection((address.host, address.port), CONNECT_S)
        except OSError as error:
            reason = str(error.strerror or error).lower()
            raise WorkerError(f"cannot be reached: {reason}") from error
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = trust.wrap(plain)
        try:
            connection.settimeout(HANDSHAKE_S)
            offer = _checked(Offer.decode(read_line(connection, MOST_LINE_BYTES)))
            connection.sendall(request(serve=serve))
        except (OSError, WorkerError):
            connection.close()
            raise
    except WorkerError as error:
        raise WorkerError(f"worker {address}: {error}", hint=error.hint) from error
    except OSError as error:
        raise WorkerError(f"worker {address}: the connection broke: {error}") from error
    return connection, offer


def _checked(offer: Offer) -> Offer:
    if offer.release != release():
        raise WorkerError(
            f"has the engine of llama-cpp-python {offer.release}, and this machine that of "
            f"{release() or 'none'}",
            hint="install the same release of Satchel on both",
        )
    return offer
