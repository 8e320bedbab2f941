"""The runner process: ``python -P -m server.runner FD [PIPE]``; `server.runner.process` starts it.

FD is its end of a socket pair that carries `server.runner.protocol`. Nothing else is on it: what
native code prints goes to stdout and stderr. PIPE takes its last words when it crashes; without it
stderr does. The process ends when the other end is closed, and
the kernel ends it when its parent dies.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import resource
import signal
import socket
import sys
from typing import NoReturn

from server.runner.lastwords import print_frames

PR_SET_PDEATHSIG = 1
"""Source: linux/prctl.h."""

SWITCH_INTERVAL_S = 0.0005
"""How long one Python thread may keep the other waiting. Why: the decode thread must not wait
5 ms, Python's default, for the I/O thread at every step."""


def main() -> int:
    """Prepare the process, then serve the one connection."""
    numbers = [int(word) for word in sys.argv[1:] if word.isdecimal()]
    if len(numbers) != len(sys.argv) - 1 or len(numbers) not in (1, 2):
        sys.stderr.write("usage: python -m server.runner FD [PIPE]\n")
        return 2
    crash_pipe = numbers[1] if numbers[1:] else sys.stderr.fileno()
    faulthandler.enable(file=crash_pipe)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    # Ctrl-C in a terminal goes to the whole group; it is meant for the server.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # A core of a model's size would fill the disk.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # A failed assertion must not start a debugger, and waiting threads must not spin beside a
    # server. Both are read by the libraries that the import below loads.
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    connection = socket.socket(fileno=numbers[0])
    connection.set_inheritable(False)
    if numbers[1:]:
        os.set_inheritable(crash_pipe, False)

    from server.runner.service import Service  # noqa: PLC0415 - see above

    with connection:
        return Service(connection, crash_pipe=crash_pipe).run()


def _exit() -> NoReturn:
    """End without finalizing: the I/O thread may sit in a read that finalization waits for."""
    try:
        code = main()
    except BaseException:  # noqa: BLE001 - the outermost edge of the process
        print_frames()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _exit()
