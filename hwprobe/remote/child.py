"""The worker's child process: ``python -P -m hwprobe.remote.child FD THREADS MEMORY``.

It runs the engine's server on a loopback port and carries FD, one connection, to it. Where the
kernel allows it, that port is in a network of its own, which nothing else can reach.
Nothing is imported from the bindings: of the engine only its basic libraries are loaded.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib.util
import os
import resource
import signal
import socket
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final, NoReturn

from hwprobe.errors import WorkerError
from hwprobe.remote.dialling import is_own_socket
from hwprobe.remote.relay import pump

LIBRARY_VARIABLE: Final = "LLAMA_CPP_LIB_PATH"
START_S: Final = 20.0
SLACK_BYTES: Final = 256 << 20
"""Memory beside what is offered: the program, work space, and the protocol's copies."""
OOM_SCORE_ADJ: Final = 500
_CPU: Final = 0
"""Source: enum ggml_backend_dev_type in ggml-backend.h."""
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1


def harden(memory_bytes: int) -> None:
    """Die with the parent, gain nothing, dump nothing, and take no more than is offered."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    most = memory_bytes + SLACK_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE_ADJ), encoding="ascii")


def isolate() -> bool:
    """Move into a network with nothing but a loopback of its own; False if that is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) and libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET):
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        wanted = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, wanted))[1]
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))
    return True


def load_engine() -> tuple[Any, Any]:
    """The engine's device registry and its protocol, without the models' part.

    Raises:
        WorkerError: they are not installed, or built without it.
    """
    chosen = os.environ.get(LIBRARY_VARIABLE)
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        raise WorkerError("the engine is not installed")
    folder = Path(chosen) if chosen else Path(spec.submodule_search_locations[0]) / "lib"
    try:
        registry = ctypes.CDLL(str(folder / "libggml.so.0"))
        protocol = ctypes.CDLL(str(folder / "libggml-rpc.so.0"))
    except OSError as error:
        raise WorkerError(f"the engine's libraries cannot be loaded: {error}") from error
    return registry, protocol


def serve(registry: Any, protocol: Any, endpoint: str, threads: int) -> None:
    """Run the engine's server for this machine's CPU; does not return while it works."""
    find = registry.ggml_backend_dev_by_type
    find.argtypes, find.restype = [ctypes.c_int], ctypes.c_void_p
    devices = (ctypes.c_void_p * 1)(find(_CPU))
    start = protocol.ggml_backend_rpc_start_server
    start.restype = None
    start.argtypes = [
        *(ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t),
        ctypes.c_void_p,
    ]
    start(endpoint.encode(), None, threads, 1, devices)


def main() -> int:
    """Serve the one connection."""
    if len(sys.argv) != 4 or not all(word.isdecimal() for word in sys.argv[1:]):  # noqa: PLR2004
        sys.stderr.write("usage: python -m hwprobe.remote.child FD THREADS MEMORY\n")
        return 2
    descriptor, threads, memory_bytes = map(int, sys.argv[1:])
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    harden(memory_bytes)
    connection = socket.socket(fileno=descriptor)
    connection.set_inheritable(False)
    try:
        registry, protocol = load_engine()
        alone = isolate()  # before there is a second thread
        with socket.create_server(("127.0.0.1", 0)) as reserved:
            port = reserved.getsockname()[1]
        endpoint = f"127.0.0.1:{port}"
        arguments = (registry, protocol, endpoint, max(threads, 1))
        threading.Thread(target=serve, args=arguments, daemon=True).start()
        local = _connected(port, alone=alone)
    except (WorkerError, OSError) as error:
        sys.stderr.write(f"worker: {error}\n")
        return 1
    pump(connection, local)
    return 0


def _connected(port: int, *, alone: bool) -> socket.socket:
    begin_s = time.monotonic()
    while True:
        try:
            local = socket.create_connection(("127.0.0.1", port), 1.0)
        except OSError:
            if time.monotonic() - begin_s > START_S:
                raise
            time.sleep(0.01)
            continue
        while not alone and not is_own_socket(port, local.getsockname()[1]):
            if time.monotonic() - begin_s > START_S:
                raise WorkerError("another program took the loopback port")
            time.sleep(0.01)  # the server accepts in a thread of its own
        local.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return local


def _exit() -> NoReturn:
    code = main()
    sys.stderr.flush()
    os._exit(code)  # the engine's server never returns


if __name__ == "__main__":
    _exit()
