"""Answers of long work: a line per step, or only the last one.

Rules, which are Ollama's:
 * streamed unless ``stream`` is false; then only the last step is the answer;
 * an error before the first step is an HTTP status, after it the last line of the stream;
 * a client that leaves ends the work.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import falcon

from server.api.framing import JSON_TYPE, NDJSON_TYPE, json_bytes
from server.errors import ServerError
from server.jobs import Event, Job


def deliver_job(resp: falcon.Response, job: Job, *, stream: bool) -> None:
    """Answer with the steps of a job, which is closed when the answer is.

    Raises:
        ServerError: it failed before its first step, or, unstreamed, at any.
    """
    events = job.events()
    try:
        first = _unless_failed(next(events))
        last = first
        for event in () if stream else events:
            last = _unless_failed(event)
    except BaseException:
        job.close()
        raise
    if stream:
        resp.content_type = NDJSON_TYPE
        resp.set_header("X-Accel-Buffering", "no")
        resp.stream = _Steps(first, events, job)
        return
    job.close()
    resp.content_type = JSON_TYPE
    resp.data = json_bytes(last)


def _unless_failed(event: Event) -> Event:
    if "error" in event:
        raise _error(event)
    return event


def _error(event: Event) -> ServerError:
    error = ServerError(str(event["error"]))
    error.status = int(event.get("status", 500))
    return error


class _Steps:
    """The body of a streamed answer; a class, because an unstarted generator closes nothing."""

    def __init__(self, first: Event, events: Iterator[Event], job: Job) -> None:
        self._job = job
        self._body = _lines(first, events)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._body)
        except BaseException:  # its end, too: not every server closes what it has read whole
            self.close()
            raise

    def close(self) -> None:
        """End the work wherever it stands."""
        self._job.close()


def _lines(first: Event, events: Iterator[Event]) -> Generator[bytes, None, None]:
    yield _line(first)
    for event in events:
        yield _line(event)


def _line(event: Event) -> bytes:
    shown: dict[str, Any] = event
    if "error" in event:
        shown = {"error": event["error"]}
    return json_bytes(shown) + b"\n"
