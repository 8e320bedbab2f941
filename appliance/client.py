"""A thin client for the verbs that need the server: one connection per call, JSON in and out."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from appliance.errors import ServerRefusedError, ServerUnreachableError
from appliance.settings import HostText

_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where to connect, not listen
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
        the one that is ``done``, has broken off.
        """
        done = False
        with self._call("POST", path, body) as response:
            while line := _line(response):
                if line.strip():
                    row = _decode(line, response.status)
                    done = bool(row.get("done"))
                    yield row
        if not done:
            raise _broken_off()

    @contextmanager
    def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None
    ) -> Iterator[http.client.HTTPResponse]:
        connection = self._connection()
        headers = {"Accept": "application/json, application/x-ndjson"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        try:
            try:
                data = None if body is None else json.dumps(body).encode()
                connection.request(method, self.address.path + path, data, headers)
                response = connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                raise ServerUnreachableError(
                    "could not connect to the satchel server, is satchel-server running?",
                    hint=f"looked at {self.address.host}:{self.address.port}",
                ) from error
            with response:
                if response.status != http.client.OK:
                    _decode(_read(response), response.status)
                yield response
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        host = _ANY_ADDRESS.get(self.address.host, self.address.host)
        if self.address.scheme == "https":
            return http.client.HTTPSConnection(host, self.address.port, timeout=self.timeout_s)
        return http.client.HTTPConnection(host, self.address.port, timeout=self.timeout_s)


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
