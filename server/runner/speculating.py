"""What the next step computes ahead: every source is asked, the cheap ones first.

What a grammar forces and what stood in the text before costs nothing to know. A draft model is
asked for the others, all of them in one go, and only if that pays: its steps delay everybody who
decodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Protocol

from server.runner.drafting import Drafter, Wanted
from server.runner.generation import Generation
from server.runner.pace import SHARED_STEP_S, Pace
from server.runner.running import Running


class Door(Protocol):
    """Where cancels come in; see `server.runner.inbox.Inbox`."""

    def begin(self, requests: AbstractSet[int], expected_s: float) -> bool:
        """Announce a decode; False if a cancel or the end came in the meantime."""

    def end(self) -> None:
        """The decode is over."""


class Speculation:
    """Proposes for all requests of one runner."""

    def __init__(self, *, most: int, pace: Pace, door: Door, drafter: Drafter | None) -> None:
        """Begin.

        Args:
            most: tokens that may be proposed in one step, of all requests together.
            pace: how fast the model is.
            door: told of the draft model's decodes.
            drafter: the draft model; ``None`` without one.
        """
        self._most = most
        self._pace = pace
        self._door = door
        self._drafter = drafter if most else None

    def new_proposals(
        self,
        decoding: int,
        running: Mapping[int, Running],
        generations: Mapping[int, Generation],
        *,
        sees: Callable[[int], bool],
    ) -> dict[int, tuple[int, ...]]:
        """Tokens to put behind those of requests that decode, by request.

        Args:
            decoding: how many of them there are.
            running: all requests that run.
            generations: what has been said.
            sees: whether a request has pictures: a draft model is blind.
        """
        if not self._most:
            return {}
        ratio = self._pace.ratio(decoding)
        found: dict[int, tuple[int, ...]] = {}
        others: dict[int, Running] = {}
        for request, run in running.items():
            if run.pending == 1 and run.active and request in generations:
                if tokens := generations[request].propose(ratio):
                    found[request] = tokens
                elif not sees(request):
                    others[request] = run
        if self._drafter is not None and others:
            found |= self._drafted(self._drafter, decoding, others, generations)
        return found

    def settle(self, generation: Generation, *, proposed: int, right: int) -> None:
        """Note what became of a proposal."""
        if generation.settle(proposed=proposed, right=right) and self._drafter is not None:
            self._drafter.settle(right=right, wrong=int(right < proposed))

    def _drafted(
        self,
        drafter: Drafter,
        decoding: int,
        running: Mapping[int, Running],
        generations: Mapping[int, Generation],
    ) -> dict[int, tuple[int, ...]]:
        share = self._most // decoding
        ratio = self._pace.ratio(decoding, drafter.step_s / len(running)) if share else 1.0
        wants = {request: generations[request].wants(ratio, share) for request in running}
        wanted = {
            request: Wanted(
                sequence=run.held.sequence,
                tokens=run.held.tokens,
                most=wants[request],
                least_chance=generations[request].least_chance(ratio),
            )
            for request, run in running.items()
            if wants[request]
        }
        if not wanted:
            return {}
        drafts = self._propose(drafter, frozenset(wanted), tuple(wanted.values()))
        found = {
            request: drafts[one.sequence]
            for request, one in wanted.items()
            if one.sequence in drafts
        }
        for request in found:
            generations[request].take_draft()
        return found

    def _propose(
        self, drafter: Drafter, requests: AbstractSet[int], wanted: Sequence[Wanted]
    ) -> Mapping[int, tuple[int, ...]]:
        catch_up = drafter.catch_up_tokens(SHARED_STEP_S)
        if not self._door.begin(requests, drafter.expect(wanted, catch_up)):
            return {}
        try:
            return drafter.propose(wanted, catch_up)
        finally:
            self._door.end()
