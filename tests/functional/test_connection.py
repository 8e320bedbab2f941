"""Bytes on a socket: clients that close one side, send too much, too little, too slowly."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

import server.connection
from tests.functional.live import LiveServer
from tests.functional.test_life_cycle import (
    CHAT,
    LONG,
    eventually,
    in_flight,
    post_raw,
)

LIMIT = 1 << 20
GET = b"GET /api/version HTTP/1.1\r\nHost: localhost\r\n"


def received(sock: socket.socket) -> bytes:
    with sock.makefile("rb") as file:
        return file.read()


def chat_bytes(version: str = "1.1", **more: Any) -> bytes:
    body = json.dumps({**CHAT, **more}).encode()
    head = (
        f"POST /api/chat HTTP/{version}\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("stream", [True, False])
def test_client_that_closes_its_sending_side_is_answered(
    tmp_path: Path, version: str, *, stream: bool
) -> None:
    script = {"words": ["a ", "b"], "step_s": 0.1, "load_s": 0.2}
    with (
        LiveServer(tmp_path, script=script) as server,
        server.raw(chat_bytes(version, stream=stream)) as sock,
    ):
        sock.shutdown(socket.SHUT_WR)
        answer = received(sock)
        assert b'"done_reason":"stop"' in answer
        assert answer.count(b"100 Continue") == (version == "1.1")
        eventually(lambda: in_flight(server) == 0)


def test_pipelining_client_that_closes_its_sending_side_gets_every_answer(tmp_path: Path) -> None:
    with LiveServer(tmp_path) as server, server.raw(chat_bytes() + GET + b"\r\n") as sock:
        sock.shutdown(socket.SHUT_WR)
        answer = received(sock)
        assert answer.index(b'"done_reason":"stop"') < answer.index(b'"version"')


def test_request_that_ends_in_the_middle_is_dropped(tmp_path: Path) -> None:
    with LiveServer(tmp_path) as server, server.raw(chat_bytes()[:-3]) as sock:
        sock.shutdown(socket.SHUT_WR)
        assert received(sock) == b""


@pytest.mark.parametrize("script", [LONG, {"hang": True}], ids=["streaming", "prefill"])
def test_client_that_closes_both_sides_frees_its_place(
    tmp_path: Path, script: dict[str, Any]
) -> None:
    with LiveServer(tmp_path, script=script) as server:
        server.post("/api/chat", model="tiny", messages=[])
        sock = post_raw(server, "/api/chat", CHAT)
        eventually(lambda: in_flight(server) == 1)
        sock.shutdown(socket.SHUT_WR)
        sock.close()
        eventually(lambda: in_flight(server) == 0)


def test_client_that_sends_too_much_can_read_the_refusal(tmp_path: Path) -> None:
    """``http.client`` reads only when everything has been sent."""
    with LiveServer(tmp_path, max_body_bytes=LIMIT) as server:
        status, data = server.ask("POST", "/v1/chat/completions", b" " * (32 * LIMIT))
        assert status == 413
        assert json.loads(data)["error"]["message"] == (
            f"request body: expected at most {LIMIT} bytes"
        )


def test_body_that_will_be_refused_is_not_asked_for(tmp_path: Path) -> None:
    head = GET.replace(b"GET", b"POST") + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    with LiveServer(tmp_path, max_body_bytes=LIMIT) as server:
        with server.raw(head % (LIMIT + 1)) as sock:
            assert sock.makefile("rb").readline() == b"HTTP/1.1 413 Request Entity Too Large\r\n"
        with server.raw(head % 2) as sock:
            assert sock.makefile("rb").readline() == b"HTTP/1.1 100 Continue\r\n"


def send_for_ever(sock: socket.socket) -> NoReturn:
    while True:
        sock.sendall(bytes(1 << 20))


def test_refused_client_that_goes_on_sending_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.connection, "LINGER_S", 0.1)
    head = GET.replace(b"GET", b"POST") + b"Content-Length: 9999999999\r\n\r\n"
    with LiveServer(tmp_path) as live, live.raw(head) as sock:
        assert b" 413 " in received(sock)
        with pytest.raises(OSError, match=r"reset|[Bb]roken pipe"):
            send_for_ever(sock)


@pytest.mark.parametrize("begun", [GET, chat_bytes()[:-3]], ids=["headers", "body"])
def test_request_that_never_becomes_whole_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setattr(server.connection, "RECEIVE_S", 0.1)
    with LiveServer(tmp_path) as live, live.raw(begun) as sock:
        assert received(sock) == b""


def test_connection_is_used_again(tmp_path: Path) -> None:
    with LiveServer(tmp_path) as server:
        connection = server.connect()
        try:
            connection.connect()
            first = connection.sock
            for _ in range(2):
                connection.request("POST", "/api/chat", json.dumps(CHAT))
                assert connection.getresponse().read().count(b"\n") == 3
                connection.request("GET", "/nowhere")
                assert connection.getresponse().read() == b"404 page not found"
            assert connection.sock is first
        finally:
            connection.close()


FEW_DESCRIPTORS = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (96, 96))
from server.__main__ import main
main()
"""


def test_more_clients_than_descriptors_wait_their_turn(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [
            sys.executable,
            "-P",
            "-c",
            FEW_DESCRIPTORS,
            "--port",
            "0",
            "--store",
            tmp_path,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        port = int(child.stdout.readline().rpartition(":")[2])
        crowd = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(120)]
        crowd[0].sendall(GET + b"\r\n")
        assert crowd[0].recv(12) == b"HTTP/1.1 200"
        assert len(list(Path(f"/proc/{child.pid}/fd").iterdir())) < 96
        for sock in crowd:
            sock.close()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/api/tags")
        assert connection.getresponse().status == 200
        connection.close()
    finally:
        child.kill()
        child.communicate()
