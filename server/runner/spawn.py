"""A child process around native code: start it, keep its last words, say how it ended.

Parent side. The child leads its own session, so that one signal reaches whatever it forks.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import subprocess
import threading
import time
from collections import deque
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

ENVIRONMENT = {
    "GGML_NO_BACKTRACE": "1",  # else an abort forks a debugger and death takes seconds
    "OMP_WAIT_POLICY": "passive",  # idle OpenMP threads spin otherwise, and starve the server
}
OOM_SCORE_ADJ = 500
"""Of 1000: under memory pressure the kernel takes a runner, not the server."""

MAX_LOG_LINES = 200
MAX_LOG_LINE_CHARACTERS = 500
_READ_BYTES = 4096

_LOG = logging.getLogger(__name__)


class Child:
    """One child process and the last `MAX_LOG_LINES` lines it printed.

    The kernel's parent-death signal belongs to the *thread* that forked. Make a `Child` in a
    thread that outlives it.

    Attributes:
        pid: process id, and id of its process group.
        spoke_s: monotonic time of its last printed line, in seconds.
    """

    def __init__(self, *, command: Sequence[str], sock: socket.socket) -> None:
        """Start ``command`` with the number of ``sock`` appended; the child inherits it.

        Raises:
            OSError: the process could not be started.
        """
        self._process = subprocess.Popen(
            [*command, str(sock.fileno())],
            pass_fds=(sock.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **ENVIRONMENT},
        )
        self.pid = self._process.pid
        self.spoke_s = time.monotonic()
        self._killed_because = ""
        self._lines: deque[str] = deque(maxlen=MAX_LOG_LINES)
        self._keeper = threading.Thread(target=self._keep_log, daemon=True, name="runner-log")
        _make_expendable(self.pid)
        self._keeper.start()

    @property
    def log_lines(self) -> tuple[str, ...]:
        """The last lines it printed, oldest first."""
        return tuple(self._lines)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for its end and reap it; false when it has not ended in time."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def signal(self, number: int) -> None:
        """Send a signal to its process group, unless it has been reaped."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def kill(self, because: str) -> None:
        """SIGKILL, with the reason `obituary` is to give."""
        self._killed_because = self._killed_because or because
        self.signal(signal.SIGKILL)

    def read_log(self, timeout_s: float | None = None) -> None:
        """Wait until everything it printed has been read."""
        self._keeper.join(timeout_s)

    def obituary(self, *, hide: str) -> str:
        """How it ended, in one line, with the last line it printed less ``hide``.

        Only after `wait`.
        """
        code = self._process.returncode
        if self._killed_because:
            how = f"was killed: {self._killed_because}"
        elif code is not None and code < 0:
            how = f"was killed by {_signal_name(-code)}"
        else:
            how = f"ended with exit code {code}"
        last = f": {self._lines[-1].replace(hide, '')}" if self._lines else ""
        return f"the model's runner {how}{last}"

    def _keep_log(self) -> None:
        pipe = self._process.stdout
        assert pipe is not None
        with pipe:
            while line := _next_line(pipe):
                self.spoke_s = time.monotonic()
                text = "".join(c if c.isprintable() else " " for c in line).strip()
                if text:
                    self._lines.append(text[:MAX_LOG_LINE_CHARACTERS])
                    _LOG.debug("runner %d: %s", self.pid, self._lines[-1])


def _next_line(pipe: IO[bytes]) -> str:
    """One line, or the next `_READ_BYTES` of a longer one; empty at the end."""
    return pipe.readline(_READ_BYTES).decode(errors="replace")


def _make_expendable(pid: int) -> None:
    """Offer the child to the kernel first when memory is short, and let it dump no core.

    A core of a loaded model is as large as the model, holds prompts, and delays its death.
    A child that is already dead, or a system without these knobs, changes nothing.
    """
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(OOM_SCORE_ADJ), encoding="ascii")
    with contextlib.suppress(OSError):
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
