"""One request from its prompt to its last row: sampled tokens in, rows out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from server.runner.pictures import only_tokens
from server.runner.proposing import Proposer
from server.runner.protocol import DoneReason, Row
from server.runner.sampling import log_probabilities
from server.runner.spelling import Spellings
from server.runner.text import TextStream


class TokenSource(Protocol):
    """Chooses tokens; see `sampler.Sampler`."""

    def sample(self, row: npt.NDArray[np.float32]) -> int:
        """The next token, given its logits."""

    def forced(self) -> tuple[int, ...]:
        """Tokens it will choose next, if it cuts the text that way."""

    @property
    def finished(self) -> bool:
        """Whether nothing may follow."""

    def close(self) -> None:
        """Free what it holds."""


class Pieces(Protocol):
    """Knows the texts of tokens; see `vocabulary.Vocabulary`."""

    def piece(self, token: int) -> bytes:
        """What a generated token adds to the text."""

    def whole_piece(self, token: int) -> bytes:
        """A token's text, control tokens by their names."""

    def is_end(self, token: int) -> bool:
        """Whether a token ends the generation."""

    def is_framing(self, token: int) -> bool:
        """Whether a token is a control token, or looks like one."""

    @property
    def spellings(self) -> Spellings:
        """The texts of such tokens."""


class Generation:
    """What a running request has said so far.

    Attributes:
        id: the request.
        prompt: its tokens, as they are computed.
        cached_tokens: of these, those that were not computed.
        sampled: tokens sampled, an end token included.
        done: why it ended; ``None`` while it runs.
    """

    def __init__(
        self,
        *,
        request: int,
        prompt: tuple[int, ...],
        most_tokens: int,
        stops: tuple[str, ...],
        top_logprobs: int | None,
        sampler: TokenSource,
        pieces: Pieces,
        clock: Callable[[], float],
        relaxed: tuple[str, ...] = (),
        proposer: Proposer | None = None,
    ) -> None:
        """Begin; the clock starts with `admitted`."""
        self.id = request
        self.prompt = prompt
        self.cached_tokens = 0
        self.sampled = 0
        self.done: DoneReason | None = None
        self._most = most_tokens
        self._top = top_logprobs
        self._sampler = sampler
        self._pieces = pieces
        self._clock = clock
        self._relaxed = relaxed
        self._proposer = proposer
        self._text = TextStream(stops, pieces.spellings)
        self._logprobs: deque[tuple[int, list[Any]]] = deque()
        self._admitted_s = self._first_s = clock()

    def admitted(self, cached_tokens: int) -> None:
        """Note that the request runs from now on."""
        self.cached_tokens = cached_tokens
        self._admitted_s = self._first_s = self._clock()

    def step(self, row: npt.NDArray[np.float32]) -> tuple[int, Row]:
        """Sample a token; returns it and what the client gets. `done` tells whether to go on.

        The token that ends an answer counts, but is no part of its text or its tokens.

        Raises:
            EngineRefusedError: no token can be sampled.
        """
        if not self._most:
            self.done = "length"
            self._first_s = self._clock()
            return -1, self._last_row()
        token = self._sampler.sample(row)
        if not self.sampled:
            self._first_s = self._clock()
        self.sampled += 1
        if self._proposer is not None:
            self._proposer.push(token)
        if self._pieces.is_end(token):
            self.done = "stop"
            return token, self._last_row(self._text.finish())
        begin = self._text.decoded
        framing = self._pieces.is_framing(token)
        text = self._text.feed(self._pieces.piece(token), framing=framing)
        visible = not self._text.stopped or self._text.decoded > begin
        if self._top is not None and visible:
            entry = self._describe(row, token, self._top)
            self._logprobs.append((self._text.decoded, entry))
        if self._text.stopped:
            self.done = "stop"
        elif self._sampler.finished:
            self.done = "stop"
            text += self._text.finish()
        elif self.sampled >= self._most:
            self.done = "length"
            text += self._text.finish()
        if self.done:
            return token, self._last_row(text, (token,))
        return token, Row(id=self.id, text=text, tokens=(token,), logprobs=self._ready_logprobs())

    def propose(self, ratio: float) -> tuple[int, ...]:
        """Tokens to compute ahead; at most as many as may still be said before the last."""
        if self._proposer is None or not self.sampled:
            return ()
        found = self._proposer.propose(self._sampler.forced(), ratio)
        return found[: max(self._most - self.sampled - 1, 0)]

    def wants(self, ratio: float, most: int) -> int:
        """Tokens to ask a draft model for; see `Proposer.wants`."""
        if self._proposer is None or not self.sampled:
            return 0
        return max(min(self._proposer.wants(ratio), most, self._most - self.sampled - 1), 0)

    def least_chance(self, ratio: float) -> float:
        """How likely a draft must be right as a whole to be worth another token."""
        return self._proposer.least_chance(ratio) if self._proposer is not None else 1.0

    def take_draft(self) -> None:
        """What is computed ahead next was drafted."""
        assert self._proposer is not None
        self._proposer.take_draft()

    def settle(self, *, proposed: int, right: int) -> bool:
        """Note how many of the tokens computed ahead were said; returns whether drafted."""
        return self._proposer is not None and self._proposer.settle(proposed=proposed, right=right)

    def end(self, reason: DoneReason, *, last: Row | None = None) -> Row:
        """The last row of a request that ends from outside; ``last`` is its row of this step."""
        self.done = reason
        step = last or Row(id=self.id)
        row = self._last_row(step.text + self._text.finish(), step.tokens)
        return replace(row, logprobs=(*step.logprobs, *row.logprobs))

    def close(self) -> None:
        """Free the sampler."""
        self._sampler.close()

    def _last_row(self, text: str = "", tokens: tuple[int, ...] = ()) -> Row:
        now = self._clock()
        if not self.sampled:
            self._first_s = now
        return Row(
            id=self.id,
            text=text,
            tokens=tokens,
            logprobs=self._ready_logprobs(),
            done=self.done,
            prompt_tokens=len(self.prompt),
            cached_tokens=self.cached_tokens,
            completion_tokens=self.sampled,
            prompt_s=self._first_s - self._admitted_s,
            eval_s=now - self._first_s,
            prompt_ids=only_tokens(self.prompt),
            relaxed=self._relaxed,
            proposed=self._proposer.proposed if self._proposer else 0,
            accepted=self._proposer.accepted if self._proposer else 0,
            drafted=self._proposer.drafted if self._proposer else 0,
            confirmed=self._proposer.confirmed if self._proposer else 0,
        )

    def _ready_logprobs(self) -> tuple[Any, ...]:
        """The entries of tokens whose text is out; those inside a stop text never are."""
        ready = []
        while self._logprobs and (self._logprobs[0][0] <= self._text.released):
            ready.append(self._logprobs.popleft()[1])
        return tuple(ready)

    def _describe(self, row: npt.NDArray[np.float32], token: int, top: int) -> list[Any]:
        logprob, best = log_probabilities(row, token, top)
        alternatives = [[*self._name(other), value] for other, value in best]
        return [*self._name(token), logprob, alternatives]

    def _name(self, token: int) -> tuple[str, str]:
        raw = self._pieces.whole_piece(token)
        return raw.decode("utf-8", "replace"), raw.hex()
