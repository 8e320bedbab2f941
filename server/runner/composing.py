"""What the next step computes, and for whom. Pure.

Rules:
 * decoding requests are in every step, or in every second one: where attention works in tiles of
   rows, a tile that mixes requests is computed against the cells of them all, so a step that would
   fill a tile holds prefill only, and takes turns with the decoding requests;
 * who prefills next is decided by `server.runner.fairness`;
 * tokens may be proposed behind the one of a decoding request; they count once confirmed;
 * what is planned for a request is text, or rows of one picture; where these see each other, a
   picture is computed whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType

from server.runner.fairness import AGING_TOKENS, DeficitRing
from server.runner.pictures import is_place, stretch
from server.runner.running import Running
from server.runner.work import Chunk, Limits

NOTHING: Mapping[int, tuple[int, ...]] = MappingProxyType({})


class Composer:
    """Steps, one after another."""

    def __init__(self, limits: Limits) -> None:
        """Begin with nobody's turn."""
        self._limits = limits
        self._ring = DeficitRing()
        self._decoded = False  # by the last of the steps that take turns

    def prefills_alone(self, running: Iterable[Running], room: int, budget_tokens: int) -> bool:
        """Whether `compose` would plan a step without decoding requests although there are some."""
        active = [run for run in running if run.active]
        return self._decoded and self._takes_turns(active, room, budget_tokens)

    def compose(
        self,
        running: Iterable[Running],
        room: int,
        budget_tokens: int,
        proposals: Mapping[int, tuple[int, ...]] = NOTHING,
        *,
        together: bool = False,
    ) -> tuple[Chunk, ...]:
        """The next step: one token of each decoding request, then at most a budget of prefill.

        Behind the token of a decoding request come tokens proposed for it, where there is room.
        Where they take turns, it is one of both.

        Args:
            running: who has a sequence.
            room: cells that are free.
            budget_tokens: of prefill.
            proposals: tokens by request.
            together: nobody takes turns, whatever it costs.
        """
        active = {run.work.id: run for run in running if run.active}
        decoding = [run for run in active.values() if run.pending == 1]
        prefilling = [run for run in active.values() if run.pending > 1]
        if not together and self._takes_turns(active.values(), room, budget_tokens):
            self._decoded = not self._decoded
            if self._decoded:
                prefilling = []
            else:
                room -= len(decoding)
                decoding = []
        # Only more slots than the batch holds make it matter who comes first.
        decoding.sort(key=lambda run: (-run.waited, run.order))
        prefilling.sort(key=lambda run: (run.rest - AGING_TOKENS * run.waited, run.order))
        chunks: list[Chunk] = []
        room = min(self._limits.batch_tokens, room)
        for run in decoding:
            room -= self._take(run, min(1, room), chunks)
        room -= self._propose(active, proposals, room, chunks)
        wants: Counter[str] = Counter()
        for run in prefilling:
            wants[run.work.tenant] += run.reach
        dealt = self._ring.deal(wants, min(room, budget_tokens))
        for run in prefilling:
            count = min(run.reach, dealt.get(run.work.tenant, 0))
            dealt[run.work.tenant] = dealt.get(run.work.tenant, 0) - count
            self._take(run, count, chunks)
        return tuple(chunks)

    def _takes_turns(self, active: Iterable[Running], room: int, budget_tokens: int) -> bool:
        tile, decoding, prefill = self._limits.tile_rows, 0, 0
        for run in active:
            if run.pending == 1:
                decoding += 1
            else:
                prefill += run.reach
        prefill = min(prefill, budget_tokens, self._limits.batch_tokens, room - decoding)
        return 0 < tile <= prefill + decoding and decoding > 0 and prefill > 0

    def _take(self, run: Running, count: int, chunks: list[Chunk]) -> int:
        if count < 1:
            run.waited += 1
            return 0
        run.waited = 0
        begin = run.evaluated
        count = self._of_one_kind(run.held.tokens, begin, count)
        chunks.append(
            Chunk(
                id=run.work.id,
                sequence=run.held.sequence,
                start=begin,
                tokens=tuple(run.held.tokens[begin : begin + count]),
                output=count == run.pending,
            )
        )
        return count

    def _propose(
        self,
        active: Mapping[int, Running],
        proposals: Mapping[int, tuple[int, ...]],
        room: int,
        chunks: list[Chunk],
    ) -> int:
        """Put proposed tokens behind the chunks so far; returns how many."""
        room = min(room, self._limits.proposed_tokens)
        used = 0
        for index, chunk in enumerate(chunks):
            if is_place(chunk.tokens[0]):
                continue
            run = active[chunk.id]
            # The context must not be full before the last of them is sampled.
            final = self._limits.final(run.work)
            most = min(room - used, final - len(run.held.tokens) - 1)
            if tokens := proposals.get(chunk.id, ())[: max(most, 0)]:
                together = (*chunk.tokens, *tokens)
                chunks[index] = replace(chunk, tokens=together, proposed=len(tokens))
                used += len(tokens)
        return used

    def _of_one_kind(self, tokens: list[int], begin: int, count: int) -> int:
        """How many of the next places are planned, if so many may be."""
        at_once = self._limits.whole_pictures and not self._limits.parted_pictures
        if at_once and is_place(tokens[begin]):
            return stretch(tokens, begin, len(tokens)) - begin
        return stretch(tokens, begin, begin + count) - begin
