"""An OCI registry on loopback: pushes and pulls, tokens and logins, and every kind of trouble.

with registry() as fake:
    fake.push("lib/demo", "v1", [("application/vnd.ollama.image.model", weights, {})])
    fake.cut_after = [1000]         # the next blob's connection ends after 1 000 bytes
"""

from __future__ import annotations

import base64
import http.server
import json
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.fakes.ollama_store import digest_of

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
INDEX = "application/vnd.oci.image.index.v1+json"
Pushed = Sequence[tuple[str, bytes, dict[str, str]]]
"""Layers: media type, bytes, annotations."""


class Client:
    """Pushes images into any registry, as the distribution specification says."""

    def __init__(self, host: str) -> None:
        self.host = host

    def push(
        self,
        repository: str,
        tag: str,
        layers: Pushed,
        *,
        config: bytes = b"{}",
        media: str = MANIFEST,
    ) -> bytes:
        """Push an image; returns its manifest."""
        for data in (config, *(data for _, data, _ in layers)):
            self.push_blob(repository, data)
        document = {
            "schemaVersion": 2,
            "mediaType": media,
            "config": {
                "mediaType": "application/vnd.oci.empty.v1+json"
                if media == MANIFEST
                else "application/vnd.docker.container.image.v1+json",
                "digest": digest_of(config),
                "size": len(config),
            },
            "layers": [
                {"mediaType": kind, "digest": digest_of(data), "size": len(data)}
                | ({"annotations": annotations} if annotations else {})
                for kind, data, annotations in layers
            ],
        }
        manifest = json.dumps(document, separators=(",", ":")).encode()
        self.push_manifest(repository, tag, manifest, media)
        return manifest

    def push_blob(self, repository: str, data: bytes) -> None:
        url = f"http://{self.host}/v2/{repository}/blobs/uploads/"
        place = self._send("POST", url, b"").headers["Location"]
        place = urllib.parse.urljoin(url, place)
        mark = "&" if "?" in place else "?"
        self._send("PUT", f"{place}{mark}digest={digest_of(data)}", data)

    def push_manifest(self, repository: str, tag: str, data: bytes, media: str) -> None:
        url = f"http://{self.host}/v2/{repository}/manifests/{tag}"
        self._send("PUT", url, data, media)

    def _send(self, method: str, url: str, data: bytes, media: str = "") -> Any:
        headers = {"Content-Type": media or "application/octet-stream"}
        request = urllib.request.Request(url, data, headers, method=method)  # noqa: S310 - loopback
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
            return answer


class Fake(Client):
    """What the fake holds, and how it behaves.

    Attributes:
        cut_after: of the next blob answers, after how many bytes each connection ends.
        spoil: blobs are given with their last byte changed.
        ranges: ranges are honoured.
        failures: how many of the next answers are a 503.
        login: ``user:password`` that a token, or a read, needs; ``auth`` says which.
        redirect: blobs are answered with a redirect to this host.
        asked: lines of what was asked, with the range and the authorization.
    """

    def __init__(self, host: str) -> None:
        super().__init__(host)
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, tuple[str, bytes]] = {}
        self.cut_after: list[int] = []
        self.spoil = False
        self.ranges = True
        self.failures = 0
        self.auth = ""
        self.login = ""
        self.realm = f"http://{host}/token"
        self.redirect = ""
        self.asked: list[str] = []


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: Fake

    def do_GET(self) -> None:
        fake, path = self.fake, self.path
        given = self.headers.get("Authorization", "")
        fake.asked.append(f"{path} {self.headers.get('Range', '')} {given}".strip())
        if path.startswith("/token"):
            self._token(given)
        elif not self._allowed(given):
            self._refuse()
        elif fake.failures:
            fake.failures -= 1
            self._answer(503, b"")
        elif found := re.fullmatch(r"/v2/(.+)/manifests/(.+)", path):
            self._manifest(f"{found[1]}@{found[2]}")
        elif found := re.fullmatch(r"/v2/.+/blobs/(sha256:[0-9a-f]+)", path):
            self._blob(found[1])
        else:
            self._answer(404, b"{}")

    def do_HEAD(self) -> None:
        found = re.fullmatch(r"/v2/.+/blobs/(sha256:[0-9a-f]+)", self.path)
        if not self._allowed(self.headers.get("Authorization", "")):
            self._refuse()
            return
        self._answer(200 if found and found[1] in self.fake.blobs else 404, b"")

    def do_POST(self) -> None:
        self._answer(202, b"", {"Location": self.path + "here?state=x"})

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if found := re.fullmatch(r"/v2/(.+)/manifests/(.+)", self.path):
            for name in (found[2], digest_of(data)):
                self.fake.manifests[f"{found[1]}@{name}"] = (self.headers["Content-Type"], data)
        else:
            assert urllib.parse.unquote(self.path.partition("digest=")[2]) == digest_of(data)
            self.fake.blobs[digest_of(data)] = data
        self._answer(201, b"")

    def _allowed(self, given: str) -> bool:
        if self.fake.auth == "bearer":
            return given == "Bearer a-token"
        if self.fake.auth == "basic":
            return given == "Basic " + base64.b64encode(self.fake.login.encode()).decode()
        return True

    def _refuse(self) -> None:
        challenge = 'Basic realm="x"'
        if self.fake.auth == "bearer":
            challenge = f'Bearer realm="{self.fake.realm}",service="s",scope="repository:x:pull"'
        self._answer(401, b"{}", {"WWW-Authenticate": challenge})

    def _token(self, given: str) -> None:
        wanted = "Basic " + base64.b64encode(self.fake.login.encode()).decode()
        if self.fake.login and given != wanted:
            self._answer(401, b"{}")
        else:
            self._answer(200, b'{"access_token":"a-token"}')

    def _manifest(self, name: str) -> None:
        if name not in self.fake.manifests:
            self._answer(404, b"{}")
            return
        media, data = self.fake.manifests[name]
        self._answer(200, data, {"Content-Type": media})

    def _blob(self, digest: str) -> None:
        if self.fake.redirect:
            self._answer(307, b"", {"Location": f"http://{self.fake.redirect}{self.path}"})
            return
        if digest not in self.fake.blobs:
            self._answer(404, b"{}")
            return
        data = self.fake.blobs[digest]
        if self.fake.spoil:
            data = data[:-1] + bytes([data[-1] ^ 1])
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked and self.fake.ranges else 0
        status = 206 if start else 200
        headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        cut = self.fake.cut_after.pop(0) if self.fake.cut_after else None
        self._answer(status, data[start:], headers, cut=cut)

    def _answer(
        self,
        status: int,
        data: bytes,
        headers: dict[str, str] | None = None,
        cut: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data if cut is None else data[:cut])
        if cut is not None:
            self.close_connection = True

    def log_message(self, *_args: Any) -> None:
        return


@contextmanager
def registry() -> Iterator[Fake]:
    """A fake registry on a free port."""
    handler = type("OwnHandler", (Handler,), {})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    fake = Fake(f"127.0.0.1:{server.server_port}")
    handler.fake = fake  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


PROGRAM = shutil.which("docker-registry")
"""Debian's package of the reference registry; ``None`` where it is not installed."""


@contextmanager
def real_registry(folder: Path) -> Iterator[Client]:
    """The reference implementation, as a process of its own."""
    assert PROGRAM is not None
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{sock.getsockname()[1]}"
    config = folder / "registry.yml"
    config.write_text(
        "version: 0.1\nlog: {level: error}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder / 'registry'}}}}}\n"
        f"http: {{addr: '{host}'}}\n"
    )
    child = subprocess.Popen(
        [PROGRAM, "serve", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline_s = time.monotonic() + 30
        while True:
            try:
                with urllib.request.urlopen(f"http://{host}/v2/", timeout=5):
                    break
            except OSError:
                assert child.poll() is None
                assert time.monotonic() < deadline_s
                time.sleep(0.05)
        yield Client(host)
    finally:
        child.terminate()
        child.wait(20)
