"""A real terminal for a command: what a person types, what a person sees."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

_STEERING = re.compile(rb"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[()][A-Z0-9]|\x1b[=>]|\r")
_PATIENCE_S = 60.0


@dataclass
class Terminal:
    """A command on a terminal of so many columns."""

    parent: int
    process: subprocess.Popen[bytes]
    seen: bytes = b""
    _read_to: int = 0

    def waits_for(self, text: str) -> None:
        """Read until this has appeared after what was waited for before."""
        wanted = text.encode()
        until = time.monotonic() + _PATIENCE_S
        while (at := self.plain().find(wanted, self._read_to)) < 0:
            assert time.monotonic() < until, (text, self.plain())
            assert self._more(), (text, self.plain())
        self._read_to = at + len(wanted)

    def types(self, text: str) -> None:
        """Type a line and press Enter."""
        os.write(self.parent, text.encode() + b"\r")

    def presses(self, keys: bytes) -> None:
        os.write(self.parent, keys)

    def ends(self) -> int:
        """Read what is left and give the exit code."""
        while self._more():
            pass
        return self.process.wait(_PATIENCE_S)

    def plain(self) -> bytes:
        """What was written, without what moves the cursor and paints."""
        return _STEERING.sub(b"", self.seen)

    def _more(self) -> bool:
        ready, _, _ = select.select([self.parent], [], [], _PATIENCE_S)
        if not ready:
            return False
        try:
            part = os.read(self.parent, 4096)
        except OSError:  # the other end closed
            return False
        self.seen += part
        return bool(part)


@contextmanager
def terminal(
    *arguments: str, environment: Mapping[str, str], columns: int = 100
) -> Iterator[Terminal]:
    """Start ``satchel ARGUMENTS`` on a terminal of its own."""
    command = [sys.executable, "-P", "-m", "appliance.cli", *arguments]
    with _started(command, environment=environment, columns=columns) as screen:
        yield screen


@contextmanager
def shell_on_terminal(
    command: Sequence[str], *, environment: Mapping[str, str], columns: int = 100
) -> Iterator[Terminal]:
    """Start a shell on a terminal that is its own to control."""
    command = ["setsid", "--ctty", "--wait", *command]
    with _started(command, environment=environment, columns=columns) as screen:
        yield screen


@contextmanager
def _started(
    command: Sequence[str], *, environment: Mapping[str, str], columns: int
) -> Iterator[Terminal]:
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SATCHEL_", "OLLAMA_"))}
    process = subprocess.Popen(
        command,
        env={**kept, "TERM": "xterm", **environment},
        stdin=child,
        stdout=child,
        stderr=child,
        start_new_session=True,
    )
    os.close(child)
    try:
        yield Terminal(parent, process)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()
        os.close(parent)
