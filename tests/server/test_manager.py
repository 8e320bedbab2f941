"""What the service manager hears, and when."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.manager import Manager, this_manager


@pytest.fixture
def heard(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        yield sock


def lines(sock: socket.socket) -> list[str]:
    return sock.recv(4096).decode().split("\n")


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"NOTIFY_SOCKET": ""},
        {"NOTIFY_SOCKET": "relative/path"},
        {"NOTIFY_SOCKET": "vsock:2:1234"},
    ],
)
def test_without_a_manager_nothing_is_sent(environ: dict[str, str]) -> None:
    manager = Manager.of(environ, pid=1)
    assert manager.address == ""
    manager.ready("here")
    manager.alive()


@pytest.mark.parametrize(
    "watchdog",
    [
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "-1"},
        {"WATCHDOG_USEC": "٣"},
        {"WATCHDOG_USEC": "9" * 400},
        {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "2"},
    ],
)
def test_watchdog_of_others_or_of_no_sense_is_none(watchdog: dict[str, str]) -> None:
    assert Manager.of(watchdog, pid=1).watchdog_s == 0


@given(st.dictionaries(st.sampled_from(["WATCHDOG_USEC", "WATCHDOG_PID"]), st.text()))
def test_no_environment_is_an_error(environ: dict[str, str]) -> None:
    assert Manager.of(environ, pid=7).watchdog_s >= 0


def test_manager_that_does_not_listen_stops_nothing(tmp_path: Path) -> None:
    Manager(address=str(tmp_path / "nobody")).ready("here")


def test_what_is_said(heard: socket.socket) -> None:
    manager = Manager(address=heard.getsockname())
    manager.ready("serving on\nhttp://127.0.0.1:1")
    assert lines(heard) == ["READY=1", "STATUS=serving on http://127.0.0.1:1"]
    manager.reloading()
    first, second = lines(heard)
    assert first == "RELOADING=1"
    assert int(second.removeprefix("MONOTONIC_USEC=")) > 0
    manager.stopping("bye", takes_s=1.5)
    assert lines(heard) == ["STOPPING=1", "STATUS=bye", "EXTEND_TIMEOUT_USEC=1500000"]


def test_abstract_address() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0satchel-test-{os.getpid()}")
        Manager(address=f"@satchel-test-{os.getpid()}").ready("here")
        assert lines(sock) == ["READY=1", "STATUS=here"]


def test_alive_three_times_in_an_interval(heard: socket.socket) -> None:
    now = [100.0]
    manager = Manager(address=heard.getsockname(), watchdog_s=3, clock_s=lambda: now[0])
    said = []
    for _ in range(60):
        manager.alive()
        with contextlib.suppress(BlockingIOError):
            said.append((now[0], lines(heard)))
        now[0] += 0.1
    assert all(text == ["WATCHDOG=1"] for _, text in said)
    gaps = [b - a for (a, _), (b, _) in itertools.pairwise(said)]
    assert len(said) == 6
    assert max(gaps) < 1.5


def test_children_do_not_inherit_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    assert this_manager().watchdog_s == 2
    assert "NOTIFY_SOCKET" not in os.environ
    assert "WATCHDOG_USEC" not in os.environ
