"""Which texts a step of a pooling model computes together. Pure.

A pooling model sees a text whole or not at all, and keeps nothing between two steps.

Rules:
 * a step computes texts until `PACK_TOKENS` are reached; a longer text is computed alone;
 * requests take turns, one text each; the first of a step is another one in every step, so a long
   text waits no longer than there are requests;
 * the texts of one request are computed in their order;
 * what a step did not finish stays first in line.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

PACK_TOKENS = 512
"""Why: from there on matrices gain nothing from more rows, while every token of a step is compared
with every other one, also of other texts."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One text in a step: the ``index``-th of its request."""

    request: int
    index: int
    tokens: tuple[int, ...]


class Packing:
    """The texts that wait, by request."""

    def __init__(self, *, batch_tokens: int, sequences: int) -> None:
        """Take the limits of one step: tokens, and texts."""
        self._tokens = min(batch_tokens, PACK_TOKENS)
        self._batch = batch_tokens
        self._sequences = sequences
        self._waiting: dict[int, deque[Piece]] = {}

    @property
    def busy(self) -> bool:
        """Whether there is something to compute."""
        return bool(self._waiting)

    def submit(self, request: int, texts: Sequence[tuple[int, ...]]) -> None:
        """Queue the texts of a request.

        Raises:
            ValueError: there is none, or one is empty or larger than a batch.
        """
        for index, text in enumerate(texts):
            if not 0 < len(text) <= self._batch:
                raise ValueError(
                    f"text {index}: expected 1 to {self._batch} tokens, found {len(text)}"
                )
        if not texts:
            raise ValueError("texts: expected at least one")
        self._waiting[request] = deque(Piece(request, i, text) for i, text in enumerate(texts))

    def drop(self, request: int) -> None:
        """Forget a request; nothing happens if there is none."""
        self._waiting.pop(request, None)

    def plan(self) -> tuple[Piece, ...]:
        """The next step; the same again until `advance`."""
        chosen: list[Piece] = []
        tokens = 0
        queues = [iter(queue) for queue in self._waiting.values()]
        while queues:
            still = []
            for queue in queues:
                piece = next(queue, None)
                if piece is None:
                    continue
                if chosen and not self._fits(tokens, len(chosen), piece):
                    continue
                chosen.append(piece)
                tokens += len(piece.tokens)
                still.append(queue)
            queues = still
        return tuple(chosen)

    def advance(self, pieces: Sequence[Piece]) -> None:
        """Note that these texts, the first of their requests, are computed."""
        for piece in pieces:
            queue = self._waiting.get(piece.request)
            if queue and queue[0] == piece:
                queue.popleft()
        for request in [request for request, queue in self._waiting.items() if not queue]:
            del self._waiting[request]
        if pieces and (first := pieces[0].request) in self._waiting:
            self._waiting[first] = self._waiting.pop(first)

    def _fits(self, tokens: int, texts: int, piece: Piece) -> bool:
        return texts < self._sequences and tokens + len(piece.tokens) <= self._tokens
