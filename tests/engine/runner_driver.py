"""Drives a real runner process over its socket, line by line, without the server's half."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from hwprobe.settings import EngineSettings
from server.runner import protocol
from server.wishes import SamplingOptions

DEMO = Path(__file__).parents[1] / "demo-model" / "demo-f16.gguf"
PATIENCE_S = 120.0


def settings(**changes: object) -> EngineSettings:
    """Small settings for the demo model."""
    fields: dict[str, object] = {
        "num_ctx": 512,
        "slots": 4,
        "num_batch": 512,
        "num_ubatch": 512,
        "threads": 1,
    }
    return EngineSettings(**{**fields, **changes})  # type: ignore[arg-type]


class Driver:
    """One runner process; frames that arrive are sorted by request."""

    def __init__(
        self,
        engine: EngineSettings | None = None,
        *,
        model: Path = DEMO,
        load: bool = True,
        projector: Path | None = None,
        draft: Path | None = None,
        keepsakes: protocol.Keepsakes | None = None,
    ) -> None:
        ours, theirs = socket.socketpair()
        self.socket = ours
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "server.runner", str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stderr=subprocess.PIPE,
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},
        )
        theirs.close()
        self.rows: dict[int, list[protocol.Row]] = defaultdict(list)
        self.answers: dict[int, protocol.Tokens | protocol.Text] = {}
        self.progress: list[float] = []
        self.ready: protocol.Ready | None = None
        self.failed: protocol.Failed | None = None
        self.steps: list[protocol.Step] = []
        self.closed = False
        self._buffer = b""
        self._next = 1
        if load:
            self.send(
                protocol.Load(
                    model_path=str(model),
                    settings=engine or settings(),
                    projector=str(projector or ""),
                    draft=str(draft or ""),
                    keepsakes=keepsakes,
                )
            )
            self.until(lambda: self.ready is not None or self.failed is not None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.hang_up()

    def hang_up(self) -> int:
        """Close our end and wait for the runner; returns its exit code."""
        with contextlib.suppress(OSError):
            self.socket.close()
        assert self.process.stderr is not None
        with self.process.stderr as stderr:
            self.stderr = stderr.read().decode(errors="replace")
        return self.process.wait(timeout=PATIENCE_S)

    def send(self, *commands: protocol.Command) -> None:
        """Write commands in one go."""
        self.socket.sendall(b"".join(map(protocol.encode, commands)))

    def start(self, prompt: str = "", **fields: object) -> int:
        """Send a `Generate`; returns its id."""
        command = self.command(prompt, **fields)
        self.send(command)
        return command.id

    def command(self, prompt: str = "", **fields: object) -> protocol.Generate:
        """A `Generate` with the next id; sampling options may be given as fields."""
        known = set(protocol.Generate.__slots__)
        options = {name: value for name, value in fields.items() if name not in known}
        rest = {name: value for name, value in fields.items() if name in known}
        options.setdefault("temperature", 0.0)
        sampling = SamplingOptions(**options)  # type: ignore[arg-type]
        request, self._next = self._next, self._next + 1
        return protocol.Generate(id=request, prompt=prompt, sampling=sampling, **rest)  # type: ignore[arg-type]

    def generate(self, prompt: str = "", **fields: object) -> protocol.Row:
        """One request to its end, as one row with all text."""
        return self.finish(self.start(prompt, **fields))

    def finish(self, request: int) -> protocol.Row:
        """Wait for a request's last row; its text and tokens are those of all rows."""
        self.until(lambda: self.is_over(request))
        return self.whole(request)

    def is_over(self, request: int) -> bool:
        """Whether the last row has come."""
        rows = self.rows[request]
        return bool(rows) and (rows[-1].done is not None or rows[-1].fault is not None)

    def whole(self, request: int) -> protocol.Row:
        """All rows of a request as one."""
        rows = self.rows[request]
        last = rows[-1]
        fields = {name: getattr(last, name) for name in protocol.Row.__slots__}
        fields["text"] = "".join(row.text for row in rows)
        fields["tokens"] = tuple(token for row in rows for token in row.tokens)
        fields["logprobs"] = tuple(entry for row in rows for entry in row.logprobs)
        return protocol.Row(**fields)

    def tokenize(self, text: str, **fields: object) -> tuple[int, ...]:
        """Ask for tokens."""
        request, self._next = self._next, self._next + 1
        self.send(protocol.Tokenize(id=request, text=text, **fields))  # type: ignore[arg-type]
        self.until(lambda: request in self.answers)
        answer = self.answers[request]
        assert isinstance(answer, protocol.Tokens)
        return answer.tokens

    def detokenize(self, tokens: tuple[int, ...]) -> str:
        """Ask for text."""
        request, self._next = self._next, self._next + 1
        self.send(protocol.Detokenize(id=request, tokens=tokens))
        self.until(lambda: request in self.answers)
        answer = self.answers[request]
        assert isinstance(answer, protocol.Text)
        return answer.text

    def until(self, met: Callable[[], bool]) -> None:
        """Read frames until a condition is met."""
        deadline = time.monotonic() + PATIENCE_S
        while not met():
            assert not self.closed, "the runner hung up"
            assert time.monotonic() < deadline, "the runner is silent"
            self.read(1.0)

    def read(self, timeout_s: float) -> None:
        """Take what arrives within a time."""
        ready, _, _ = select.select([self.socket], [], [], timeout_s)
        if not ready:
            return
        try:
            data = self.socket.recv(1 << 20)
        except ConnectionResetError:  # it died with commands unread
            data = b""
        self.closed = not data
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            self._sort(protocol.decode_event(line))

    def _sort(self, event: protocol.Event) -> None:
        match event:
            case protocol.Progress():
                self.progress.append(event.fraction)
            case protocol.Ready():
                self.ready = event
            case protocol.Failed():
                self.failed = event
            case protocol.Tokens() | protocol.Text():
                self.answers[event.id] = event
            case protocol.Step():
                self.steps.append(event)
                for row in event.rows:
                    assert not self.is_over(row.id), "a row came after the last one"
                    self.rows[row.id].append(row)
