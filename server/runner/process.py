"""The server's side of a runner: talk to the child, notice its death, end it.

Rules:
 * one thread starts the child, reads its socket, hands every row to the stream it belongs to,
   and reaps it;
 * however the child ends (EOF, signal, exit code, a broken or endless line, a step counter that
   stands still), every stream and every call in flight gets a `RunnerCrashedError` that says how;
 * no write blocks longer than ``send_s``: a child that does not read is as good as dead;
 * prompts are never logged; what is kept is the child's output only.

What this does not do: a child that still writes valid lines but makes no sense is not noticed.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import signal
import socket
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from server.errors import BadRequestError, LoadFailedError, RunnerCrashedError
from server.runner import protocol
from server.runner.autopsy import Autopsy, keepable
from server.runner.channel import Channel, StuckError, encode
from server.runner.flight import STOPPED, Flight
from server.runner.spawn import Child
from server.runner.stream import Stream
from server.runner.watchdog import RunnerLimits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["RUNNER_COMMAND", "Runner", "RunnerLimits", "Stream"]

RUNNER_COMMAND = (sys.executable, "-P", "-m", "server.runner")
"""The child's argument vector; the number of its socket is appended."""

LAST_WORDS_S = 0.03
"""How long to wait for the last printed line after death; clients are told within 100 ms."""

EXIT_S = 0.05
"""How long a child that closed its socket may take to exit before it is killed."""

TICK_S = 1.0
"""How often the deadlines for load and silence are looked at."""

_LOG = logging.getLogger(__name__)
_Answer = TypeVar("_Answer", protocol.Tokens, protocol.Text)


class Runner:
    """One child process that holds one model. All methods may be called from any thread.

    Attributes:
        load: what it was told to load.
    """

    def __init__(
        self, load: protocol.Load, limits: RunnerLimits, on_progress: Callable[[float], None]
    ) -> None:
        """For `start` and `spawn`."""
        self.load = load
        self._limits = limits
        self._on_progress = on_progress
        self._flight = Flight(stall_s=limits.stall_s)
        self._loaded: protocol.Ready | protocol.Failed | None = None
        self._settled = threading.Event()  # ready, failed or dead
        self._dead = threading.Event()
        self._heard_s = time.monotonic()
        self._autopsy: Autopsy | None = None
        self._channel: Channel
        self._child: Child
        self._reader: threading.Thread

    @classmethod
    def start(
        cls,
        load: protocol.Load,
        *,
        command: Sequence[str] = RUNNER_COMMAND,
        limits: RunnerLimits | None = None,
        on_progress: Callable[[float], None] = lambda _: None,
    ) -> Runner:
        """Start a child and wait until the model is loaded. Arguments are those of `spawn`.

        Raises:
            LoadFailedError: it refused, died, or took too long.
        """
        runner = cls.spawn(load, command=command, limits=limits, on_progress=on_progress)
        runner.wait_ready()
        return runner

    @classmethod
    def spawn(
        cls,
        load: protocol.Load,
        *,
        command: Sequence[str] = RUNNER_COMMAND,
        limits: RunnerLimits | None = None,
        on_progress: Callable[[float], None] = lambda _: None,
    ) -> Runner:
        """Start a child and return at once; `wait_ready` waits for the model.

        Args:
            load: the first line of the conversation.
            command: argument vector of the child, without the number of its socket.
            limits: see `RunnerLimits`.
            on_progress: called with the loaded fraction, 0 to 1, in the reader thread.

        Raises:
            LoadFailedError: the process could not be started.
        """
        runner = cls(load, limits or RunnerLimits(), on_progress)
        ours, theirs = socket.socketpair()
        runner._channel = Channel(ours, send_s=runner._limits.send_s)
        born: queue.SimpleQueue[OSError | None] = queue.SimpleQueue()
        runner._reader = threading.Thread(
            target=runner._live, args=(command, theirs, born), daemon=True, name="runner-read"
        )
        runner._reader.start()
        if (error := born.get()) is not None:
            raise LoadFailedError(f"the runner could not be started: {error}") from error
        with contextlib.suppress(RunnerCrashedError):  # wait_ready tells
            runner._send(encode(load))
        return runner

    @property
    def pid(self) -> int:
        """Process id, and id of the process group."""
        return self._child.pid

    @property
    def ready(self) -> protocol.Ready:
        """What the runner said when the model was loaded; waits for it as `wait_ready` does."""
        return self.wait_ready()

    @property
    def alive(self) -> bool:
        """Whether it takes requests: it has neither died nor been stopped."""
        return self._flight.open

    @property
    def log_lines(self) -> tuple[str, ...]:
        """The last lines the child printed, oldest first."""
        return self._child.log_lines

    @property
    def autopsy(self) -> Autopsy | None:
        """What is known of its end; ``None`` while it lives, and when it was told to end."""
        return self._autopsy

    def wait_ready(self) -> protocol.Ready:
        """Wait until the model is loaded.

        Raises:
            LoadFailedError: the runner refused, died, or made no progress for ``load_s``.
                The child has ended by then.
        """
        self._settled.wait()
        if isinstance(self._loaded, protocol.Ready):
            return self._loaded
        self.stop(self._limits.term_s)
        if isinstance(self._loaded, protocol.Failed):
            raise LoadFailedError(self._loaded.message)
        raise LoadFailedError(f"while loading: {self._flight.epitaph}")

    def on_exit(self, tell: Callable[[RunnerCrashedError], None]) -> None:
        """Have ``tell`` called once when the child dies unasked; at once if it already has."""
        self._flight.on_crash(tell)

    def on_alone(self, tell: Callable[[protocol.Row], None]) -> None:
        """Have ``tell`` called with the last row of each request that had the child to itself.

        In the reader thread; it must not raise nor wait.
        """
        self._flight.on_alone(tell)

    def generate(self, request: protocol.Generate | protocol.Embed) -> Stream:
        """Start a completion or embeddings. The runner numbers it; ``request.id`` is not used.

        Raises:
            RunnerCrashedError: the child is dead.
            BadRequestError: the request is no valid Unicode, or larger than a line may be.
        """
        request = replace(request, id=self._flight.new_id())
        line = encode(request)
        stream = Stream(cancel=lambda: self._cancel(request.id))
        self._flight.add_stream(request.id, stream, time.monotonic())
        self._send(line)
        return stream

    def tokenize(
        self, text: str, *, add_bos: bool = True, parse_special: bool = True
    ) -> tuple[int, ...]:
        """Turn text into token ids.

        Raises:
            RunnerCrashedError: the child is dead, or did not answer within ``call_s``.
            BadRequestError: the text is no valid Unicode, or larger than a line may be.
        """
        message = protocol.Tokenize(
            id=self._flight.new_id(), text=text, add_bos=add_bos, parse_special=parse_special
        )
        return self._call(message, protocol.Tokens).tokens

    def lex(self, text: str, *, framed: bool, parse_special: bool) -> protocol.Tokens:
        """The tokens of a text with their bytes. Raises as `tokenize` does.

        Args:
            text: the text.
            framed: put all tokens around it that the model frames texts with.
            parse_special: texts of control tokens become control tokens.
        """
        message = protocol.Tokenize(
            id=self._flight.new_id(),
            text=text,
            add_bos=False,
            parse_special=parse_special,
            framed=framed,
            pieces=True,
        )
        return self._call(message, protocol.Tokens)

    def look(self, images: tuple[str, ...]) -> tuple[int, ...]:
        """How many tokens each image takes; files in base64. Raises as `tokenize` does.

        Raises:
            BadRequestError: one cannot be decoded, or the model sees no images.
        """
        answer = self._call(protocol.Look(id=self._flight.new_id(), images=images), protocol.Tokens)
        if answer.refused:
            raise BadRequestError(answer.refused)
        return answer.tokens

    def detokenize(self, tokens: tuple[int, ...]) -> str:
        """Turn token ids into text. Raises as `tokenize` does."""
        message = protocol.Detokenize(id=self._flight.new_id(), tokens=tokens)
        return self._call(message, protocol.Text).text

    def stop(self, grace_s: float) -> None:
        """End the child and reap it; a second call waits for the same end.

        The socket is closed, which a runner obeys; after ``grace_s`` its process group gets
        SIGTERM, after ``term_s`` more SIGKILL. Requests in flight get `RunnerCrashedError`.
        """
        self._flight.stop()
        self._channel.hang_up()
        if not self._child.wait(grace_s):
            self._child.signal(signal.SIGTERM)
            if not self._child.wait(self._limits.term_s):
                self._child.signal(signal.SIGKILL)
        if threading.current_thread() is not self._reader:
            self._reader.join()

    def _cancel(self, request_id: int) -> None:
        """End a request; nothing happens when it has ended, or the child is dead."""
        if self._flight.has(request_id):
            with contextlib.suppress(RunnerCrashedError):  # its stream tells
                self._send(protocol.encode(protocol.Cancel(id=request_id)))

    def _call(
        self,
        message: protocol.Tokenize | protocol.Detokenize | protocol.Look,
        kind: type[_Answer],
    ) -> _Answer:
        line = encode(message)
        inbox = self._flight.add_call(message.id)
        try:
            self._send(line)
            answer = inbox.get(timeout=self._limits.call_s)
        except queue.Empty:
            text = f"the runner did not answer within {self._limits.call_s:g} s"
            raise RunnerCrashedError(text) from None
        finally:
            self._flight.end_call(message.id)
        if isinstance(answer, kind):
            return answer
        raise answer if isinstance(answer, RunnerCrashedError) else self._flight.crash()

    def _send(self, line: bytes) -> None:
        """Write one line; a child that does not take it within ``send_s`` is killed."""
        try:
            self._channel.send(line)
        except StuckError:
            self._child.kill("it does not read its socket")
        except OSError:
            pass  # it is gone; the reader knows more
        else:
            return
        self._dead.wait(TICK_S)
        raise self._flight.crash()

    def _live(
        self, command: Sequence[str], theirs: socket.socket, born: queue.SimpleQueue[OSError | None]
    ) -> None:
        """The reader thread: from the child's birth to its burial."""
        try:
            with theirs:
                self._child = Child(command=command, sock=theirs)
        except OSError as error:
            self._channel.close()
            born.put(error)
            return
        born.put(None)
        try:
            tick_s = min(TICK_S, self._limits.load_s / 4, self._limits.stall_s / 4)
            for line in self._channel.lines(tick_s=tick_s, on_silence=self._watch):
                self._heard_s = time.monotonic()
                event = protocol.decode_event(line)
                self._dispatch(event)
                if not isinstance(event, protocol.Step):
                    self._watch()  # its I/O thread may answer while the other one hangs
        except (RunnerCrashedError, RecursionError, OSError) as error:
            self._child.kill(str(error))
        finally:
            self._bury()

    def _watch(self) -> None:
        """Kill a child that makes no progress although something is expected of it."""
        now_s = time.monotonic()
        if not self._settled.is_set():
            if now_s - max(self._heard_s, self._child.spoke_s) > self._limits.load_s:
                self._child.kill(f"it made no progress for {self._limits.load_s:g} s")
            return
        if (limit_s := self._flight.late(now_s)) is not None:
            self._child.kill(f"it made no step for {limit_s:.3g} s with requests to answer")

    def _dispatch(self, event: protocol.Event) -> None:
        match event:
            case protocol.Progress():
                self._on_progress(event.fraction)
            case protocol.Ready() | protocol.Failed():
                if isinstance(event, protocol.Ready):
                    self._flight.loaded(event.batch_s)
                self._loaded = event
                self._settled.set()
            case protocol.Step():
                self._flight.step(event, self._heard_s)
            case protocol.Tokens() | protocol.Text():
                self._flight.answer(event)

    def _bury(self) -> None:
        """After the last line: reap, tell every stream and call, then whoever asked."""
        if not self._child.wait(EXIT_S):
            if not self._flight.stopping:
                self._child.kill("it closed its socket")
            self._child.wait()
        self._child.read_log(LAST_WORDS_S)
        folder = f"{Path(self.load.model_path).parent}/"  # clients need not know where it lies
        epitaph = self._flight.seal(self._child.obituary(hide=folder))
        if epitaph != STOPPED and not isinstance(self._loaded, protocol.Failed):
            self._autopsy = self._examine(epitaph, folder)
        self._dead.set()
        self._settled.set()
        self._flight.land()
        if epitaph != STOPPED:
            _LOG.warning("runner %d: %s", self.pid, epitaph)
        self._channel.close()
        self._child.read_log()

    def _examine(self, epitaph: str, folder: str) -> Autopsy:
        child = self._child
        return Autopsy(
            pid=child.pid,
            cause=child.cause,
            text=epitaph,
            assertion=child.last_words.assertion,
            stack=child.last_words.stack,
            log=keepable(child.log_lines, hide=folder),
            steps=self._flight.steps,
            requests=self._flight.requests,
            ready=isinstance(self._loaded, protocol.Ready),
            lived_s=time.monotonic() - child.born_s,
        )
