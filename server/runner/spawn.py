"""A child process around native code: start it, keep its last words, say how it ended.

It gets two descriptors: its end of the conversation, and a pipe for its very last words (see
`server.runner.autopsy`). Parent side. The child leads its own session, so that one signal reaches
whatever it forks.
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

from server.runner.autopsy import LastWords, keepable, read_last_words

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
_MAX_LAST_WORDS_BYTES = 1 << 16
"""As much as a pipe holds unread: more than that the child never got rid of."""

_LOG = logging.getLogger(__name__)


class Child:
    """One child process and the last `MAX_LOG_LINES` lines it printed.

    The kernel's parent-death signal belongs to the *thread* that forked. Make a `Child` in a
    thread that outlives it.

    Attributes:
        pid: process id, and id of its process group.
        last_words: what came through the pipe; known after `read_log`.
        born_s: monotonic time of its start, in seconds.
        spoke_s: monotonic time of its last printed line, in seconds.
    """

    def __init__(self, *, command: Sequence[str], sock: socket.socket) -> None:
        """Start ``command`` with the numbers of ``sock`` and of a pipe appended.

        Raises:
            OSError: the process could not be started.
        """
        ours, theirs = os.pipe()
        try:
            self._process = subprocess.Popen(
                [*command, str(sock.fileno()), str(theirs)],
                pass_fds=(sock.fileno(), theirs),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **ENVIRONMENT},
            )
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        self._crash_pipe = ours
        self.pid = self._process.pid
        self.born_s = self.spoke_s = time.monotonic()
        self.last_words = LastWords()
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
        """Wait until everything it printed has been read; take its last words. After `wait`."""
        self._keeper.join(timeout_s)
        if self._crash_pipe >= 0:
            pipe, self._crash_pipe = self._crash_pipe, -1
            with open(pipe, "rb", buffering=0) as file:  # noqa: PTH123 - a descriptor
                os.set_blocking(pipe, False)  # whatever it forked may keep the other end open
                self.last_words = read_last_words(file.read(_MAX_LAST_WORDS_BYTES) or b"")

    @property
    def cause(self) -> str:
        """How it ended, in a word or two. Only after `wait`."""
        code = self._process.returncode
        if self._killed_because:
            return "killed by the server"
        return _signal_name(-code) if code is not None and code < 0 else f"exit {code}"

    def obituary(self, *, hide: str) -> str:
        """How it ended, in one line, with its last words less ``hide``. Only after `wait`."""
        code = self._process.returncode
        if self._killed_because:
            how = f"was killed: {self._killed_because}"
        elif code is not None and code < 0:
            how = f"was killed by {_signal_name(-code)}"
        else:
            how = f"ended with exit code {code}"
        printed = keepable(tuple(self._lines)[-1:], hide=hide)
        words = (self.last_words.assertion.replace(hide, ""), *printed)
        return ": ".join((f"the model's runner {how}", *[word for word in words if word][:1]))

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
