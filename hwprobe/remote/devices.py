"""Workers as the engine's devices. For child processes that have loaded the engine.

A tunnel leads to each; its loopback address is what the engine connects to. A small buffer is kept
on each worker: while one is there, the engine keeps its connection, and what the connection holds.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from hwprobe.errors import WorkerError
from hwprobe.remote.dialling import Tunnel
from hwprobe.remote.terms import WorkerAddress
from hwprobe.remote.tls import Identity, Trust

MOST_WORKERS: Final = 16
"""Source: GGML_RPC_MAX_SERVERS in ggml-rpc.h."""
KEY_VARIABLE: Final = "SATCHEL_ENGINE_KEY"
PEERS_VARIABLE: Final = "SATCHEL_ENGINE_PEERS"
"""How this process learns the files of its `Identity`."""
_ANCHOR_BYTES: Final = 64
_NOTICE_S: Final = 0.2
"""How long a tunnel may take to notice what the engine has just aborted over."""

_TUNNELS: dict[str, Tunnel] = {}
_DEVICES: dict[str, int] = {}


def identity_of_process() -> Identity:
    """The files this process was told to use.

    Raises:
        WorkerError: it was told none.
    """
    key, peers = os.environ.get(KEY_VARIABLE, ""), os.environ.get(PEERS_VARIABLE, "")
    if not key or not peers:
        raise WorkerError("workers need a key and the certificates of peers: engine.key and peers")
    return Identity(Path(key), Path(peers))


def device_list(library: Any, addresses: Sequence[str]) -> Any:
    """Pointers to the devices of workers, and an empty one behind them, as the engine wants them.

    Args:
        library: the engine, as ctypes has loaded it.
        addresses: of the workers; each is connected to once per process.

    Raises:
        WorkerError: one cannot be reached or used; or the engine was built without this.
    """
    if len(addresses) > MOST_WORKERS:
        raise WorkerError(f"workers: expected at most {MOST_WORKERS}, found {len(addresses)}")
    trust = Trust(identity_of_process(), server=False)
    pointers = [_device(library, address, trust) for address in addresses]
    return (ctypes.c_void_p * (len(pointers) + 1))(*pointers, None)


def lost_workers() -> str:
    """Which workers' connections have ended, and how; empty if none has."""
    if not _TUNNELS:
        return ""
    begin_s = time.monotonic()
    while time.monotonic() - begin_s < _NOTICE_S:
        lost = [
            f"worker {tunnel.address}: {tunnel.lost}" for tunnel in _TUNNELS.values() if tunnel.lost
        ]
        if lost:
            return "; ".join(lost)
        time.sleep(0.01)
    return ""


def _device(library: Any, address: str, trust: Trust) -> int:
    if address in _DEVICES:
        return _DEVICES[address]
    add = _function(library, "ggml_backend_rpc_add_server", ctypes.c_void_p, ctypes.c_char_p)
    get = _function(
        library, "ggml_backend_reg_dev_get", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t
    )
    buffer_type = _function(
        library, "ggml_backend_dev_buffer_type", ctypes.c_void_p, ctypes.c_void_p
    )
    allocate = _function(
        library,
        "ggml_backend_buft_alloc_buffer",
        *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t),
    )
    tunnel = Tunnel(WorkerAddress.parse(address), trust)
    registered = add(tunnel.endpoint.encode())
    if not registered:
        raise WorkerError(f"worker {address}: it has no devices")
    device = get(registered, 0)
    if not allocate(buffer_type(device), _ANCHOR_BYTES):
        raise WorkerError(f"worker {address}: it has no memory")
    _TUNNELS[address] = tunnel
    tunnel.keep()
    _DEVICES[address] = int(device)
    return _DEVICES[address]


def _function(library: Any, name: str, result: Any, *arguments: Any) -> Any:
    try:
        function = getattr(library, name)
    except AttributeError as error:
        raise WorkerError(
            "this build of the engine knows no workers", hint="build it with GGML_RPC=ON"
        ) from error
    function.restype = result
    function.argtypes = list(arguments)
    return function
