"""A runner without an engine: a real child process, the real protocol, a real socket.

Started as ``python -P fake_runner.py [--script FILE] FD PIPE``. What it does stands in a JSON
object: in ``--script FILE``, else in the model file itself, else (a model file that is no JSON)
``{}``.

    words               list of texts to say, one per step; without it the prompt is echoed
    step_s, load_s      seconds each step, and the load, takes
    num_ctx, n_vocab    what `Ready` reports (default: the settings', 32000)
    memory              what `Ready` reports
    fail_load           refuse to load, with this text
    most_cells          get no memory for a cache of more cells, and say so as the engine does
    crash_load          die while loading
    hang_load           never become ready, never report progress
    crash_after_steps   die at this step, counted over the life of the process
    crash_on            die at the first step with a request whose prompt holds this text
    crash_on_words      die when it is to tokenize a text that holds this
    crash_signal        the signal it dies by (default 9); 0 means exit code 3
    hang                accept requests and never answer them
    deaf                never read the socket after the load
    garbage_after_steps write a line that is no event at this step
    endless_line        from the first step on write one line that never ends
    ignore_close        outlive the closed socket; ``ignore_term`` also outlives SIGTERM
    log                 lines to print on stderr at the start
    last_words          printed on stderr just before a scripted death

A token is a word with the white space before it, so texts survive ``tokenize``/``detokenize``
within one process. One word is said per step and counted as one token.
"""

from __future__ import annotations

import base64
import json
import os
import queue
import re
import signal
import socket
import struct
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server.errors import RunnerCrashedError
from server.runner import protocol

BOS = 1
FIRST_WORD = 10
_PIECES = re.compile(r"\s*\S+|\s+$")


def command(script: Path | None = None) -> tuple[str, ...]:
    """The argument vector of a fake runner, without the descriptor that ends it."""
    extra = ("--script", str(script)) if script else ()
    return (sys.executable, "-P", str(Path(__file__).resolve()), *extra)


class Vocabulary:
    """Words seen so far, numbered in the order they were seen."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._words: list[str] = []

    def tokenize(self, text: str, *, add_bos: bool) -> tuple[int, ...]:
        ids = tuple(self.id_of(piece) for piece in _PIECES.findall(text))
        return (BOS, *ids) if add_bos else ids

    def id_of(self, word: str) -> int:
        if word not in self._ids:
            self._ids[word] = FIRST_WORD + len(self._words)
            self._words.append(word)
        return self._ids[word]

    def word(self, token: int) -> str:
        index = token - FIRST_WORD
        return self._words[index] if 0 <= index < len(self._words) else ""


@dataclass(slots=True, kw_only=True)
class Sequence:
    """One request that is being answered."""

    request: protocol.Generate
    prompt_ids: tuple[int, ...]
    words: list[str]
    said: int = 0
    held: str = ""
    started_s: float = field(default_factory=time.monotonic)
    first_s: float = 0.0


class FakeRunner:
    def __init__(self, sock: socket.socket, script: Path | None) -> None:
        self._sock = sock
        self._lines = sock.makefile("rb")
        load = protocol.decode_command(self._lines.readline())
        assert isinstance(load, protocol.Load)
        self._settings = load.settings
        self._script = _read_script(script or Path(load.model_path))
        self._num_ctx: int = self._script.get("num_ctx", load.settings.num_ctx)
        self._vocabulary = Vocabulary()
        self._commands: queue.SimpleQueue[protocol.Command] = queue.SimpleQueue()
        self._waiting: list[protocol.Generate] = []
        self._running: list[Sequence] = []
        self._steps = 0

    def run(self) -> None:
        script = self._script
        if script.get("ignore_term"):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for line in script.get("log", ()):
            print(line, file=sys.stderr, flush=True)  # noqa: T201  (it is what is tested)
        self._load()
        if script.get("deaf"):
            time.sleep(3600)
        threading.Thread(target=self._read, daemon=True).start()
        while True:
            self._drain()
            if self._running and not script.get("hang"):
                self._step()

    def _load(self) -> None:
        script = self._script
        if script.get("hang_load"):
            time.sleep(3600)
        for part in range(4):
            self._send(protocol.Progress(fraction=part / 4))
            time.sleep(script.get("load_s", 0.0) / 4)
        if script.get("crash_load"):
            self._die()
        if self._settings.kv_cells > script.get("most_cells", self._settings.kv_cells):
            self._send(protocol.Failed(message="failed to allocate buffer for kv cache"))
            sys.exit(1)
        if "fail_load" in script:
            self._send(protocol.Failed(message=script["fail_load"]))
            sys.exit(1)
        self._send(
            protocol.Ready(
                num_ctx=self._num_ctx,
                n_vocab=script.get("n_vocab", 32000),
                memory=script.get("memory", {"CPU": 1 << 20}),
                system_info="fake",
                load_s=script.get("load_s", 0.0),
            )
        )

    def _read(self) -> None:
        """Queue what the server says; leave when it closes the socket."""
        try:
            for line in self._lines:
                self._commands.put(protocol.decode_command(line))
        except (OSError, RunnerCrashedError):
            pass
        if not self._script.get("ignore_close"):
            os._exit(0)

    def _drain(self) -> None:
        """Take every command there is; wait for one when there is nothing to do."""
        idle = not (self._running or self._waiting) or bool(self._script.get("hang"))
        while True:
            try:
                self._obey(self._commands.get(block=idle))
            except queue.Empty:
                break
            idle = False
        while self._waiting and len(self._running) < self._settings.slots:
            self._admit(self._waiting.pop(0))

    def _obey(self, message: protocol.Command) -> None:
        match message:
            case protocol.Generate():
                self._waiting.append(message)
            case protocol.Embed():
                self._embed(message)
            case protocol.Cancel():
                self._cancel(message.id)
            case protocol.Tokenize():
                if (poison := self._script.get("crash_on_words")) and poison in message.text:
                    self._die()
                ids = self._vocabulary.tokenize(
                    message.text, add_bos=message.add_bos or message.framed
                )
                names = map(self._vocabulary.word, ids) if message.pieces else ()
                pieces = tuple(name.encode().hex() for name in names)
                self._send(protocol.Tokens(id=message.id, tokens=ids, pieces=pieces))
            case protocol.Detokenize():
                text = "".join(map(self._vocabulary.word, message.tokens))
                self._send(protocol.Text(id=message.id, text=text))
            case protocol.Load():
                self._die()

    def _admit(self, request: protocol.Generate) -> None:
        ids = request.tokens or self._vocabulary.tokenize(request.prompt, add_bos=request.add_bos)
        if len(ids) > self._num_ctx:
            if not request.truncate:
                text = f"prompt: expected at most {self._num_ctx} tokens, found {len(ids)}"
                self._send_rows(protocol.Row(id=request.id, fault=text, refused=True))
                return
            ids = ids[-self._num_ctx :]
        words = self._script.get("words") or [self._vocabulary.word(i) for i in ids if i != BOS]
        self._running.append(Sequence(request=request, prompt_ids=ids, words=list(words)))

    def _embed(self, request: protocol.Embed) -> None:
        """A vector of a text's length and its number of words; of tokens, their number and sum."""
        if text := self._script.get("refuse_embed"):
            self._send_rows(protocol.Row(id=request.id, fault=text, refused=True))
            return
        pairs = [(len(text), len(text.split())) for text in request.texts]
        pairs += [(len(ids), sum(ids)) for ids in request.tokens]
        self._send_rows(
            protocol.Row(
                id=request.id,
                vectors=tuple(_write(pair, request) for pair in pairs),
                done="stop",
                prompt_tokens=sum(pair[1] for pair in pairs),
            )
        )

    def _cancel(self, request_id: int) -> None:
        for sequence in [*self._running]:
            if sequence.request.id == request_id:
                self._running.remove(sequence)
                self._send_rows(self._last_row(sequence, "cancelled", ""))
        for request in [*self._waiting]:
            if request.id == request_id:
                self._waiting.remove(request)
                self._send_rows(protocol.Row(id=request_id, done="cancelled"))

    def _step(self) -> None:
        time.sleep(self._script.get("step_s", 0.0))
        self._steps += 1
        if self._steps == self._script.get("crash_after_steps"):
            self._die()
        if (poison := self._script.get("crash_on")) and any(
            poison in "".join(map(self._vocabulary.word, sequence.prompt_ids))
            for sequence in self._running
        ):
            self._die()
        if self._steps == self._script.get("garbage_after_steps"):
            self._sock.sendall(b'{"ev":"step","n":1,"rows":[{"id"\n')
        while self._script.get("endless_line"):
            self._sock.sendall(b"x" * (1 << 16))
        self._send_rows(*[self._advance(sequence) for sequence in [*self._running]])

    def _advance(self, sequence: Sequence) -> protocol.Row:
        """Say the next word of one sequence; the last row frees its slot."""
        sampling = sequence.request.sampling
        sequence.first_s = sequence.first_s or time.monotonic()
        if sequence.said == len(sequence.words):
            return self._end(sequence, "stop", sequence.held)
        word = sequence.words[sequence.said]
        sequence.said += 1
        sequence.held += word
        at = min((i for s in sampling.stop if (i := sequence.held.find(s)) >= 0), default=-1)
        if at >= 0:
            return self._end(sequence, "stop", sequence.held[:at])
        if sequence.said == sampling.num_predict:
            return self._end(sequence, "length", sequence.held, word)
        keep = max((_overlap(sequence.held, s) for s in sampling.stop), default=0)
        text = sequence.held[: len(sequence.held) - keep]
        sequence.held = sequence.held[len(text) :]
        return protocol.Row(
            id=sequence.request.id,
            text=text,
            tokens=(self._vocabulary.id_of(word),),
            logprobs=_logprobs(sequence.request, word),
        )

    def _end(
        self, sequence: Sequence, reason: protocol.DoneReason, text: str, word: str | None = None
    ) -> protocol.Row:
        self._running.remove(sequence)
        return self._last_row(sequence, reason, text, word)

    def _last_row(
        self, sequence: Sequence, reason: protocol.DoneReason, text: str, word: str | None = None
    ) -> protocol.Row:
        first_s = sequence.first_s or time.monotonic()
        return protocol.Row(
            id=sequence.request.id,
            text=text,
            tokens=() if word is None else (self._vocabulary.id_of(word),),
            logprobs=() if word is None else _logprobs(sequence.request, word),
            done=reason,
            prompt_tokens=len(sequence.prompt_ids),
            completion_tokens=sequence.said,
            prompt_s=first_s - sequence.started_s,
            eval_s=time.monotonic() - first_s,
            prompt_ids=sequence.prompt_ids,
        )

    def _send_rows(self, *rows: protocol.Row) -> None:
        self._send(protocol.Step(n=self._steps, rows=rows))

    def _send(self, event: protocol.Event) -> None:
        try:
            self._sock.sendall(protocol.encode(event))
        except OSError:
            if not self._script.get("ignore_close"):
                os._exit(0)

    def _die(self) -> None:
        words = self._script.get("last_words", "GGML_ASSERT(fake) failed")
        print(words, file=sys.stderr, flush=True)  # noqa: T201  (it is what is tested)
        number = self._script.get("crash_signal", signal.SIGKILL)
        if number:
            os.kill(os.getpid(), number)
            time.sleep(60)
        os._exit(3)


def _write(pair: tuple[int, ...], request: protocol.Embed) -> str:
    pair = pair[: request.dimensions or None]
    if request.form == "base64":
        return base64.b64encode(struct.pack(f"<{len(pair)}f", *pair)).decode()
    return json.dumps([*pair, *(["raw"] if not request.normalize and not request.query else [])])


def _read_script(path: Path) -> dict[str, Any]:
    try:
        script = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    assert isinstance(script, dict)
    return script


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of ``text`` may be the beginning of ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def _logprobs(request: protocol.Generate, word: str) -> tuple[Any, ...]:
    if request.top_logprobs is None:
        return ()
    entry = [word, word.encode().hex(), -0.5]
    return ([*entry, [entry] * request.top_logprobs],)


def main() -> None:
    arguments = sys.argv[1:]
    script = Path(arguments[1]) if arguments[0] == "--script" else None
    with socket.socket(fileno=int(arguments[-2])) as sock:
        FakeRunner(sock, script).run()


if __name__ == "__main__":
    main()
