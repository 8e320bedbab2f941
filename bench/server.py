"""What both sides have in common: how they are started, spoken to, and stopped.

Rules:
 * both get the same threads, context, seats, batch sizes, f16 KV cache, flash attention and mmap;
 * what either has as a default and the other has not is left as it comes, and is told;
 * a side is ready when it has answered one short request, so that nothing lazy is measured;
 * a side is stopped by its process id, and so is whatever it started and left behind.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bench import client, measure

READY_LIMIT_S = 120.0
STOP_LIMIT_S = 20.0
POLL_S = 0.01
PAGE_LIMIT_S = 60.0

SAMPLING: Mapping[str, Any] = {
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.05,
    "repeat_penalty": 1.0,
    "repeat_last_n": 64,
    "seed": 1,
}
"""Both sides' samplers; the names mean the same to both."""


class ServerError(Exception):
    """A side does not start, or does not do what is measured. The message says which and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a side is started.

    Attributes:
        model: a name of `models.MODELS`.
        seats: requests at once.
        seat_tokens: context of each; the KV cache is unified and holds all of them.
        batch: most tokens of llama-server's decode call; ours gets it as ``num_batch``.
        threads: for decode and prefill.
        cache_mib: llama-server's prompt cache in RAM; 0 when everything is to be computed.
        embeddings: start llama-server for embeddings, which it does not mix with text.
    """

    model: str = "smol-q4"
    seats: int = 1
    seat_tokens: int = 2048
    batch: int = 2048
    ubatch: int = 512
    threads: int = 1
    cache_mib: int = 0
    embeddings: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One completion to ask for, in words both sides are told in their own.

    Attributes:
        words: words of the prompt; each is one token.
        tokens: how many to generate.
        sampling: laid over `SAMPLING`.
        schema: JSON schema the answer must match.
        dialect: ``openai`` is a chat whose template adds nothing: the form in which both sides
            say how much of a prompt they had in their cache.
        delay_s: as in `client.Request`, like the fields after it.
    """

    id: str
    words: int
    prompt: str
    tokens: int
    sampling: Mapping[str, Any] = field(default_factory=dict)
    schema: Mapping[str, Any] | None = None
    stream: bool = True
    dialect: Literal["native", "openai"] = "native"
    delay_s: float = 0.0
    after: client.Trigger | None = None
    cut_after_s: float | None = None
    cut_after_pieces: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """A side's own counts for a request; ``cached`` is ``None`` when it does not say."""

    prompt: int
    completion: int
    cached: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A started side.

    Attributes:
        started_s: monotonic time at which it was started.
        command: its command line, and ``environment`` what was added to its environment.
    """

    popen: subprocess.Popen[bytes]
    port: int
    log: Path
    started_s: float
    command: tuple[str, ...]
    environment: Mapping[str, str]

    def stop(self) -> None:
        """End it and what it started; what does not go is killed."""
        family = measure.tree(self.popen.pid)
        self.popen.send_signal(signal.SIGTERM)
        try:
            self.popen.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        deadline_s = time.monotonic() + STOP_LIMIT_S
        while left := [pid for pid in family if _alive(pid)]:
            if time.monotonic() > deadline_s:
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                return
            time.sleep(POLL_S)


class Side(ABC):
    """One of the two servers.

    Attributes:
        name: how tables call it.
        health: the page that answers 200 when it listens.
        settings: what it was started with.
    """

    name: str
    health: str

    def __init__(self, folder: Path) -> None:
        """Nothing is started yet.

        Args:
            folder: where its log goes.
        """
        self._folder = folder
        self._process: Process | None = None
        self.settings = Settings()

    @property
    def process(self) -> Process:
        """The running server."""
        assert self._process is not None
        return self._process

    @property
    def running(self) -> bool:
        """Whether it has been started and not stopped."""
        return self._process is not None

    @abstractmethod
    def command(self, settings: Settings, port: int) -> tuple[list[str], dict[str, str]]:
        """Command line and additions to the environment."""

    @abstractmethod
    def request(self, ask: Ask) -> client.Request:
        """Say it in this server's words."""

    @abstractmethod
    def embedding(
        self,
        texts: tuple[str, ...],
        *,
        id: str,  # noqa: A002 - the name of the request's field
        after: client.Trigger | None = None,
    ) -> client.Request:
        """Ask for embeddings."""

    @abstractmethod
    def embedder(self) -> Side:
        """The server that embeds while this one generates; not running if it is another."""

    @abstractmethod
    def usage(self, exchange: client.Exchange) -> Usage:
        """The counts at the end of an answer.

        Raises:
            ServerError: the answer has no such end.
        """

    def launch(self, settings: Settings) -> None:
        """Start the server and return at once.

        Raises:
            ServerError: there is no such program.
        """
        assert self._process is None
        self.settings = settings
        port = free_port()
        command, environment = self.command(settings, port)
        log = self._folder / f"{self.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        started_s = time.monotonic()
        try:
            with log.open("wb") as sink:
                popen = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=sink,
                    env={**os.environ, **environment},
                )
        except OSError as error:
            raise ServerError(f"{self.name}: cannot be started: {error}") from error
        self._process = Process(
            popen=popen,
            port=port,
            log=log,
            started_s=started_s,
            command=tuple(command),
            environment=environment,
        )

    def start(self, settings: Settings) -> None:
        """Start the server and wait until it has answered a short request.

        Raises:
            ServerError: it ended, or did not answer in time.
        """
        self.launch(settings)
        try:
            self.wait_until_listening()
            self.warm_up()
        except BaseException:
            self.stop()
            raise

    def wait_until_listening(self) -> None:
        """Wait for a 200 of its health page.

        Raises:
            ServerError: it ended, or did not come in time.
        """
        deadline_s = time.monotonic() + READY_LIMIT_S
        while time.monotonic() < deadline_s:
            if self.process.popen.poll() is not None:
                raise ServerError(f"{self.name}: ended{self._log_tail()}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                if page(self.process.port, self.health)[0] == 200:
                    return
            time.sleep(POLL_S)
        raise ServerError(f"{self.name}: not ready within {READY_LIMIT_S:.0f} s")

    def warm_up(self) -> None:
        """Have it answer one short request.

        Raises:
            ServerError: it does not.
        """
        request = (
            self.embedding((" babe",), id="warm-up")
            if self.settings.embeddings
            else self.request(Ask(id="warm-up", words=1, prompt=" babe", tokens=1))
        )
        told = client.converse([request], limit_s=READY_LIMIT_S).exchanges["warm-up"]
        if told.status != 200 or told.fault:
            raise ServerError(f"{told.fault or told.status}")

    def stop(self) -> None:
        """Stop the server, if it runs."""
        if self._process is not None:
            process, self._process = self._process, None
            process.stop()

    def _log_tail(self) -> str:
        lines = self.process.log.read_text(errors="replace").strip().splitlines()
        return f": {lines[-1][:300]}" if lines else ""


def free_port() -> int:
    """A loopback port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((client.HOST, 0))
        return int(probe.getsockname()[1])


def page(port: int, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, bytes]:
    """Status and content of a page; with a body it is posted.

    Raises:
        OSError: nobody answers.
        http.client.HTTPException: what answers is not HTTP.
    """
    connection = http.client.HTTPConnection(client.HOST, port, timeout=PAGE_LIMIT_S)
    with contextlib.closing(connection):
        connection.request(
            "GET" if body is None else "POST",
            path,
            None if body is None else json.dumps(body),
            {"Content-Type": "application/json"},
        )
        answer = connection.getresponse()
        return answer.status, answer.read()


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
