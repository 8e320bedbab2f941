"""The runner process: ``python -P -m server.runner FD``, started by `server.runner.process`.

FD is its end of a socket pair that carries `server.runner.protocol`. Nothing else is on it: what
native code prints goes to stdout and stderr. The process ends when the other end is closed, and
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
import traceback
from typing import NoReturn

PR_SET_PDEATHSIG = 1
"""Source: linux/prctl.h."""

SWITCH_INTERVAL_S = 0.0005
"""How long one Python thread may keep the other waiting. Why: the decode thread must not wait
5 ms, Python's default, for the I/O thread at every step."""

EXPECTED_ARGUMENTS = 2


def main() -> int:
    """Prepare the process, then serve the one connection."""
    if len(sys.argv) != EXPECTED_ARGUMENTS or not sys.argv[1].isdecimal():
        sys.stderr.write("usage: python -m server.runner FD\n")
        return 2
    faulthandler.enable()
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
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)

    from server.runner.service import Service  # noqa: PLC0415 - see above

    with connection:
        return Service(connection).run()


def _exit() -> NoReturn:
    """End without finalizing: the I/O thread may sit in a read that finalization waits for."""
    try:
        code = main()
    except BaseException:  # noqa: BLE001 - the outermost edge of the process
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _exit()
