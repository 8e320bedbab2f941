"""From a runner's rows to chunks: one completion, watched for clients that leave.

Rules:
 * the slot is given back however this ends: the last row, a fault, a client that left, a closed
   iterator;
 * log-probabilities go out with the text they belong to, or with the next text where theirs is
   held back;
 * when the time of a request is over, it is ended with what has been said;
 * when its answer is whole before the model thinks so, it is ended there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from server.chunks import FinishReason, Piece, TextChunk, ThinkingChunk, TokenLogprob
from server.deadline import NEVER, Deadline
from server.errors import BadRequestError, ClientGoneError, DeadlineError, EngineRefusedError
from server.output.stream import OutputStream
from server.runner import protocol

Gone = Callable[[], bool]

POLL_S = 0.05
"""How often a waiting request looks whether its client is still there. A client that leaves during
prefill is noticed this much later at most. Why: with the 30 ms that the engine takes to stop
between two nodes of its graph, a slot is free within 100 ms; the look costs microseconds."""

CUT_S = 2.0
"""How long to wait for a runner to end a request whose time is over. Why: a step that cannot be
interrupted, as on a GPU, should not keep the client."""


class RowStream(Protocol):
    """What this module needs of `server.runner.process.Stream`."""

    @property
    def ended(self) -> bool:
        """Whether the last row has been taken."""

    def next(self, timeout_s: float | None = None) -> protocol.Row | None:
        """The next row, or ``None`` when none came in time."""

    def cancel(self) -> None:
        """End the request."""


class Completer(Protocol):
    """What this module needs of `server.runner.process.Runner`."""

    def generate(self, request: protocol.Generate) -> RowStream:
        """Start a completion."""

    def tokenize(
        self, text: str, *, add_bos: bool = True, parse_special: bool = True
    ) -> tuple[int, ...]:
        """Turn text into token ids."""


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What a completion came to; filled while it runs.

    Attributes:
        started: a token has arrived, so the request cannot be repeated unseen.
        reason: why it ended.
        row: the last row.
        generated: ids of all tokens generated.
        eval_s: seconds of decoding.
        reasoning_tokens: tokens whose text was reasoning.
        deadline: when it has to be over; set by whoever makes the outcome.
        enough: the answer is whole, whatever the model would go on with.
        lines_s: so long after its first text, the answer is whole once it holds a line break; 0
            for never. Set by whoever makes the outcome.
    """

    started: bool = False
    reason: FinishReason = FinishReason.STOP
    row: protocol.Row | None = None
    generated: list[int] = field(default_factory=list)
    eval_s: float = 0.0
    reasoning_tokens: int = 0
    deadline: Deadline = NEVER
    enough: bool = False
    lines_s: float = 0.0


def complete(
    runner: Completer,
    request: protocol.Generate,
    *,
    output: OutputStream,
    gone: Gone,
    outcome: Outcome,
) -> Generator[Piece, None, None]:
    """Run one completion and yield its pieces; the end is told in ``outcome``.

    Args:
        runner: who completes.
        request: what.
        output: splits the text.
        gone: whether the client has left.
        outcome: filled in.

    Raises:
        ClientGoneError: the client left.
        RunnerCrashedError: the runner died.
        BadRequestError: the engine does not take the request.
        EngineRefusedError: the engine failed at it.
        DeadlineError: its time was over before its first token.
    """
    yield from _pieces(rows(runner.generate(request), gone, outcome), output, outcome)


def rows(stream: RowStream, gone: Gone, outcome: Outcome) -> Iterator[protocol.Row]:
    """The rows of a stream; leaving the iteration cancels it.

    Raises:
        ClientGoneError: the client left.
        RunnerCrashedError: the runner died.
        BadRequestError: the engine does not take the request.
        EngineRefusedError: the engine failed at it.
        DeadlineError: its time was over before its first token.
    """
    deadline, cut_s = outcome.deadline, math.inf
    try:
        while not stream.ended:
            row = stream.next(deadline.within(POLL_S) if cut_s == math.inf else POLL_S)
            if gone():
                raise ClientGoneError("request canceled")
            if (deadline.passed or outcome.enough) and cut_s == math.inf:
                cut_s = deadline.now_s()
                stream.cancel()
            if row is None and deadline.now_s() - cut_s > CUT_S:
                row = protocol.Row(id=0, done="cancelled")
            if row is None:
                continue
            _note(row, outcome, cut=cut_s < math.inf)
            yield row
            if outcome.row is not None:
                return
    finally:
        if not stream.ended:
            stream.cancel()


def _note(row: protocol.Row, outcome: Outcome, *, cut: bool) -> None:
    """Put a row into the outcome, or raise what it means."""
    if row.fault is not None:
        raise (BadRequestError if row.refused else EngineRefusedError)(row.fault)
    outcome.started = outcome.started or bool(row.tokens or row.text)
    outcome.generated.extend(row.tokens)
    if row.done is None:
        return
    timed_out = cut and row.done == "cancelled" and not outcome.enough
    if timed_out and not outcome.started:
        raise DeadlineError(
            f"request: not answered within {outcome.deadline.limit_s:g} s",
            hint="allow more with the option request_timeout, or ask for less",
        )
    if row.done == "cancelled" and not cut:
        raise ClientGoneError("request canceled")
    outcome.row = row
    outcome.eval_s = row.eval_s
    if timed_out:
        outcome.reason = FinishReason.TIMEOUT
    else:
        outcome.reason = FinishReason.LENGTH if row.done == "length" else FinishReason.STOP


def _pieces(
    from_rows: Iterator[protocol.Row], output: OutputStream, outcome: Outcome
) -> Generator[Piece, None, None]:
    """Split the text of rows; hold log-probabilities until there is text to go with."""
    waiting: tuple[TokenLogprob, ...] = ()
    now_s = outcome.deadline.now_s
    first_s, lines = math.inf, False
    for row in from_rows:
        waiting += tuple(read_logprob(entry) for entry in row.logprobs)
        pieces = output.feed(row.text)
        if outcome.row is row:
            pieces += output.finish()
        if row.text:
            first_s, lines = min(first_s, now_s()), lines or "\n" in row.text
        overdue = 0 < outcome.lines_s < now_s() - first_s
        outcome.enough = output.enough or (lines and overdue)
        if any(isinstance(piece, ThinkingChunk) for piece in pieces):
            outcome.reasoning_tokens += len(row.tokens)
        for piece in pieces:
            if waiting and isinstance(piece, TextChunk | ThinkingChunk):
                yield replace(piece, logprobs=waiting)
                waiting = ()
            else:
                yield piece
    if waiting:
        yield TextChunk(text="", logprobs=waiting)


def read_logprob(entry: Any) -> TokenLogprob:
    """One entry of `protocol.Row.logprobs`."""
    text, hexed, logprob, top = entry
    return TokenLogprob(
        token=text,
        token_bytes=bytes.fromhex(hexed),
        logprob=logprob,
        top=tuple((name, bytes.fromhex(code), value) for name, code, value in top),
    )
