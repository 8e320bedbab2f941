"""The documented routes are the server's, and the layer around the application counts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import falcon.inspect
import pytest

from server.app import Traffic
from tests.functional.live import LiveServer

DOCUMENT = Path(__file__).parents[2] / "docs" / "http-api.md"


def test_documented_routes_are_those_of_the_server(tmp_path: Path) -> None:
    with LiveServer(tmp_path) as server:
        served = {
            f"{method.method} {route.path.replace(':path', '')}"
            for route in falcon.inspect.inspect_routes(server.app)
            for method in route.methods
            if not method.internal and method.method != "HEAD"
        }
    documented = set(re.findall(r"^## `(\w+ /\S*)`$", DOCUMENT.read_text(), re.MULTILINE))
    assert documented == served


def start_response(*_: Any) -> Any:
    return None


ENVIRON: dict[str, Any] = {"REQUEST_METHOD": "GET", "PATH_INFO": "/a\nb"}


class Body:
    closed = False

    def __iter__(self) -> Iterator[bytes]:
        return iter([b"x"])

    def close(self) -> None:
        self.closed = True


def test_request_is_in_flight_until_its_body_is_closed() -> None:
    body = Body()
    traffic = Traffic(lambda _e, _s: body, log_requests=False)
    answer = traffic(ENVIRON, start_response)
    assert traffic.in_flight == 1
    answer.close()  # type: ignore[attr-defined]  # WSGI servers call it if it is there
    assert traffic.in_flight == 0
    assert body.closed


def test_request_that_fails_is_not_in_flight() -> None:
    def fails(*_: Any) -> Any:
        raise ValueError

    traffic = Traffic(fails, log_requests=False)
    with pytest.raises(ValueError):  # noqa: PT011 - raised above
        traffic(ENVIRON, start_response)
    assert traffic.in_flight == 0


def test_path_cannot_forge_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    traffic = Traffic(lambda _e, _s: Body(), log_requests=True)
    traffic(ENVIRON, start_response).close()  # type: ignore[attr-defined]  # as above
    (record,) = caplog.records
    assert record.getMessage().startswith("GET /a?b ")
