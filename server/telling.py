"""What is told of an answer besides its pieces: the length of its prompt, its end, its faults."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence

from server.chunks import (
    Chunk,
    Conformity,
    FinishChunk,
    Piece,
    StartChunk,
    TextChunk,
    Usage,
)
from server.conformance.check import conformity, is_to_be_checked
from server.deadline import Deadline
from server.errors import ClientGoneError, DeadlineError, RunnerCrashedError, ServerError
from server.generation import Gone, Outcome
from server.wishes import Constraint

Chunks = Generator[Chunk, None, None]


def told(error: ClientGoneError, deadline: Deadline, gone: Gone) -> ServerError:
    """Who gave up: the client, or its deadline while the request waited."""
    if gone() or not deadline.passed:
        return error
    return DeadlineError(
        f"request: not begun within {deadline.limit_s:g} s",
        hint="load the model before, or allow more with the option request_timeout",
    )


def announced(pieces: Generator[Piece, None, None], prompt_tokens: int) -> Chunks:
    """Tell the length of the prompt before the first piece, or before the end without one."""
    with contextlib.closing(pieces):
        first = next(pieces, None)
        yield StartChunk(prompt_tokens=prompt_tokens)
        if first is not None:
            yield first
            yield from pieces


def heard(pieces: Generator[Piece, None, None], said: list[str]) -> Generator[Piece, None, None]:
    """Pass pieces on and keep their visible text."""
    with contextlib.closing(pieces):
        for piece in pieces:
            if isinstance(piece, TextChunk):
                said.append(piece.text)
            yield piece


def checked(
    constraint: Constraint | None, outcome: Outcome, said: Sequence[str]
) -> Conformity | None:
    """Check what was said, where keywords of its schema were left out."""
    relaxed = outcome.row.relaxed if outcome.row is not None else ()
    if constraint is None or not relaxed or not is_to_be_checked(constraint):
        return None
    return conformity(constraint.source, "".join(said), relaxed)


def finish(
    outcome: Outcome,
    *,
    load_s: float,
    total_s: float,
    with_context: bool,
    fits: Conformity | None,
) -> FinishChunk:
    """The last chunk of an answer.

    Args:
        outcome: of a completion that came to its end.
        load_s: seconds the request waited for the model.
        total_s: seconds since the request came.
        with_context: tell the tokens of prompt and answer.
        fits: what a check of the answer came to.
    """
    row = outcome.row
    assert row is not None
    usage = Usage(
        prompt_tokens=row.prompt_tokens,
        cached_tokens=row.cached_tokens,
        completion_tokens=max(row.completion_tokens, len(outcome.generated)),
        reasoning_tokens=outcome.reasoning_tokens,
        drafted_tokens=row.drafted,
        draft_tokens_accepted=row.confirmed,
        load_s=load_s,
        prompt_s=row.prompt_s,
        eval_s=outcome.eval_s,
        total_s=total_s,
    )
    context = (*row.prompt_ids, *outcome.generated) if with_context else ()
    return FinishChunk(reason=outcome.reason, usage=usage, context=context, conformity=fits)


def crashed(error: RunnerCrashedError) -> RunnerCrashedError:
    """The runner's death in the words clients know, with its cause behind them."""
    return RunnerCrashedError(
        "model runner has unexpectedly stopped, this may be due to resource limitations or an "
        f"internal error: {error}",
        hint=error.hint,
    )
