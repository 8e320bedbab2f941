"""A thin client for the verbs that need the server: one connection per call, JSON in and out."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from appliance.addresses import HostText
from appliance.errors import ServerRefusedError, ServerUnreachableError

_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where to connect, not listen
_PIECE_BYTES = 1 << 20
_MAX_ANSWER_BYTES = 64 << 20
"""Longest line or body taken from the server; `show` with a template is far below 1 MiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Talks to one server.

    Attributes:
        address: where it listens; an any-address means this machine.
        api_key: sent as a bearer token unless empty.
        timeout_s: longest silence, also between two chunks; ``None`` waits for ever, because a
            large model may take minutes to load.
    """

    address: HostText
    api_key: str = ""
    timeout_s: float | None = None

    def get(self, path: str) -> dict[str, Any]:
        """GET a JSON object.

        Raises:
            ServerUnreachableError: nothing answers.
            ServerRefusedError: the server answered with an error, or not with a JSON object.
        """
        with self._call("GET", path, None) as response:
            return _decode(_read(response), response.status)

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """POST a JSON object and read one back; raises as `get`."""
        with self._call("POST", path, body) as response:
            return _decode(_read(response), response.status)

    def stream(self, path: str, body: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """POST a JSON document and yield each line of the answer as it arrives.

        Closing the iterator closes the connection, which stops the answer. Raises as `get`, also
        between lines: an ``error`` line ends the stream, and an answer without its last line,
        the one that is ``done`` or a ``success``, has broken off.
        """
        done = False
        with self._call("POST", path, body) as response:
            while line := _line(response):
                if line.strip():
                    row = _decode(line, response.status)
                    done = bool(row.get("done")) or row.get("status") == "success"
                    yield row
        if not done:
            raise _broken_off()

    def has(self, path: str) -> bool:
        """Whether HEAD finds something; raises as `get`, but for what is not there."""
        with self._answer("HEAD", path, None, {}) as response:
            if response.status in {http.client.OK, http.client.NOT_FOUND}:
                return response.status == http.client.OK
            raise ServerRefusedError(
                f"the server answered {response.status}", status=response.status
            )

    def send(self, path: str, file: Path, progress: Callable[[int], None]) -> None:
        """POST a file as it is; raises as `get`.

        Args:
            path: where to.
            file: what.
            progress: told how many bytes have been sent.
        """
        size = file.stat().st_size
        headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
        with (
            file.open("rb") as opened,
            self._answer("POST", path, _pieces(opened, progress), headers) as response,
        ):
            data = _read(response)
            if response.status not in {http.client.OK, http.client.CREATED}:
                _decode(data, response.status)

    @contextmanager
    def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None
    ) -> Iterator[http.client.HTTPResponse]:
        headers = {"Accept": "application/json, application/x-ndjson"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        data = None if body is None else json.dumps(body).encode()
        with self._answer(method, path, data, headers) as response:
            if response.status != http.client.OK:
                _decode(_read(response), response.status)
            yield response

    @contextmanager
    def _answer(
        self,
        method: str,
        path: str,
        data: bytes | Iterator[bytes] | None,
        headers: Mapping[str, str],
    ) -> Iterator[http.client.HTTPResponse]:
        connection = self._connection()
        named = dict(headers)
        if self.api_key:
            named["Authorization"] = f"Bearer {self.api_key}"
        try:
            try:
                with suppress(BrokenPipeError, ConnectionResetError):
                    # A server that refuses a body answers before it has read all of it.
                    connection.request(method, self.address.path + path, data, named)
                response = connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                raise ServerUnreachableError(
                    "could not connect to the satchel server, is satchel-server running?",
                    hint=f"looked at {self.address.host}:{self.address.port}",
                ) from error
            with response:
                yield response
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        host = _ANY_ADDRESS.get(self.address.host, self.address.host)
        if self.address.scheme == "https":
            return http.client.HTTPSConnection(host, self.address.port, timeout=self.timeout_s)
        return http.client.HTTPConnection(host, self.address.port, timeout=self.timeout_s)


def _pieces(file: BinaryIO, progress: Callable[[int], None]) -> Iterator[bytes]:
    sent = 0
    while piece := file.read(_PIECE_BYTES):
        yield piece
        sent += len(piece)
        progress(sent)


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(_MAX_ANSWER_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _broken_off() from error


def _line(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.readline(_MAX_ANSWER_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _broken_off() from error


def _broken_off() -> ServerUnreachableError:
    return ServerUnreachableError(
        "the connection to the satchel server broke off", hint="see the server's log"
    )


def _decode(data: bytes, status: int) -> dict[str, Any]:
    """One JSON object; an ``error`` in it, or a status other than 200, is raised."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        found = data[:80].decode(errors="replace").strip()
        raise ServerRefusedError(
            f"the server answered {status} and no JSON: {found!r}", status=status
        ) from error
    if isinstance(value, dict) and value.get("error"):
        raise ServerRefusedError(str(value["error"]), status=status)
    if not isinstance(value, dict):
        raise ServerRefusedError(f"the server answered {status} and no JSON object", status=status)
    if status != http.client.OK:
        raise ServerRefusedError(f"the server answered {status}", status=status)
    return value
