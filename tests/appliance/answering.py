"""A server on a real socket that gives prepared answers, for the client and its commands."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from appliance.addresses import HostText


@dataclass
class Answering:
    """Where it listens, and what it was asked."""

    address: HostText
    requests: list[bytes] = field(default_factory=list)

    @property
    def host(self) -> str:
        return f"{self.address.host}:{self.address.port}"


@contextmanager
def asked(answers: Sequence[tuple[int, bytes]]) -> Iterator[Answering]:
    """Answer one connection after the other: status and body, whatever was asked."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        server = Answering(address=HostText("http", "127.0.0.1", port, ""))

        def serve() -> None:
            for status, body in answers:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    server.requests.append(_request(connection))
                    head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n"
                    connection.sendall(head.encode() + body)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@contextmanager
def answering(answers: Sequence[tuple[int, bytes]]) -> Iterator[HostText]:
    """As `asked`, for those who only want the address."""
    with asked(answers) as server:
        yield server.address


def _request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body
