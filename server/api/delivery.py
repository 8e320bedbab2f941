"""Chunks to HTTP: whole or streamed, with the first one awaited before the status is decided.

Rules:
 * until the first chunk is there, a fault is an HTTP status; after it, it is the last record of
   the stream in the dialect's own form;
 * every stream ends with the dialect's end, also when this code is at fault;
 * closing the stream closes the chunks, which frees the model's slot; so does a client that left.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import falcon

from server.api.framing import JSON_TYPE, json_bytes
from server.chat import ToolCall
from server.chunks import (
    Chunk,
    FaultChunk,
    FinishChunk,
    FinishReason,
    StartChunk,
    TextChunk,
    ThinkingChunk,
    TokenLogprob,
    ToolCallChunk,
    ToolCallDeltaChunk,
    ToolCallStartChunk,
)
from server.errors import ClientGoneError, ServerError

LOG = logging.getLogger("satchel.server")

SCHEMA_HEADER = "X-Schema-Check"
"""Of answers that are not streamed."""

Chunks = Generator[Chunk, None, None]
Gone = Callable[[], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeAnswer:
    """An answer put together."""

    text: str
    thinking: str
    calls: tuple[ToolCall, ...]
    logprobs: tuple[TokenLogprob, ...]
    finish: FinishChunk


class Writer(Protocol):
    """A dialect's way to write one answer."""

    @property
    def content_type(self) -> str:
        """Of a streamed answer."""

    def write(self, chunk: Chunk) -> Iterable[bytes]:
        """The records of one chunk; those of the last one end the stream."""

    def whole(self, answer: WholeAnswer) -> dict[str, Any]:
        """The body of an answer that is not streamed."""


def client_gone(req: falcon.Request) -> Gone:
    """How to ask whether the client has left; always no where the listener cannot tell."""
    gone: Gone = req.env.get("waitress.client_disconnected", bool)
    return gone


def deliver(resp: falcon.Response, chunks: Chunks, writer: Writer, *, stream: bool) -> None:
    """Answer with these chunks.

    An answer that only loads or unloads is one JSON object, also when a stream was asked for.

    Raises:
        ServerError: the answer broke off before its first chunk, or, unstreamed, anywhere.
    """
    first = next(chunks, None)
    if isinstance(first, FaultChunk):
        chunks.close()
        raise as_error(first)
    generated = not isinstance(first, FinishChunk) or first.reason not in {
        FinishReason.LOAD,
        FinishReason.UNLOAD,
    }
    if first is not None and stream and generated:
        resp.content_type = writer.content_type
        resp.set_header("X-Accel-Buffering", "no")
        resp.stream = ChunkStream(first, chunks, writer)
        return
    try:
        answer = gather(first, chunks)
    finally:
        chunks.close()
    resp.content_type = JSON_TYPE
    tell_conformity(resp, (answer,))
    resp.data = json_bytes(writer.whole(answer))


def schema_check(finish: FinishChunk) -> dict[str, Any]:
    """The field ``schema_check`` of what ends an answer; nothing where there is nothing to say."""
    fits = finish.conformity
    if fits is None:
        return {}
    told: dict[str, Any] = {"relaxed": list(fits.relaxed), "valid": fits.valid}
    return {"schema_check": told | ({"error": fits.error} if fits.error else {})}


def tell_conformity(resp: falcon.Response, answers: Sequence[WholeAnswer]) -> None:
    """Put into a header what the bodies say of schemas that were enforced in part."""
    told = [schema_check(answer.finish).get("schema_check") for answer in answers]
    if any(told):
        # JSON in ASCII: a client's keywords must not write headers of their own.
        resp.set_header(SCHEMA_HEADER, json.dumps(told[0] if len(told) == 1 else told))


def gather(first: Chunk | None, rest: Iterable[Chunk]) -> WholeAnswer:
    """Put an answer together.

    Raises:
        ServerError: it broke off.
    """
    text: list[str] = []
    thinking: list[str] = []
    calls: list[ToolCall] = []
    logprobs: list[TokenLogprob] = []
    chunks = () if first is None else (first, *rest)
    for chunk in chunks:
        match chunk:
            case StartChunk():
                pass
            case TextChunk():
                text.append(chunk.text)
                logprobs.extend(chunk.logprobs)
            case ThinkingChunk():
                thinking.append(chunk.text)
                logprobs.extend(chunk.logprobs)
            case ToolCallChunk():
                calls.append(chunk.call)
            case ToolCallStartChunk() | ToolCallDeltaChunk():
                pass  # told again whole, or as text
            case FinishChunk():
                return WholeAnswer(
                    text="".join(text),
                    thinking="".join(thinking),
                    calls=tuple(calls),
                    logprobs=tuple(logprobs),
                    finish=chunk,
                )
            case FaultChunk():
                raise as_error(chunk)
    raise ServerError("the answer ended without an end")


def as_error(fault: FaultChunk) -> ServerError:
    """The error of a fault that can still become a status."""
    error = ServerError(fault.message)
    error.status = fault.status
    return error


class ChunkStream:
    """The body of a streamed answer: an iterator that is closed by whoever serves it.

    A class, not a generator: a generator that was never started skips its ``finally`` when closed,
    and the slot would stay taken.
    """

    def __init__(self, first: Chunk, rest: Chunks, writer: Writer) -> None:
        self._rest = rest
        self._body = _body(first, rest, writer)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._body)

    def close(self) -> None:
        """End the answer wherever it stands."""
        self._body.close()
        self._rest.close()


def _body(first: Chunk, rest: Iterator[Chunk], writer: Writer) -> Generator[bytes, None, None]:
    chunk: Chunk | None = first
    try:
        while chunk is not None:
            yield from writer.write(chunk)
            if isinstance(chunk, FinishChunk | FaultChunk):
                return
            chunk = next(rest, None)
        fault = FaultChunk(message="the answer ended without an end")
    except ClientGoneError:
        return
    except ServerError as error:
        fault = FaultChunk(message=str(error), status=error.status)
    except Exception:  # the tail of the HTTP error handler: the status has been sent
        LOG.exception("internal error in a streamed answer")
        fault = FaultChunk(message="internal server error")
    yield from writer.write(fault)
