"""One client for all servers: raw sockets, one connection per request, every arrival timed.

As a program it reads a script (JSON) on stdin and writes what happened (JSON) on stdout:

    python -m bench.client < script.json

It runs in a process of its own with lower priority, so that its work is never counted as the
server's. Times are the machine's monotonic clock, so that they can be compared with other
processes'. `converse` is the side that starts it.

Rules:
 * a request starts at its time, or when others have received so many pieces;
 * a piece is a streamed record with text in it, timed when its last byte was read;
 * a request that is cut off closes its socket and is not an error;
 * everything ends after ``limit_s``, finished or not.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

HOST = "127.0.0.1"
OK = 200
NICE = 10
MAX_REQUESTS = 128
MAX_LINE_BYTES = 16 << 20
"""16 MiB. Why: a batch of 256 embeddings of 576 numbers is 3 MiB of JSON on one line."""
START_S = 5.0
"""What starting and ending the client may take besides the script's own limit."""

ROOT = Path(__file__).resolve().parents[1]

Form = Literal["sse", "ndjson", "json"]


class ClientError(Exception):
    """The client itself failed; servers' faults are in the exchanges."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """When each of ``ids`` has received ``pieces``."""

    ids: tuple[str, ...]
    pieces: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One POST.

    Attributes:
        id: unique in the script.
        form: how the answer comes.
        delay_s: from the start of the script, or from ``after``.
        after: wait for this first.
        cut_after_s: close the socket so long after sending.
        cut_after_pieces: close the socket after so many pieces.
    """

    id: str
    port: int
    path: str
    body: dict[str, Any]
    form: Form
    delay_s: float = 0.0
    after: Trigger | None = None
    cut_after_s: float | None = None
    cut_after_pieces: int | None = None


@dataclass(slots=True, kw_only=True)
class Exchange:
    """What came of a request.

    Attributes:
        status: of the HTTP answer; 0 if there was none.
        sent_s: when the request was written.
        end_s: when the answer had ended, or was cut off.
        pieces_s: when each piece came.
        text: all pieces together.
        last: the last record: it carries the server's own counts.
        cut: whether the client closed the socket.
        fault: what went wrong; empty if nothing did.
    """

    id: str
    status: int = 0
    sent_s: float = 0.0
    end_s: float = 0.0
    pieces_s: list[float] = field(default_factory=list)
    text: str = ""
    last: dict[str, Any] = field(default_factory=dict)
    cut: bool = False
    fault: str = ""

    @property
    def first_s(self) -> float:
        """Seconds from sending to the first piece.

        Raises:
            ClientError: none came.
        """
        if not self.pieces_s:
            raise ClientError(f"{self.id}: no text came: {self.fault or self.status}")
        return self.pieces_s[0] - self.sent_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """All exchanges of a script, by id, and the CPU seconds the client used."""

    exchanges: dict[str, Exchange]
    client_cpu_s: float


def converse(requests: Sequence[Request], *, limit_s: float) -> Conversation:
    """Run a script in a process of its own.

    Raises:
        ClientError: the client failed, or the script has too many requests.
    """
    if len(requests) > MAX_REQUESTS or len({request.id for request in requests}) < len(requests):
        raise ClientError(f"script: expected at most {MAX_REQUESTS} requests of different ids")
    script = {"limit_s": limit_s, "requests": [asdict(request) for request in requests]}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "bench.client"],
            cwd=ROOT,
            input=json.dumps(script).encode(),
            capture_output=True,
            timeout=limit_s + START_S,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        raise ClientError(f"client: {error.stderr.decode(errors='replace')[-500:]}") from error
    except subprocess.TimeoutExpired as error:
        raise ClientError(f"client: did not end within {error.timeout:.0f} s") from error
    told = json.loads(done.stdout)
    exchanges = {entry["id"]: Exchange(**entry) for entry in told["exchanges"]}
    return Conversation(exchanges=exchanges, client_cpu_s=told["cpu_s"])


class _Player:
    """Plays one script inside the client's process."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._requests = requests
        self._exchanges = {request.id: Exchange(id=request.id) for request in requests}
        self._progress = asyncio.Condition()

    async def play(self, limit_s: float) -> list[Exchange]:
        tasks = [asyncio.create_task(self._perform(request)) for request in self._requests]
        _, late = await asyncio.wait(tasks, timeout=limit_s)
        for task in late:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return list(self._exchanges.values())

    async def _perform(self, request: Request) -> None:
        exchange = self._exchanges[request.id]
        try:
            if request.after is not None:
                await self._wait_for(request.after)
            await asyncio.sleep(request.delay_s)
            async with asyncio.timeout(request.cut_after_s):
                await self._exchange(request, exchange)
        except TimeoutError:
            exchange.cut = True
        except asyncio.CancelledError:
            exchange.fault = "not finished in time"
            raise
        except (OSError, EOFError, ValueError) as error:
            exchange.fault = f"{type(error).__name__}: {error}"
        finally:
            exchange.end_s = time.monotonic()
            async with self._progress:
                self._progress.notify_all()

    async def _wait_for(self, trigger: Trigger) -> None:
        def reached() -> bool:
            watched = [self._exchanges[other] for other in trigger.ids]
            return all(len(one.pieces_s) >= trigger.pieces or one.end_s for one in watched)

        async with self._progress:
            await self._progress.wait_for(reached)

    async def _exchange(self, request: Request, exchange: Exchange) -> None:
        reader, writer = await asyncio.open_connection(HOST, request.port, limit=MAX_LINE_BYTES)
        try:
            writer.write(_post(request))
            await writer.drain()
            exchange.sent_s = time.monotonic()
            async for line in _lines(reader, exchange):
                record = _record(line, request.form, exchange.status)
                if record is None:
                    continue
                await self._take(record, exchange)
                if len(exchange.pieces_s) == request.cut_after_pieces:
                    exchange.cut = True
                    return
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _take(self, record: dict[str, Any], exchange: Exchange) -> None:
        if exchange.status != OK or "error" in record:
            exchange.fault = str(record.get("error", record))[:300]
        if text := _text(record):
            exchange.pieces_s.append(time.monotonic())
            exchange.text += text
            async with self._progress:
                self._progress.notify_all()
        exchange.last = record


def _post(request: Request) -> bytes:
    body = json.dumps(request.body).encode()
    head = (
        f"POST {request.path} HTTP/1.1\r\n"
        f"Host: {HOST}:{request.port}\r\n"
        "Content-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body


async def _lines(reader: asyncio.StreamReader, exchange: Exchange) -> AsyncIterator[bytes]:
    """The lines of an answer's body, as soon as they are complete."""
    exchange.status = int((await reader.readline()).split()[1])
    headers = {}
    while (line := await reader.readline()).strip():
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip().lower()
    kept = b""
    async for data in _body(reader, headers):
        *whole, kept = (kept + data).split(b"\n")
        for line in whole:
            yield line
    if kept:
        yield kept


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncIterator[bytes]:
    if headers.get("transfer-encoding") == "chunked":
        while size := int((await reader.readline()).split(b";")[0], 16):
            yield await reader.readexactly(size)
            await reader.readexactly(2)
    elif "content-length" in headers:
        yield await reader.readexactly(int(headers["content-length"]))
    else:
        while data := await reader.read(1 << 16):
            yield data


def _record(line: bytes, form: Form, status: int) -> dict[str, Any] | None:
    text = line.strip()
    if form == "sse" and text.startswith(b"data:"):
        text = text.removeprefix(b"data:").strip()
    if not text or text == b"[DONE]" or text.startswith(b":"):
        return None
    try:
        record = json.loads(text)
    except ValueError:
        if status == OK:
            raise
        return {"error": f"{status} {text.decode(errors='replace')}"}
    return record if isinstance(record, dict) else {"values": record}


def _text(record: dict[str, Any]) -> str:
    """The text of a record in any of the dialects; a list of embeddings has none."""
    choices = record.get("choices") or [{}]
    within = choices[0].get("delta") or choices[0].get("message") or record
    return next(
        (within[key] for key in ("content", "response") if isinstance(within.get(key), str)), ""
    )


def _request(fields: dict[str, Any]) -> Request:
    after = fields.pop("after")
    if after is not None:
        after = Trigger(ids=tuple(after["ids"]), pieces=after["pieces"])
    return Request(**fields, after=after)


def main() -> None:
    """Play the script on stdin."""
    os.nice(NICE)
    script = json.load(sys.stdin)
    player = _Player([_request(fields) for fields in script["requests"]])
    begin_s = time.process_time()
    exchanges = asyncio.run(player.play(script["limit_s"]))
    told = {
        "cpu_s": time.process_time() - begin_s,
        "exchanges": [asdict(exchange) for exchange in exchanges],
    }
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
