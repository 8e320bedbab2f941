"""The runner's conversation: load the model, then take commands while the decode thread works.

Three threads. The main thread loads and decodes; it alone calls the engine's context. The I/O
thread reads commands, tokenizes prompts, answers what needs no decoding, and notices that the
server has hung up. Grammars are compiled in a third, so that none holds up a cancel.
"""

from __future__ import annotations

import math
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from hwprobe.draft import check_draft
from hwprobe.errors import DraftError, GgufError
from hwprobe.estimate import draft_settings
from hwprobe.gguf import model_profile, read_header
from server.errors import EngineRefusedError, LoadFailedError, RunnerCrashedError
from server.runner import protocol
from server.runner.chain import Dry
from server.runner.drafting import Drafter
from server.runner.gate import Gate
from server.runner.grammar import Compiler
from server.runner.inbox import PATIENCE_S, Arrival, Inbox
from server.runner.lastwords import print_frames
from server.runner.library import Engine
from server.runner.loop import Loop
from server.runner.native import LOG, tell_aborts
from server.runner.pictures import only_tokens
from server.runner.pooling import PoolingLoop
from server.runner.preparing import Preparing
from server.runner.sampling import check_options, dry_tokens
from server.runner.seeing import longest_step_s, looked, put_images, see
from server.runner.shelf import Shelf
from server.runner.texts import pieces_of, prepare_texts, tokenized
from server.runner.turns import scales_of
from server.runner.window import fit_prompt, kept_tokens, longest_answer
from server.runner.work import Work
from server.wishes import SamplingOptions

HANG_UP_S = 1.0
"""How long the main thread may take to end after the server hung up. Why: a running step can be
aborted on a CPU, but not on a GPU."""

KEEP_S = 3.5
"""How long it may take beyond that to put computed prompts into files. Why: with `HANG_UP_S` it is
less than what an unloaded runner is given before it is killed, see `server.lease`."""

READER_STACK_BYTES = 64 << 20
"""Stack of the I/O thread. Why: some pre-tokenizers match long words recursively."""

PROGRESS_STEP = 0.01
"""Progress is reported in hundredths."""


class Service:
    """One conversation over one socket."""

    def __init__(self, connection: socket.socket, *, crash_pipe: int) -> None:
        """``crash_pipe`` takes the text of a failed assertion."""
        tell_aborts(crash_pipe)
        self._socket = connection
        self._sending = threading.Lock()
        self._loads: queue.SimpleQueue[protocol.Load | None] = queue.SimpleQueue()
        self._ready = threading.Event()
        self._gone = threading.Event()
        self._keep_s = 0.0
        self._failed = False
        self._engine: Engine | None = None
        self._draft: Engine | None = None
        self._inbox: Inbox | None = None
        self._loop: Loop | PoolingLoop | None = None
        self._preparing: Preparing | None = None

    def run(self) -> int:
        """Converse until the server hangs up; returns the exit code."""
        threading.stack_size(READER_STACK_BYTES)
        threading.Thread(target=self._read, name="io", daemon=True).start()
        load = self._loads.get()
        if load is None:
            return int(self._failed)
        begin_s = time.monotonic()
        try:
            engine = self._load(load)
        except LoadFailedError as failure:
            if self._gone.is_set():
                return int(self._failed)
            self._send(protocol.Failed(message=_sendable(str(failure))))
            return 1
        try:
            self._converse(engine, load, time.monotonic() - begin_s)
        finally:
            engine.close()
            if self._draft is not None:
                self._draft.close()
        return int(self._failed)

    def _load(self, load: protocol.Load) -> Engine:
        reported = 0.0

        def on_progress(fraction: float) -> bool:
            nonlocal reported
            if fraction >= reported + PROGRESS_STEP:
                reported = fraction
                self._send(protocol.Progress(fraction=fraction))
            return not self._gone.is_set()

        engine = Engine(
            model_path=Path(load.model_path),
            settings=load.settings,
            adapters=load.adapters,
            projector=Path(load.projector) if load.projector else None,
            on_progress=on_progress,
        )
        if load.draft:
            try:
                self._draft = open_draft(Path(load.draft), load)
            except BaseException:
                engine.close()
                raise
        return engine

    def _converse(self, engine: Engine, load: protocol.Load, load_s: float) -> None:
        loop: Loop | PoolingLoop
        if load.settings.pooled:
            inbox = Inbox(engine.abort, engine.rearm)
            loop = PoolingLoop(engine, inbox=inbox, send=self._send)
        else:
            # A running state cannot go back to before an aborted step: others would begin anew.
            patience_s = PATIENCE_S if engine.shape.divisible else math.inf
            inbox = Inbox(self._abort(engine), self._rearm(engine), patience_s=patience_s)
            shelf = _shelf(load)
            self._keep_s = 0.0 if shelf is None else KEEP_S
            loop = Loop(
                engine,
                slots=load.settings.slots,
                inbox=inbox,
                send=self._send,
                drafter=self._new_drafter(engine),
                shelf=shelf,
            )
        compiler = Compiler(engine.vocabulary)
        self._preparing = Preparing(
            lambda command: prepare(engine, command, compiler),
            accept=inbox.put,
            refuse=self._refuse,
        )
        self._engine, self._inbox, self._loop = engine, inbox, loop
        self._ready.set()
        if self._gone.is_set():
            return
        self._send(
            protocol.Ready(
                num_ctx=engine.shape.context_tokens,
                n_vocab=engine.shape.vocabulary_size,
                memory=engine.memory,
                system_info=engine.system_info,
                load_s=load_s,
                batch_s=longest_step_s(engine),
            )
        )
        try:
            loop.run()
            if isinstance(loop, Loop) and not self._failed:
                loop.keep(time.monotonic() + self._keep_s)
        finally:
            loop.close()

    def _new_drafter(self, engine: Engine) -> Drafter | None:
        if self._draft is None:
            return None
        return Drafter(self._draft, vocabulary_size=engine.shape.vocabulary_size)

    def _abort(self, engine: Engine) -> Callable[[], None]:
        """What stops a running decode, of whichever model."""
        return engine.abort if self._draft is None else each(engine.abort, self._draft.abort)

    def _rearm(self, engine: Engine) -> Callable[[], None]:
        return engine.rearm if self._draft is None else each(engine.rearm, self._draft.rearm)

    def _read(self) -> None:
        """The I/O thread."""
        try:
            with self._socket.makefile("rb") as lines:
                while line := lines.readline(protocol.MAX_LINE_BYTES + 1):
                    if not line.endswith(b"\n"):
                        break
                    self._take(protocol.decode_command(line))
        except OSError:
            pass  # the server is gone; how does not matter
        except Exception:  # noqa: BLE001 - the outermost edge of this thread
            self._failed = True
            print_frames()
        self._hang_up()

    def _hang_up(self) -> None:
        self._gone.set()
        self._loads.put(None)
        if self._inbox is not None:
            self._inbox.close()
        time.sleep(HANG_UP_S + self._keep_s)
        sys.stderr.flush()
        os._exit(int(self._failed))

    def _take(self, command: protocol.Command) -> None:
        if isinstance(command, protocol.Load):
            self._loads.put(command)
            return
        self._ready.wait()
        engine, inbox = self._engine, self._inbox
        if engine is None or inbox is None:
            raise RunnerCrashedError("a command came before the model was ready")
        match command:
            case protocol.Generate() | protocol.Embed():
                self._take_request(engine, inbox, command)
            case protocol.Cancel():
                self._take_cancel(inbox, command.id)
            case protocol.Tokenize():
                tokens = tokenized(engine, command)
                pieces = pieces_of(engine, tokens) if command.pieces else ()
                self._send(protocol.Tokens(id=command.id, tokens=tokens, pieces=pieces))
            case protocol.Look():
                self._send(looked(engine, command))
            case protocol.Detokenize():
                known = (t for t in command.tokens if 0 <= t < engine.shape.vocabulary_size)
                text = engine.vocabulary.detokenize(known)
                self._send(protocol.Text(id=command.id, text=text))

    def _take_request(
        self, engine: Engine, inbox: Inbox, command: protocol.Generate | protocol.Embed
    ) -> None:
        try:
            if isinstance(command, protocol.Embed):
                inbox.put(prepare_texts(engine, command))
            elif self._preparing is not None and _takes_time(command):
                self._preparing.submit(command)
            else:
                inbox.put(prepare(engine, command))
        except EngineRefusedError as refusal:
            self._refuse(command.id, str(refusal))

    def _take_cancel(self, inbox: Inbox, request: int) -> None:
        if self._preparing is not None and self._preparing.cancel(request):
            self._send_row(protocol.Row(id=request, done="cancelled"))
        else:
            inbox.cancel(request)

    def _refuse(self, request: int, reason: str) -> None:
        self._send_row(protocol.Row(id=request, fault=_sendable(reason), refused=True))

    def _send_row(self, row: protocol.Row) -> None:
        """A row that no decode step has brought."""
        steps = self._loop.steps if self._loop is not None else 0
        self._send(protocol.Step(n=steps, rows=(row,)))

    def _send(self, event: protocol.Event) -> None:
        try:
            with self._sending:
                self._socket.sendall(protocol.encode(event))
        except OSError:
            self._gone.set()
            if self._inbox is not None:
                self._inbox.close()


def each(*calls: Callable[[], None]) -> Callable[[], None]:
    """All of them as one."""

    def call() -> None:
        for one in calls:
            one()

    return call


def open_draft(path: Path, load: protocol.Load) -> Engine:
    """Open a draft model beside the model that ``load`` names.

    Raises:
        LoadFailedError: it does not go with the model, or the engine refused it.
    """
    try:
        header = read_header(path)
        check_draft(header, read_header(Path(load.model_path)))
        settings = draft_settings(load.settings, model_profile(header))
    except (DraftError, GgufError) as error:
        raise LoadFailedError(str(error), hint=error.hint) from error
    except OSError as error:
        raise LoadFailedError(f"draft: cannot be read: {error.strerror}") from error
    LOG.begin_model()
    return Engine(model_path=path, settings=settings)


def _shelf(load: protocol.Load) -> Shelf | None:
    kept = load.keepsakes
    if kept is None:
        return None
    binding = bytes.fromhex(kept.binding)
    return Shelf(Path(kept.folder), binding=binding, limit_bytes=kept.limit_bytes)


def prepare(
    engine: Engine, command: protocol.Generate, compiler: Compiler | None = None
) -> Arrival:
    """Everything a request needs that can be done beside the decode thread.

    ``compiler`` is needed for a request that is bound to a grammar.

    Raises:
        EngineRefusedError: an option, the prompt or the grammar is not accepted.
    """
    shape, vocabulary, sampling = engine.shape, engine.vocabulary, command.sampling
    if shape.pooled:
        raise EngineRefusedError("this model generates no text")
    check_options(sampling, vocabulary_size=shape.vocabulary_size)
    seen = see(engine, command.images)
    if command.tokens:
        vocabulary.check(only_tokens(command.tokens))
        tokens = vocabulary.with_bos(command.tokens) if command.add_bos else command.tokens
        tokens = put_images(tokens, seen, shape)
    else:
        tokens = vocabulary.prompt(command.prompt, add_bos=command.add_bos)
    keep = kept_tokens(
        sampling.num_keep,
        context_tokens=shape.context_tokens,
        prompt_tokens=len(tokens),
        bos=tokens[:1] == (vocabulary.bos,),
    )
    prompt = fit_prompt(
        tokens,
        context_tokens=shape.context_tokens,
        keep=keep,
        truncate=command.truncate and not seen,
    )
    adapters = scales_of(sampling.lora, engine.scales)
    work = Work(
        id=command.id,
        prompt=prompt,
        most_tokens=longest_answer(sampling.num_predict, context_tokens=shape.context_tokens),
        keep=keep,
        slide=command.shift and not seen,
        tenant=command.tenant,
        scope=f"{command.scope} {adapters}" if adapters else command.scope,
    )
    gate: Gate | None = None
    relaxed: tuple[str, ...] = ()
    if command.constraint is not None and compiler is not None:
        try:
            compiled = compiler.compile(command.constraint)
            gate = Gate(command.constraint, compiled.matcher, vocabulary)
            relaxed = compiled.relaxed
        except EngineRefusedError:
            if not command.constraint.optional:
                raise
    return Arrival(
        work=work,
        sampling=sampling,
        top_logprobs=command.top_logprobs,
        adapters=adapters,
        gate=gate,
        relaxed=relaxed,
        pictures={picture.key: picture for one in seen for picture in one.pictures},
        dry=_dry(engine, sampling),
    )


def _takes_time(command: protocol.Generate) -> bool:
    return command.constraint is not None or command.sampling.dry_multiplier != 0


def _dry(engine: Engine, options: SamplingOptions) -> Dry | None:
    last = dry_tokens(options, context_tokens=engine.shape.context_tokens)
    return Dry(engine.vocabulary, options, last_tokens=last) if last else None


def _sendable(text: str) -> str:
    """The text without the lone surrogates that JSON can bring in and UTF-8 cannot carry."""
    return text.encode("utf-8", "replace").decode()
