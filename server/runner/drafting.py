"""A small model that proposes what comes next: its cache, kept where the large one's is.

The draft model has the same vocabulary and a context of its own with the same sequences. What
batching does to the large model's cache is done to this one too, so a beginning that is shared, cut
or moved there is here as well. What is missing here is computed when a request that decodes is
drafted for, a few tokens at a time, so that nobody waits long for it.

Its proposals are its likeliest tokens. They are checked like all others, by sampling from the large
model's rows (`server.runner.proposing`), so they change what a step costs, never what is said.
Whatever goes wrong here costs proposals and nothing else.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from server.runner.proposing import Odds
from server.runner.shape import Shape
from server.runner.work import Drop, Effect, Share, Slide

OK, NO_ROOM, ABORTED = 0, 1, 2
"""Answers of decode. Source: llama.h."""

PRIOR = 0.7
"""How often a draft is right as long as nothing is known. Why: high enough for a try."""

CATCH_UP_TOKENS = 64
"""What is missing is computed so many tokens at a time at least; see `server.runner.pace`."""

_WEIGHT = 0.2
"""Of the newest step, in the moving averages."""

Row = npt.NDArray[np.float32]


class DraftBatch(Protocol):
    """What of a batch is needed here; see `server.runner.batch.Batch`."""

    def clear(self) -> None:
        """Begin a new batch."""

    def add(self, tokens: Sequence[int], *, position: int, sequence: int, output: int) -> None:
        """Append consecutive tokens of one sequence; the last ``output`` get logits."""


class DraftEngine(Protocol):
    """What of the engine is needed here; see `server.runner.library.Engine`."""

    prefill_rate: float

    @property
    def batch(self) -> DraftBatch:
        """What `decode` computes."""

    @property
    def shape(self) -> Shape:
        """What it can hold and do."""

    def decode(self) -> int:
        """Compute the batch."""

    def logits(self, output: int) -> Row:
        """The logits of the ``output``-th asked-for token."""

    def remove(self, sequence: int, start: int) -> bool:
        """Forget positions."""

    def share(self, source: int, target: int, end: int) -> None:
        """Let ``target`` have the first ``end`` positions of ``source``."""

    def slide(self, sequence: int, start: int, end: int) -> None:
        """Forget positions and close the gap."""

    def last_position(self, sequence: int) -> int:
        """Highest position of a sequence; -1 when it is empty."""

    def forget(self) -> None:
        """Empty the cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A request to be drafted for.

    Attributes:
        sequence: where its tokens live.
        tokens: all of its text, the token that was said last included.
        most: tokens to propose at most.
        least_chance: go on only while all so far are right with at least this probability.
    """

    sequence: int
    tokens: Sequence[int]
    most: int
    least_chance: float = 0.0


@dataclass(slots=True)
class _Known:
    """What the cache holds of one sequence: the first ``sure`` tokens, then what was drafted."""

    tokens: list[int]
    sure: int = 0

    def cut(self, length: int) -> None:
        """Forget all from ``length`` on."""
        del self.tokens[length:]
        self.sure = min(self.sure, length)


@dataclass(slots=True)
class _Draft:
    """A proposal that is being made."""

    wanted: Wanted
    feed: list[int]
    tokens: list[int]
    chance: float = 1.0


class Drafter:
    """Proposes for all requests of one runner.

    Attributes:
        step_s: how long the draft model takes for one token of each request; 0 until known.
        odds: how often its proposals have been right, over all requests.
    """

    def __init__(
        self,
        engine: DraftEngine,
        *,
        vocabulary_size: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """``vocabulary_size`` is the large model's; what only one of both has ends a draft."""
        self.step_s = 0.0
        self.odds = Odds(PRIOR)
        self._engine = engine
        self._size = min(vocabulary_size, engine.shape.vocabulary_size)
        self._clock = clock
        self._known: dict[int, _Known] = {}
        self._broken = False

    def new_odds(self) -> Odds:
        """How often a draft is right for a request that begins now."""
        return Odds(self.odds.right)

    def catch_up_tokens(self, step_s: float) -> int:
        """Tokens that are missing and may be computed in one step, if it is to take ``step_s``."""
        rows = max(CATCH_UP_TOKENS, int(step_s * self._engine.prefill_rate))
        return min(rows, self._engine.shape.batch_tokens)

    def expect(self, wanted: Sequence[Wanted], tokens: int) -> float:
        """Seconds that proposing will take, if ``tokens`` that are missing may be computed."""
        behind = sum(len(one.tokens) - len(self._of(one.sequence).tokens) for one in wanted)
        most = max((one.most for one in wanted), default=0)
        return min(behind, tokens) / self._engine.prefill_rate + most * self.step_s

    def obey(self, effect: Effect) -> None:
        """Do to the draft model's cache what is done to the large model's."""
        match effect:
            case Drop(sequence, start):
                self._cut(sequence, start)
            case Share(source, target, end):
                self._share(source, target, end)
            case Slide(sequence, start, end):
                known = self._of(sequence)
                if self._engine.shape.can_shift and known.sure >= end:
                    self._engine.slide(sequence, start, end)
                    del known.tokens[start:end]
                    known.sure -= end - start
                else:
                    self._cut(sequence, start)
            case _:
                pass  # states outside the cache are the large model's; here they are computed

    def propose(self, wanted: Sequence[Wanted], catch_up: int) -> Mapping[int, tuple[int, ...]]:
        """Likely next tokens, by sequence; of those only whose texts the cache holds whole.

        Args:
            wanted: whom to propose for.
            catch_up: tokens that are missing and may be computed now.
        """
        if self._broken:
            return {}
        drafts = going = self._begin(wanted, catch_up)
        while going and self._step(going):
            going = [draft for draft in going if self._goes_on(draft)]
        return {draft.wanted.sequence: tuple(draft.tokens) for draft in drafts if draft.tokens}

    def settle(self, *, right: int, wrong: int) -> None:
        """Note what became of a proposal."""
        self.odds.note(right=right, wrong=wrong)

    def _begin(self, wanted: Sequence[Wanted], catch_up: int) -> list[_Draft]:
        """Whom the first step computes tokens for: those that lack the least come first."""
        missing = []
        for one in wanted:
            known = self._agree(one)
            rest = list(one.tokens[len(known.tokens) :])
            if all(0 <= token < self._size for token in rest):
                missing.append(_Draft(wanted=one, feed=rest, tokens=[]))
        missing.sort(key=lambda draft: (len(draft.feed), draft.wanted.sequence))
        room, chosen = catch_up, []
        for draft in missing[: self._engine.shape.output_rows]:
            draft.feed = draft.feed[:room]
            room -= len(draft.feed)
            if draft.feed:
                chosen.append(draft)
        return chosen

    def _agree(self, one: Wanted) -> _Known:
        """Keep of a sequence what its text confirms, but not its last token: for its logits."""
        known = self._of(one.sequence)
        end, most = known.sure, min(len(known.tokens), len(one.tokens) - 1)
        while end < most and known.tokens[end] == one.tokens[end]:
            end += 1
        self._cut(one.sequence, min(end, most))
        known.sure = len(known.tokens)
        return known

    def _step(self, drafts: Sequence[_Draft]) -> bool:
        """Compute a batch, and choose a token for whoever gets one from it; False if it failed."""
        engine = self._engine
        engine.batch.clear()
        outputs = []
        for draft in drafts:
            sequence = draft.wanted.sequence
            begin = len(self._of(sequence).tokens)
            whole = bool(draft.tokens) or begin + len(draft.feed) == len(draft.wanted.tokens)
            engine.batch.add(draft.feed, position=begin, sequence=sequence, output=int(whole))
            outputs += [draft] if whole else []
        begin_s = self._clock()
        answer = engine.decode()
        if answer != OK:
            self._give_up(drafts, answer)
            return False
        if all(len(draft.feed) == 1 for draft in drafts):
            self._measure(self._clock() - begin_s)
        for draft in drafts:
            known = self._of(draft.wanted.sequence)
            known.tokens += draft.feed
            if not draft.tokens:
                known.sure = len(known.tokens)
            draft.feed = []
        for index, draft in enumerate(outputs):
            self._choose(draft, engine.logits(index)[: self._size])
        return True

    def _choose(self, draft: _Draft, row: Row) -> None:
        token = int(row.argmax())
        best = float(row[token])
        chance = draft.chance / float(np.exp(row - best).sum()) if np.isfinite(best) else 0.0
        if chance > draft.wanted.least_chance:
            draft.chance = chance
            draft.tokens.append(token)
            draft.feed = [token]

    def _goes_on(self, draft: _Draft) -> bool:
        full = len(draft.wanted.tokens) + len(draft.tokens) >= self._engine.shape.context_tokens
        return bool(draft.feed) and len(draft.tokens) < draft.wanted.most and not full

    def _measure(self, seconds: float) -> None:
        self.step_s += (_WEIGHT if self.step_s else 1.0) * (seconds - self.step_s)

    def _give_up(self, drafts: Sequence[_Draft], answer: int) -> None:
        """Believe the cache again after a batch that was not computed."""
        if answer == ABORTED:
            for draft in drafts:
                known = self._of(draft.wanted.sequence)
                known.tokens += draft.feed
                known.cut(self._engine.last_position(draft.wanted.sequence) + 1)
            return
        self._engine.forget()
        self._known.clear()
        if answer < 0:
            self._broken = True
            sys.stderr.write(f"the draft model failed ({answer}); going on without\n")

    def _share(self, source: int, target: int, end: int) -> None:
        self._cut(target, 0)
        known = self._of(source)
        count = min(end, len(known.tokens))
        if count:
            self._engine.share(source, target, count)
            self._known[target] = _Known(known.tokens[:count], min(known.sure, count))

    def _cut(self, sequence: int, start: int) -> None:
        known = self._of(sequence)
        if len(known.tokens) > start:
            self._engine.remove(sequence, start)
            known.cut(start)

    def _of(self, sequence: int) -> _Known:
        return self._known.setdefault(sequence, _Known([]))
