"""The part of Hugging Face's hub that downloads ask of, on loopback.

with hub() as fake:
    fake.files["org/demo"] = {"demo-Q8_0.gguf": weights, "LICENSE": b"MIT"}
"""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_LARGE = (".gguf", ".safetensors")


class Hub:
    """What the fake holds, and how it behaves.

    Attributes:
        files: content by name, by repository.
        token: what private repositories ask for; empty for open ones.
        gated: repositories answered as gated.
        spoil: large files are listed under another digest than theirs.
        cut_after: the next large file's connection ends after so many bytes.
        asked: method, path, range and authorization of each request.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.token = ""
        self.gated: set[str] = set()
        self.spoil = False
        self.cut_after: list[int] = []
        self.asked: list[str] = []
        self.endpoint = ""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urllib.parse.unquote(self.path.partition("?")[0])
        given = self.headers.get("Authorization", "")
        self.fake.asked.append(f"{self.command} {path} {self.headers.get('Range', '')} {given}")
        if self.fake.token and given != f"Bearer {self.fake.token}":
            self._answer(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._info(found[1], found[2] or "main")
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(found[1], found[2], found[3])
        else:
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _info(self, repository: str, revision: str) -> None:
        if repository in self.fake.gated:
            self._answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif repository not in self.fake.files:
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", "v1", COMMIT):
            self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        else:
            siblings = [
                self._sibling(name, data) for name, data in self.fake.files[repository].items()
            ]
            value = {"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings}
            self._answer(200, json.dumps(value).encode())

    def _sibling(self, name: str, data: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": "x"}
        if name.endswith(_LARGE):
            listed = hashlib.sha256(data + (b"!" if self.fake.spoil else b"")).hexdigest()
            entry["lfs"] = {"sha256": listed, "size": len(data), "pointerSize": 130}
        return entry

    def _file(self, repository: str, revision: str, name: str) -> None:
        data = self.fake.files.get(repository, {}).get(name)
        if data is None or revision != COMMIT:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        digest = hashlib.sha256(data).hexdigest()
        headers = {
            "X-Repo-Commit": COMMIT,
            "ETag": f'"{digest if name.endswith(_LARGE) else digest[:40]}"',
            "Accept-Ranges": "bytes",
        }
        asked = re.fullmatch(r"bytes=(\d+)-.*", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        is_large = name.endswith(_LARGE) and self.command == "GET"
        cut = self.fake.cut_after.pop(0) if is_large and self.fake.cut_after else None
        self._answer(206 if start else 200, data[start:], headers, cut=cut)

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
        if self.command == "GET":
            self.wfile.write(data if cut is None else data[:cut])
        if cut is not None:
            self.close_connection = True

    def log_message(self, *_args: Any) -> None:
        return


@contextmanager
def hub() -> Iterator[Hub]:
    """A fake hub on a free port; its address is ``endpoint``."""
    fake = Hub()
    handler = type("OwnHandler", (Handler,), {"fake": fake})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    fake.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
