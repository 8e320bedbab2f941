"""kill -9 of the server at any point under load: nothing is left behind, the store is whole."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.layout import Paths
from appliance.store import Store
from tests.functional.test_program import CHAT, ask, environment, put_demo

pytestmark = [pytest.mark.faults, pytest.mark.engine]

POINTS = 20
LONGEST_S = 1.2
"""Half of the servers are killed this long after their start at most, which is before or while
they load; the others this long after their first answer."""

MARK = "SATCHEL_TEST_MARK"
"""Handed down to every process a server starts, however deep."""


def start(root: Path, mark: str) -> subprocess.Popen[bytes]:
    """A server on a free port, which it writes to a file; it may be killed before it does."""
    port_file(root).unlink(missing_ok=True)
    return subprocess.Popen(
        [
            *(sys.executable, "-P", "-m", "server", "--port", "0"),
            *("--store", str(root / "store"), "--ready-file", str(port_file(root))),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment() | {MARK: mark},
    )


def port_file(root: Path) -> Path:
    return root / "ready"


def port_of(root: Path, server: subprocess.Popen[bytes]) -> int | None:
    """Where it listens, once it does; nothing if it has ended."""
    while server.poll() is None:
        with contextlib.suppress(FileNotFoundError):
            return int(port_file(root).read_text().rpartition(":")[2])
        time.sleep(0.005)
    return None


@contextlib.contextmanager
def load(root: Path, server: subprocess.Popen[bytes]) -> Iterator[threading.Event]:
    """Clients that stream, load, unload, copy and delete until the server has gone.

    Yields:
        An event that is set by the first chat that is answered.
    """
    answered = threading.Event()

    def insist(*requests: tuple[str, str, dict[str, Any]]) -> None:
        port = port_of(root, server)
        while server.poll() is None:
            for method, path, body in requests:
                with contextlib.suppress(OSError, http.client.HTTPException):
                    ask(port or 0, method, path, body)
                    if path == "/api/chat":
                        answered.set()

    chat = ("POST", "/api/chat", {**CHAT, "options": {"num_predict": 200}})
    unload = ("POST", "/api/generate", {"model": "demo", "keep_alive": 0})
    copy = ("POST", "/api/copy", {"source": "demo", "destination": "other"})
    delete = ("DELETE", "/api/delete", {"model": "other"})
    clients = [
        threading.Thread(target=insist, args=requests)
        for requests in ((chat,), (chat,), (chat, unload), (copy, delete))
    ]
    for client in clients:
        client.start()
    try:
        yield answered
    finally:
        server.kill()
        server.wait()
        for client in clients:
            client.join()


def processes(mark: str) -> list[int]:
    """Everything that carries this mark in its environment, wherever it belongs."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def gone(mark: str) -> bool:
    for _ in range(100):
        if not processes(mark):
            return True
        time.sleep(0.02)
    return False


def contents(store: Path) -> dict[str, str]:
    """Digest by name of all that models are made of; what the other name adds left out."""
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in ("blobs", "manifests")
        for path in (store / folder).rglob("*")
        if path.is_file() and "other" not in path.parts
    }


def test_server_killed_anywhere_leaves_no_process_and_a_whole_store(tmp_path: Path) -> None:
    store = tmp_path / "store"
    put_demo(store)
    before = contents(store)
    chance = random.Random(20)
    most = 0
    for point in range(POINTS):
        if point % 4 == 0:  # the engine is tested again, in a process of its own
            shutil.rmtree(store / "satchel" / "engine", ignore_errors=True)
        mark = f"{os.getpid()}-{point}"
        server = start(tmp_path, mark)
        with load(tmp_path, server) as answered:
            assert point % 2 == 0 or answered.wait(30)
            time.sleep(chance.uniform(0.0, LONGEST_S))
            assert server.poll() is None
            most = max(most, len(processes(mark)))
            server.send_signal(signal.SIGKILL)
            server.wait()
        assert gone(mark), f"killed at point {point}: {processes(mark)} still run"
        assert contents(store) == before
        survey = Store(Paths(store)).survey()
        assert not survey.faults
        assert {model.name.model for model in survey.models} <= {"demo", "other"}
    assert most > 1, "no server was killed while it had a runner"

    mark = f"{os.getpid()}-last"
    server = start(tmp_path, mark)
    try:
        port = port_of(tmp_path, server)
        assert port is not None
        status, data = ask(port, "POST", "/api/chat", {**CHAT, "stream": False})
        assert status == 200, data
        assert "pong" in json.loads(data)["message"]["content"]
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
        assert gone(mark)
    finally:
        server.kill()
        server.wait()
