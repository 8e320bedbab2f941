"""What the service manager is told: ready, alive, reloading, stopping. Source: sd_notify(3).

Messages are datagrams on the socket that ``NOTIFY_SOCKET`` names; without one nothing is sent.
The watchdog is answered by whoever does the work, so that a loop that stands still is noticed.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

_MICROSECONDS: Final = 1_000_000
_ALIVE_PER_INTERVAL: Final = 3
"""How often within the watchdog's interval; systemd recommends at least twice."""


@dataclass(slots=True, kw_only=True)
class Manager:
    """The service manager that started this process, if one did.

    Attributes:
        address: of its socket; a leading ``@`` stands for the abstract name space. Empty: none.
        watchdog_s: the interval within which it wants to hear that we are alive; 0 if it does not.
        clock_s: monotonic seconds.
    """

    address: str = ""
    watchdog_s: float = 0.0
    clock_s: Callable[[], float] = time.monotonic
    _said_s: float = field(default=float("-inf"), init=False)

    @classmethod
    def of(cls, environ: Mapping[str, str], *, pid: int) -> Manager:
        """The manager named in the environment of process ``pid``.

        A watchdog meant for another process, or with no sensible interval, is none.
        """
        address = environ.get("NOTIFY_SOCKET", "")
        interval = environ.get("WATCHDOG_USEC", "")
        ours = environ.get("WATCHDOG_PID", str(pid)) == str(pid)
        watched = ours and interval.isascii() and interval.isdecimal() and len(interval) <= 18  # noqa: PLR2004
        return cls(
            address=address if address[:1] in {"/", "@"} else "",
            watchdog_s=int(interval) / _MICROSECONDS if watched else 0.0,
        )

    def ready(self, status: str) -> None:
        """The addresses answer."""
        self._tell("READY=1", f"STATUS={_line(status)}")

    def reloading(self) -> None:
        """Settings are being read again; `ready` follows."""
        monotonic_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._tell("RELOADING=1", f"MONOTONIC_USEC={monotonic_us}")

    def stopping(self, status: str, *, takes_s: float) -> None:
        """The end has begun and may take so long."""
        extended_us = int(takes_s * _MICROSECONDS)
        self._tell("STOPPING=1", f"STATUS={_line(status)}", f"EXTEND_TIMEOUT_USEC={extended_us}")

    def alive(self) -> None:
        """The serving loop turns; to be called at every turn."""
        if not self.watchdog_s:
            return
        now_s = self.clock_s()
        if now_s - self._said_s >= self.watchdog_s / _ALIVE_PER_INTERVAL:
            self._said_s = now_s
            self._tell("WATCHDOG=1")

    def _tell(self, *lines: str) -> None:
        if not self.address:
            return
        name = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        # A manager that does not listen is no reason to stop serving.
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock,
        ):
            sock.setblocking(False)
            sock.sendto("\n".join(lines).encode(), name)


def this_manager() -> Manager:
    """The manager of this process; its variables are not passed on to children."""
    manager = Manager.of(os.environ, pid=os.getpid())
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        os.environ.pop(name, None)
    return manager


def _line(text: str) -> str:
    return " ".join(text.split())
