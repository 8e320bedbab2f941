"""One request's sampler: options, seed, grammar, and the penalties' memory."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from server.errors import EngineRefusedError
from server.runner import sampling
from server.runner.chain import Candidates, Chain, Dry
from server.runner.gate import Gate
from server.runner.pictures import only_tokens
from server.wishes import SamplingOptions

Row = npt.NDArray[np.float32]

GRAMMAR_STEP_S = 1.0
"""CPU time. Why: a usual grammar takes milliseconds, and all other requests wait meanwhile."""


MOST_TRIES = 8
"""Choices at one place. Why: outside a grammar, single tokens are refused, not all but a few."""


class Sampler:
    """Chooses one token after another for one request."""

    def __init__(
        self,
        options: SamplingOptions,
        *,
        candidates: Candidates,
        vocabulary_size: int,
        context_tokens: int,
        prompt: Sequence[int],
        gate: Gate | None = None,
        dry: Dry | None = None,
    ) -> None:
        """Make the chain and show it the end of the prompt.

        Args:
            options: how tokens are chosen; `sampling.check_options` has passed them.
            candidates: working memory, shared by all samplers of the decode thread.
            vocabulary_size: tokens there are.
            context_tokens: most tokens a penalty may look back.
            prompt: token ids before the answer.
            gate: what may be said; closed with the sampler.
            dry: needed where the options turn DRY on.
        """
        self._options = options
        self._size = vocabulary_size
        self._candidates = candidates
        self._gate = gate
        self._biased = tuple(token for token, _bias in options.logit_bias)
        last = sampling.last_tokens(options, context_tokens=context_tokens)
        self._recent: deque[int] = deque(maxlen=last if sampling.is_penalizing(options) else 0)
        self._chain = Chain(
            sampling.chain(
                options,
                seed=sampling.draw_seed(options.seed),
                vocabulary_size=vocabulary_size,
                context_tokens=context_tokens,
            ),
            bias=sampling.merged_bias(options),
            dry=dry,
        )
        look_back = max(
            self._recent.maxlen or 0, sampling.dry_tokens(options, context_tokens=context_tokens)
        )
        for token in only_tokens(prompt)[-look_back:] if look_back else ():
            self._remember(token)

    def sample(self, row: Row) -> int:
        """The next token, given its logits: float32[n_vocab].

        Raises:
            EngineRefusedError: the model gave no usable logits, or the grammar allows nothing.
        """
        token = self._choose(row)
        if self._gate is not None:
            begin_s = time.thread_time()
            token = self._guided(row, token, self._gate)
            if time.thread_time() - begin_s > GRAMMAR_STEP_S and not self._gate.yields():
                raise EngineRefusedError("the grammar takes too long for a token")
        self._remember(token)
        return token

    @property
    def finished(self) -> bool:
        """Whether the grammar is complete: nothing may follow."""
        return self._gate is not None and self._gate.done

    def forced(self) -> tuple[int, ...]:
        """The tokens the grammar leaves no choice about; a sampler may still cut them otherwise."""
        return () if self._gate is None else self._gate.forced()

    def close(self) -> None:
        """Free what the engine holds for this request."""
        self._chain.close()
        if self._gate is not None:
            self._gate.close()

    def _choose(self, row: Row) -> int:
        if not np.isfinite(row.max()):
            raise EngineRefusedError("the model computed no usable probabilities")
        changed = {*self._recent, *self._biased}
        greedy = sampling.is_greedy(self._options) and not self._options.dry_multiplier
        if not changed and greedy:
            return int(row.argmax())
        needed = sampling.candidates_needed(self._options, len(changed), vocabulary_size=self._size)
        if needed is None:
            self._candidates.fill(row)
        else:
            ids = sampling.likeliest(row, needed)
            if changed:
                ids = np.union1d(ids, np.fromiter(changed, np.int64, len(changed)))
            self._candidates.fill(row[ids], ids)
        return self._checked(self._chain.choose(self._candidates))

    def _guided(self, row: Row, token: int, gate: Gate) -> int:
        """The chosen token, or one that the gate allows; the gate has gone on behind it."""
        try:
            if not gate.allows(token):
                token = self._choose_restricted(row, token, gate)
            gate.accept(token)
        except EngineRefusedError:
            if not gate.yields():
                raise
        return token

    def _choose_restricted(self, row: Row, refused: int, gate: Gate) -> int:
        tried = {refused}
        for _attempt in range(MOST_TRIES):
            ids = gate.allowed(tried)
            if len(ids):
                self._candidates.fill(row[ids], ids)
            if not len(ids) or not self._candidates.any_possible():
                break
            token = self._checked(self._chain.choose(self._candidates))
            if gate.allows(token):
                return token
            tried.add(token)
        raise EngineRefusedError("the grammar allows no token of this model here")

    def _checked(self, token: int) -> int:
        if not 0 <= token < self._size:
            raise EngineRefusedError("the sampler chose no token")
        return token

    def _remember(self, token: int) -> None:
        self._chain.accept(token)
        self._recent.append(token)
