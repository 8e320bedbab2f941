"""Several answers in one response: made side by side, told in the order their words come.

Rules:
 * several answers are made by threads, at most `AT_ONCE` at a time, so that the model decodes them
   together; the rest wait for their turn;
 * the first fault ends all answers: before the first words it is an HTTP status, later the last
   event;
 * closing the stream ends every answer and waits for its thread.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import falcon

from server.api.delivery import Chunks, Gone, WholeAnswer, as_error, gather, tell_conformity
from server.api.framing import JSON_TYPE, json_bytes
from server.chunks import Chunk, FaultChunk, FinishChunk
from server.errors import ClientGoneError, ServerError

LOG = logging.getLogger("satchel.server")

AT_ONCE = 8
"""Answers of one request that are made at a time. Why: more than models have slots, and one
request shall not take the whole queue."""

_WAITING = 256
"""Chunks that wait for a slow client before the answers wait for it, too."""

Told = tuple[int, Chunk]
"""Which answer, and what it says."""

Start = Callable[[Gone], Chunks]
"""Begins one answer; it ends early when the given function says that nobody waits for it."""


class Answers(Protocol):
    """The chunks of some answers, to be closed by whoever iterates."""

    def __iter__(self) -> Iterator[Told]:
        """Itself."""

    def __next__(self) -> Told:
        """The next chunk of any answer."""

    def close(self) -> None:
        """End every answer."""


class ChoicesWriter(Protocol):
    """A dialect's way to write several answers."""

    @property
    def content_type(self) -> str:
        """Of a streamed response."""

    def write(self, index: int, chunk: Chunk) -> Iterable[bytes]:
        """The records of one chunk of one answer."""

    def end(self) -> Iterable[bytes]:
        """The records after the last answer's end."""

    def fault(self, fault: FaultChunk) -> Iterable[bytes]:
        """The records of a fault, and the end of the stream."""

    def whole(self, answers: Sequence[WholeAnswer]) -> dict[str, Any]:
        """The body of a response that is not streamed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failed:
    """An answer raised this."""

    error: Exception


class Several:
    """Iterates over the chunks of several answers as pairs of index and chunk.

    Raises what the first failing answer raised; an answer's own `FaultChunk` is given out.
    """

    def __init__(self, starts: Sequence[Start], gone: Gone) -> None:
        self._starts = starts
        self._gone = gone
        self._closed = threading.Event()
        self._told: queue.Queue[tuple[int, Chunk | _Failed]] = queue.Queue(_WAITING)
        self._next = iter(range(len(starts)))
        self._threads: list[threading.Thread] = []
        self._open = len(starts)

    def __iter__(self) -> Iterator[Told]:
        return self

    def __next__(self) -> Told:
        if not self._threads:
            self._threads = [
                threading.Thread(target=self._work, args=(indexes,), daemon=True)
                for indexes in _shares(len(self._starts))
            ]
            for thread in self._threads:
                thread.start()
        if not self._open:
            raise StopIteration
        index, told = self._told.get()
        if isinstance(told, _Failed):
            self.close()
            raise told.error
        if isinstance(told, FinishChunk):
            self._open -= 1
        return index, told

    def close(self) -> None:
        """End every answer."""
        self._closed.set()
        self._open = 0
        for thread in self._threads:
            while thread.is_alive():
                self._drop()
                thread.join(0.01)

    def _drop(self) -> None:
        try:
            while True:
                self._told.get_nowait()
        except queue.Empty:
            return

    def _work(self, indexes: Iterable[int]) -> None:
        for index in indexes:
            if self._closed.is_set():
                return
            chunks = self._starts[index](self._nobody_waits)
            try:
                for chunk in chunks:
                    self._told.put((index, chunk))
            except Exception as error:  # noqa: BLE001 - it is raised again by whoever iterates
                self._told.put((index, _Failed(error=error)))
                return
            finally:
                chunks.close()

    def _nobody_waits(self) -> bool:
        return self._closed.is_set() or self._gone()


def _shares(count: int) -> Iterator[range]:
    """Which answers each thread makes, one after the other."""
    threads = min(count, AT_ONCE)
    return (range(first, count, threads) for first in range(threads))


def deliver_choices(
    resp: falcon.Response,
    starts: Sequence[Start],
    writer: ChoicesWriter,
    *,
    gone: Gone,
    stream: bool,
) -> None:
    """Answer with these answers.

    Raises:
        ServerError: an answer broke off before the first chunk of any, or, unstreamed, anywhere.
    """
    several = Several(starts, gone) if len(starts) > 1 else _alone(starts[0], gone)
    if not stream:
        try:
            answers = _gather(several, len(starts))
        finally:
            several.close()
        resp.content_type = JSON_TYPE
        tell_conformity(resp, answers)
        resp.data = json_bytes(writer.whole(answers))
        return
    first = next(several)
    if isinstance(first[1], FaultChunk):
        several.close()
        raise as_error(first[1])
    resp.content_type = writer.content_type
    resp.set_header("X-Accel-Buffering", "no")
    resp.stream = _Stream(first, several, writer)


def _alone(start: Start, gone: Gone) -> Generator[Told, None, None]:
    """The chunks of one answer, which needs no thread."""
    with contextlib.closing(start(gone)) as chunks:
        for chunk in chunks:
            yield 0, chunk


def _gather(several: Answers, count: int) -> list[WholeAnswer]:
    told: list[list[Chunk]] = [[] for _ in range(count)]
    for index, chunk in several:
        if isinstance(chunk, FaultChunk):
            raise as_error(chunk)
        told[index].append(chunk)
    return [gather(chunks[0], chunks[1:]) for chunks in told]


class _Stream:
    """The body of a streamed response: an iterator that is closed by whoever serves it."""

    def __init__(self, first: Told, several: Answers, writer: ChoicesWriter) -> None:
        self._several = several
        self._body = _body(first, several, writer)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._body)

    def close(self) -> None:
        """End all answers wherever they stand."""
        self._body.close()
        self._several.close()


def _body(first: Told, several: Answers, writer: ChoicesWriter) -> Generator[bytes, None, None]:
    told: Told | None = first
    try:
        while told is not None:
            index, chunk = told
            if isinstance(chunk, FaultChunk):
                yield from writer.fault(chunk)
                return
            yield from writer.write(index, chunk)
            told = next(several, None)
    except ClientGoneError:
        return
    except ServerError as error:
        fault = FaultChunk(message=str(error), status=error.status)
    except Exception:  # the tail of the HTTP error handler: the status has been sent
        LOG.exception("internal error in a streamed answer")
        fault = FaultChunk(message="internal server error")
    else:
        yield from writer.end()
        return
    yield from writer.fault(fault)
