"""Blobs through real sockets: what is refused, and that a body is read while it arrives."""

from __future__ import annotations

import hashlib
import http.client
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.uploads import UploadLimits
from bundler.format import fsio
from bundler.format.digest import Digest
from server.access import parse_keys
from server.arriving import HELD_BYTES
from tests.functional.live import LiveServer

DATA = os.urandom(3 << 20)  # more than the library would keep in memory


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def left_of_uploads(live: LiveServer) -> list[str]:
    return sorted(path.name for path in live.store.paths.uploads.iterdir())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with LiveServer(tmp_path_factory.mktemp("blobs")) as live:
        yield live


@pytest.mark.parametrize(
    "digest",
    [
        "sha256:12",
        "sha256:" + "g" * 64,
        "md5:" + "0" * 64,
        "sha256:" + "0" * 65,
        "sha256:..%2f..%2fetc",
        "sha256-" + "0" * 63,
        "0" * 64,
    ],
)
@pytest.mark.parametrize("method", ["HEAD", "POST"])
def test_a_digest_of_another_form_is_refused(server: LiveServer, method: str, digest: str) -> None:
    status, body = server.ask(method, f"/api/blobs/{digest}", b"" if method == "HEAD" else b"x")
    assert status == 400
    assert body == (b"" if method == "HEAD" else b'{"error":"invalid digest format"}')


def test_another_content_is_refused_and_leaves_nothing(server: LiveServer) -> None:
    wanted = digest_of(b"wanted")
    status, body = server.ask("POST", f"/api/blobs/{wanted}", b"other")
    assert status == 400
    found = digest_of(b"other")
    text = f'{{"error":"digest mismatch, expected \\"{wanted}\\", got \\"{found}\\""}}'
    assert body.decode() == text
    assert left_of_uploads(server) == []
    assert server.ask("HEAD", f"/api/blobs/{wanted}")[0] == 404


def test_a_blob_arrives_once_and_is_there(server: LiveServer) -> None:
    path = f"/api/blobs/{digest_of(DATA)}"
    assert server.ask("HEAD", path)[0] == 404
    assert server.ask("POST", path, DATA) == (201, b"")
    assert server.ask("HEAD", path.replace("sha256:", "sha256-")) == (200, b"")
    assert server.ask("POST", path, DATA) == (200, b"")
    stored = server.store.paths.blob(Digest.of(DATA))
    assert stored.read_bytes() == DATA
    assert stored.stat().st_mode & 0o777 == 0o444
    assert left_of_uploads(server) == []


def test_an_empty_blob_is_a_blob(server: LiveServer) -> None:
    assert server.ask("POST", f"/api/blobs/{digest_of(b'')}", b"")[0] == 201


def test_a_chunked_body_needs_no_length(server: LiveServer) -> None:
    data = b"chunked" * 100_000
    connection = server.connect()
    pieces = (data[at : at + 65_536] for at in range(0, len(data), 65_536))
    connection.request("POST", f"/api/blobs/{digest_of(data)}", pieces, encode_chunked=True)
    assert connection.getresponse().status == 201
    connection.close()


def test_garbage_between_chunks_is_refused_and_the_connection_ends(server: LiveServer) -> None:
    sock = server.raw(
        f"POST /api/blobs/{digest_of(b'never')} HTTP/1.1\r\nHost: localhost\r\n"
        "Transfer-Encoding: chunked\r\n\r\n5\r\nabcdeXX".encode()
    )
    with sock:
        answer = sock.makefile("rb").read()
    assert b"499" in answer.split(b"\r\n")[0]
    assert left_of_uploads(server) == []


def test_the_connection_lasts_beyond_an_upload(server: LiveServer) -> None:
    """Also where the body was not read: it was thrown away as it came."""
    data = os.urandom(2 << 20)
    connection = server.connect()
    for status in (201, 200, 200):
        connection.request("POST", f"/api/blobs/{digest_of(data)}", data)
        response = connection.getresponse()
        assert (response.status, response.read()) == (status, b"")
    connection.request("GET", "/api/version")
    assert connection.getresponse().status == 200
    connection.close()


def test_two_requests_behind_each_other_are_both_answered(server: LiveServer) -> None:
    data = b"pipelined"
    sock = server.raw(
        f"POST /api/blobs/{digest_of(data)} HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Length: {len(data)}\r\n\r\n".encode()
        + data
        + b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    with sock:
        answers = sock.makefile("rb").read()
    assert answers.startswith(b"HTTP/1.1 201")
    assert answers.endswith(b"Ollama is running")


def _begin(server: LiveServer, digest: str, length: int, more: str = "") -> socket.socket:
    return server.raw(
        f"POST /api/blobs/{digest} HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Length: {length}\r\n{more}\r\n".encode()
    )


def _until(holds: object, *, tries: int = 500) -> None:
    assert callable(holds)
    for _ in range(tries):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("it never came to hold")


def test_a_body_is_written_while_it_arrives(server: LiveServer) -> None:
    data = os.urandom(1 << 20)
    with _begin(server, digest_of(data), len(data)) as sock:
        sock.sendall(data[: 1 << 19])
        _until(lambda: left_of_uploads(server))
        (staged,) = server.store.paths.uploads.iterdir()
        _until(lambda: staged.read_bytes()[: 1 << 19] == data[: 1 << 19])
        sock.sendall(data[1 << 19 :])
        assert sock.recv(64).startswith(b"HTTP/1.1 201")


def test_a_client_that_leaves_leaves_nothing(server: LiveServer) -> None:
    with _begin(server, digest_of(b"gone"), 1 << 20) as sock:
        sock.sendall(b"x" * 4096)
        _until(lambda: left_of_uploads(server))
    _until(lambda: not left_of_uploads(server))


def test_a_client_that_asks_first_is_answered_without_its_body(server: LiveServer) -> None:
    data = os.urandom(1 << 16)
    expect = "Expect: 100-continue\r\n"
    with _begin(server, digest_of(data), len(data), expect) as sock:
        assert sock.recv(64).startswith(b"HTTP/1.1 100 Continue")
        sock.sendall(data)
        assert sock.recv(64).startswith(b"HTTP/1.1 201")
    with _begin(server, digest_of(data), len(data), expect) as sock:
        assert sock.recv(64).startswith(b"HTTP/1.1 200")


def test_more_than_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with LiveServer(tmp_path, upload=UploadLimits(max_bytes=1000, reserve_bytes=0)) as live:
        status, body = live.ask("POST", f"/api/blobs/{digest_of(DATA)}", DATA)
        assert status == 413
        assert body == b'{"error":"blob: expected at most 1000 bytes, found 3145728"}'
        # Without a length, as soon as it shows.
        connection = live.connect()
        pieces = (DATA[at : at + 400] for at in range(0, 4000, 400))
        connection.request("POST", f"/api/blobs/{digest_of(DATA)}", pieces, encode_chunked=True)
        assert connection.getresponse().status == 413
        connection.close()
        assert left_of_uploads(live) == []


def test_too_little_room_is_507_before_it_is_read(tmp_path: Path) -> None:
    with LiveServer(tmp_path, upload=UploadLimits(max_bytes=0, reserve_bytes=1 << 60)) as live:
        status, body = live.ask("POST", f"/api/blobs/{digest_of(DATA)}", DATA)
        assert status == 507
        assert b"in reserve, found" in body
        assert str(tmp_path).encode() not in body
        assert left_of_uploads(live) == []


@pytest.mark.parametrize("create", ["off", "signed"])
def test_blobs_are_refused_where_nobody_may_bring_any(tmp_path: Path, create: str) -> None:
    with LiveServer(tmp_path, create=create) as live:  # type: ignore[arg-type]
        assert live.ask("POST", f"/api/blobs/{digest_of(b'x')}", b"x")[0] == 403
        assert live.ask("HEAD", f"/api/blobs/{digest_of(b'x')}")[0] == 404


def test_a_key_is_asked_for_before_the_body(tmp_path: Path) -> None:
    keys = parse_keys(digest_of(b"key"), source="test")
    with (
        LiveServer(tmp_path, keys=keys) as live,
        _begin(live, digest_of(DATA), len(DATA)) as sock,
    ):
        assert sock.recv(64).startswith(b"HTTP/1.1 401")


def test_a_slow_disk_stops_the_client_not_the_server(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not written yet waits in the client, but for a few megabytes."""
    gate = threading.Event()
    write_all = fsio.write_all

    def slow(descriptor: int, data: bytes) -> None:
        gate.wait(30)
        write_all(descriptor, data)

    data = b"\0" * (64 << 20)
    digest = digest_of(data)
    monkeypatch.setattr(fsio, "write_all", slow)
    with _begin(server, digest, len(data)) as sock:
        sock.setblocking(False)
        sent = 0
        still = 0
        while still < 50:
            try:
                sent += sock.send(data[sent : sent + (1 << 20)])
                still = 0
            except BlockingIOError:
                still += 1
                time.sleep(0.01)
        assert sent < HELD_BYTES + (24 << 20)  # what sockets hold comes on top
        assert server.ask("GET", "/api/version")[0] == 200
        gate.set()
        sock.setblocking(True)
        sock.sendall(data[sent:])
        assert sock.recv(64).startswith(b"HTTP/1.1 201")


def test_the_ends_of_uploads_that_crashed_are_removed_by_the_next(server: LiveServer) -> None:
    left = server.store.paths.uploads / f"sha256-{'0' * 64}.dead.part"
    left.write_bytes(b"half")
    assert server.ask("POST", f"/api/blobs/{digest_of(b'next')}", b"next")[0] == 201
    assert not left.exists()


def test_http_1_0_is_served_too(server: LiveServer) -> None:
    data = b"old"
    sock = server.raw(
        f"POST /api/blobs/{digest_of(data)} HTTP/1.0\r\nContent-Length: 3\r\n\r\nold".encode()
    )
    with sock:
        assert b"201" in sock.makefile("rb").read().split(b"\r\n")[0]


def test_many_at_once_of_one_content(server: LiveServer) -> None:
    data = os.urandom(1 << 20)
    statuses: list[int] = []

    def send() -> None:
        statuses.append(server.ask("POST", f"/api/blobs/{digest_of(data)}", data)[0])

    threads = [threading.Thread(target=send) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) <= {200, 201}
    assert server.store.paths.blob(Digest.of(data)).read_bytes() == data
    assert left_of_uploads(server) == []


def test_the_http_client_of_the_standard_library_reads_a_refusal(tmp_path: Path) -> None:
    with LiveServer(tmp_path, create="off") as live:
        connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=30)
        connection.request("POST", f"/api/blobs/{digest_of(DATA)}", DATA)
        assert connection.getresponse().status == 403
        connection.close()
