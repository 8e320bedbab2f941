"""What the server learns from crashes: it records them, and holds back what causes them.

A request is known by a mark: a keyed hash of model and request. The key is drawn when the server
starts and kept nowhere, so a mark cannot be compared with a guess at the text.

Of the requests that are tried again after a crash, one at a time runs per model: if one of them is
the cause, the next crash tells which.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import math
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace

from appliance.crashes import CrashFolder, CrashRecord
from appliance.errors import AppError
from appliance.journal import timestamp
from hwprobe.settings import EngineSettings
from server.chat import RequestOptions
from server.errors import ClientGoneError, HeldBackError
from server.quarantine import Breaker, BreakerPolicy, Quarantine, QuarantinePolicy
from server.runner import protocol
from server.runner.autopsy import Autopsy

GONE_POLL_S = 0.05
"""How often a request that waits for its second try asks whether its client is still there."""

_MARK_CHARACTERS = 16

LOG = logging.getLogger("satchel.server")

Computed = protocol.Generate | protocol.Embed | protocol.Tokenize | protocol.Detokenize
"""What a runner can die of."""


class Coroner:
    """All methods may be called from any thread."""

    def __init__(
        self,
        *,
        folder: CrashFolder | None = None,
        engine_build: str = "",
        quarantine: QuarantinePolicy | None = None,
        breaker: BreakerPolicy | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Know of nothing yet.

        Args:
            folder: where records are kept; without one they are only logged.
            engine_build: named in the records.
            quarantine: how long requests are held back.
            breaker: how long loads are held back.
            clock: monotonic seconds.
            wall: seconds since the epoch.
        """
        self._folder = folder
        self._engine_build = engine_build
        self._clock = clock
        self._wall = wall
        self._key = secrets.token_bytes(32)
        self._lock = threading.Lock()  # guards everything below
        self._quarantine = Quarantine(quarantine)
        self._breaker = Breaker(breaker)
        self._in_flight: dict[int, Counter[str]] = {}
        self._second_tries: dict[str, threading.Lock] = {}

    def mark(self, model: str, request: Computed) -> str:
        """The mark of a request for a model; what only chance or length depend on is left out."""
        if isinstance(request, protocol.Generate):
            sampling = replace(request.sampling, seed=0, num_predict=0)
            request = replace(request, sampling=sampling)
        if isinstance(request, protocol.Generate | protocol.Embed):
            request = replace(request, tenant="", scope="")
        return self._marked(model, protocol.encode(replace(request, id=0)))

    def mark_words(self, model: str, request: RequestOptions) -> str:
        """The mark of a request that is being made into a prompt: of all that this depends on."""
        words = replace(request, options={}, keep_alive_s=None, stream=True, tenant="")
        text = json.dumps(asdict(words), default=_stand_in)
        return self._marked(model, text.encode())

    @contextmanager
    def watching(
        self,
        runner: int,
        mark: str,
        *,
        again: bool = False,
        model: str = "",
        gone: Callable[[], bool] = lambda: False,
    ) -> Iterator[None]:
        """While inside, the request counts as in flight on the runner with this process id.

        Args:
            runner: process id.
            mark: of the request.
            again: it is tried once more after a crash: it is let in though it is suspect, and
                alone among those of the same model.
            model: whose second tries wait for each other.
            gone: whether the client has left while it waits.

        Raises:
            HeldBackError: the request is held back.
            ClientGoneError: the client left while it waited.
        """
        if again:
            with self._turn(model, gone), self._counted(runner, mark):
                yield
            return
        with self._lock:
            held_s = self._quarantine.held_s(self._clock(), mark)
        if held_s:
            raise HeldBackError(
                f"request: held back for {math.ceil(held_s)} s: the model's runner crashed while "
                "it was being computed",
                hint="change the request; `satchel crashes` shows how the runner ended",
                retry_after_s=held_s,
            )
        with self._counted(runner, mark):
            yield

    def answered(self, mark: str) -> None:
        """A request was answered to its end: it is no cause of crashes."""
        with self._lock:
            self._quarantine.answered(mark)

    def check_load(self, model: str, settings: EngineSettings) -> None:
        """Whether the model may be loaded with these settings now.

        Raises:
            HeldBackError: its runners have crashed again and again.
        """
        with self._lock:
            held_s = self._breaker.held_s(self._clock(), (model, settings))
        if held_s:
            raise HeldBackError(
                f"model: not loaded for another {math.ceil(held_s)} s: its runner crashed "
                "several times in a row",
                hint="`satchel crashes` shows how",
                retry_after_s=held_s,
            )

    def died(self, *, name: str, model: str, settings: EngineSettings, autopsy: Autopsy) -> None:
        """A runner has died: learn from it and keep a record. Never raises."""
        now = self._clock()
        with self._lock:
            marks = tuple(sorted(self._in_flight.get(autopsy.pid, ())))
            held = self._quarantine.crashed(now, marks, inside=not autopsy.from_outside)
            held_s = self._breaker.crashed(now, (model, settings))
        wall_s = self._wall()
        record = CrashRecord(
            at=timestamp(wall_s),
            model=name,
            cause=autopsy.cause,
            text=autopsy.text,
            assertion=autopsy.assertion,
            stack=autopsy.stack,
            log=autopsy.log,
            engine_build=self._engine_build,
            settings=asdict(settings),
            steps=autopsy.steps,
            requests=autopsy.requests,
            marks=marks,
            held_back=held,
            ready=autopsy.ready,
            lived_s=round(autopsy.lived_s, 3),
            pid=autopsy.pid,
            load_held_until=timestamp(wall_s + held_s) if held_s else "",
        )
        if held_s:
            LOG.warning("%s: crashed again; not loaded for %.0f s", name, held_s)
        if self._folder is not None:
            try:
                LOG.warning("%s: crash record %s", name, self._folder.write(record))
            except AppError as error:
                LOG.warning("%s: %s", name, error)

    def _marked(self, model: str, text: bytes) -> str:
        digest = hmac.new(self._key, model.encode() + b"\0" + text, hashlib.sha256)
        return digest.hexdigest()[:_MARK_CHARACTERS]

    @contextmanager
    def _counted(self, runner: int, mark: str) -> Iterator[None]:
        with self._lock:
            self._in_flight.setdefault(runner, Counter())[mark] += 1
        try:
            yield
        finally:
            with self._lock:
                marks = self._in_flight[runner]
                marks[mark] -= 1
                if not marks[mark]:
                    del marks[mark]
                if not marks:
                    del self._in_flight[runner]

    @contextmanager
    def _turn(self, model: str, gone: Callable[[], bool]) -> Iterator[None]:
        with self._lock:
            turn = self._second_tries.setdefault(model, threading.Lock())
        while not turn.acquire(timeout=GONE_POLL_S):
            if gone():
                raise ClientGoneError("request canceled")
        try:
            yield
        finally:
            turn.release()


def _stand_in(value: object) -> str:
    """For an image: its digest."""
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else repr(value)
