"""What both ends of a worker's connection say before the engine's protocol begins. Pure values.

Each side sends one line of JSON once TLS is up: the worker what it offers, the other side whether
it wants to be served. Nothing of the engine's protocol is sent to a worker of another release: its
versions do not understand each other, and end the process over it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from hwprobe.errors import WorkerError

PROTOCOL: Final = 1
MOST_LINE_BYTES: Final = 4096
DEFAULT_PORT: Final = 50052
"""The engine's own default for this. Source: tools/rpc/rpc-server.cpp."""
_MOST_PORT: Final = 65535


@dataclass(frozen=True, slots=True)
class WorkerAddress:
    """Where a worker listens."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> WorkerAddress:
        """Read ``HOST``, ``HOST:PORT`` or ``[V6]:PORT``.

        Raises:
            WorkerError: it is none of them.
        """
        host, colon, port = text.strip().rpartition(":")
        if not colon or (":" in host and not host.startswith("[")):
            host, port = text.strip(), str(DEFAULT_PORT)
        host = host.removeprefix("[").removesuffix("]")
        number = int(port) if port.isascii() and port.isdecimal() else 0
        if not host or host != "".join(host.split()) or not 0 < number <= _MOST_PORT:
            raise WorkerError(f"worker: expected HOST:PORT, found {text!r:.80}")
        return cls(host, number)

    def __str__(self) -> str:
        """As `parse` reads it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a worker says of itself.

    Attributes:
        release: of the engine's bindings; both ends must have the same.
        memory_bytes: what it may take now.
        threads: CPU threads it computes with.
        busy: connections it serves.
    """

    release: str
    memory_bytes: int
    threads: int
    busy: int = 0

    def encode(self) -> bytes:
        r"""One line with its ``\n``."""
        return _line(
            {
                "worker": PROTOCOL,
                "release": self.release,
                "memory_bytes": self.memory_bytes,
                "threads": self.threads,
                "busy": self.busy,
            }
        )

    @classmethod
    def decode(cls, line: bytes) -> Offer:
        """The inverse of `encode`.

        Raises:
            WorkerError: it is no offer, or one of another protocol; or the worker's refusal.
        """
        fields = _fields(line)
        if isinstance(fields.get("refused"), str):
            raise WorkerError(f"it refuses: {fields['refused'][:200]}")
        if fields.get("worker") != PROTOCOL:
            raise WorkerError("expected a worker, found something else")
        release = fields.get("release")
        if not isinstance(release, str):
            raise WorkerError("expected what the worker offers, found something else")
        return cls(
            release=release[:80],
            memory_bytes=_count(fields, "memory_bytes"),
            threads=_count(fields, "threads"),
            busy=_count(fields, "busy"),
        )


def refusal(reason: str) -> bytes:
    """The line that a worker sends instead of an offer."""
    return _line({"refused": reason})


def request(*, serve: bool) -> bytes:
    """The line of the other side: whether it stays."""
    return _line({"serve": serve})


def wants_service(line: bytes) -> bool:
    """Whether the other side stays.

    Raises:
        WorkerError: the line says neither.
    """
    wanted = _fields(line).get("serve")
    if not isinstance(wanted, bool):
        raise WorkerError("expected a request, found something else")
    return wanted


def _line(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def _fields(line: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise WorkerError("expected a line of JSON, found something else") from error
    if not isinstance(fields, dict):
        raise WorkerError("expected a line of JSON, found something else")
    return fields


def _count(fields: dict[str, Any], name: str) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise WorkerError(f"expected {name} of what the worker offers, found something else")
    return value
