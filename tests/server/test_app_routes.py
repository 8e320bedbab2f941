"""The layer around the application counts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from server.app import Traffic


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
