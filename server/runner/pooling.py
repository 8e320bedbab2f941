"""The decode thread of a model that only turns texts into vectors.

A step: obey commands, compute as many texts as `Packing` puts together, send what is ready.
A step that the engine refuses is computed text by text, and only the request of a text that is
refused alone gets a fault.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from server.errors import EngineRefusedError
from server.runner import library
from server.runner.embedding import Job, Vector
from server.runner.inbox import Arrival, Inbox, Item
from server.runner.library import Engine
from server.runner.packing import Packing, Piece
from server.runner.protocol import Row, Step

_WEIGHT = 0.3
"""Of the newest measurement, in the moving average of the speed."""


class PoolingLoop:
    """All requests of one runner whose model pools.

    Attributes:
        steps: decode steps so far.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        inbox: Inbox,
        send: Callable[[Step], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``send`` is called once per step, in this thread."""
        shape = engine.shape
        self.steps = 0
        self._engine = engine
        self._inbox = inbox
        self._send = send
        self._clock = clock
        self._rate = engine.prefill_rate
        self._jobs: dict[int, Job] = {}
        self._packing = Packing(batch_tokens=shape.batch_tokens, sequences=shape.sequences)
        self._suspects = 0

    def run(self) -> None:
        """Step until the inbox is closed."""
        while (items := self._inbox.take(wait=not self._packing.busy)) is not None:
            rows = [row for item in items for row in self._obey(item)]
            computed = self._compute()
            self.steps += computed is not None
            rows += computed or ()
            if rows:
                self._send(Step(n=self.steps, rows=tuple(rows)))

    def close(self) -> None:
        """Requests hold nothing that has to be freed."""

    def _obey(self, item: Item) -> Iterable[Row]:
        if isinstance(item, Job):
            self._jobs[item.id] = item
            self._packing.submit(item.id, item.texts)
            return ()
        assert not isinstance(item, Arrival)  # refused before it is queued
        job = self._jobs.pop(item.id, None)
        self._packing.drop(item.id)
        return () if job is None else (job.end("cancelled"),)

    def _compute(self) -> list[Row] | None:
        """Decode one batch; ``None`` if there was nothing to compute."""
        pieces = self._packing.plan()
        if self._suspects:
            pieces = pieces[:1]
        if not pieces:
            return None
        tokens = sum(len(piece.tokens) for piece in pieces)
        requests = frozenset(piece.request for piece in pieces)
        if not self._inbox.begin(requests, tokens / self._rate):
            return None
        self._fill(pieces)
        begin_s = self._clock()
        answer = self._engine.decode()
        self._inbox.end()
        if answer == library.OK:
            self._measure(tokens, self._clock() - begin_s)
            rows = self._collect(pieces)
        elif answer == library.ABORTED:
            rows = []
        else:
            rows = self._isolate(pieces, answer)
        self._engine.forget()
        return rows

    def _fill(self, pieces: tuple[Piece, ...]) -> None:
        batch = self._engine.batch
        batch.clear()
        for sequence, piece in enumerate(pieces):
            batch.add(piece.tokens, position=0, sequence=sequence, output=True)
        batch.ask_for_all()

    def _collect(self, pieces: tuple[Piece, ...]) -> list[Row]:
        """Hand every vector to its request, and the requests' rows on."""
        self._packing.advance(pieces)
        self._suspects = max(0, self._suspects - 1)
        rows = []
        end = 0
        for sequence, piece in enumerate(pieces):
            end += len(piece.tokens)
            job = self._jobs.get(piece.request)
            if job is None:  # another of its texts broke it
                continue
            try:
                job.put(piece.index, self._vector(sequence, end - 1))
            except EngineRefusedError as refusal:
                rows.append(self._fault(job, str(refusal), refused=True))
        for request in dict.fromkeys(piece.request for piece in pieces):
            job = self._jobs.get(request)
            row = job.row() if job is not None else None
            if job is not None and job.done:
                del self._jobs[request]
            rows += [] if row is None else [row]
        return rows

    def _vector(self, sequence: int, last: int) -> Vector:
        """A text's vector; of a model that does not pool, that of its last token."""
        if self._engine.pooling_none:
            return self._engine.hidden(last)
        return self._engine.pooled(sequence)

    def _isolate(self, pieces: tuple[Piece, ...], answer: int) -> list[Row]:
        """The engine failed: find out for whom by computing each text alone."""
        if len(pieces) > 1:
            self._suspects = len(pieces)
            return []
        self._suspects = max(0, self._suspects - 1)
        job = self._jobs[pieces[0].request]
        return [self._fault(job, f"the engine failed to compute this request ({answer})")]

    def _fault(self, job: Job, message: str, *, refused: bool = False) -> Row:
        del self._jobs[job.id]
        self._packing.drop(job.id)
        return job.fault(message, refused=refused)

    def _measure(self, tokens: int, seconds: float) -> None:
        if seconds > 0:
            self._rate += _WEIGHT * (tokens / seconds - self._rate)
