"""Who holds tokens in the cache: requests that run, and what they leave behind. Values."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from server.runner.saved import Saved
from server.runner.work import Work


@dataclass(slots=True, eq=False)
class Held:
    """Tokens in a sequence of the cache.

    Attributes:
        tokens: what the sequence holds or is to hold.
        scope: who may share them.
        checkpoint: it is not to be changed, only shared.
        exact: how many at its start are as if computed in this order; all but after a slide.
        used: when it was last in use, counted in admissions.
    """

    sequence: int
    tokens: list[int]
    scope: str
    exact: int = sys.maxsize
    used: int = 0
    checkpoint: bool = False


@dataclass(slots=True, eq=False)
class Running:
    """A request that has a sequence.

    Attributes:
        evaluated: tokens the cache holds.
        cached: prompt tokens that did not have to be computed.
        waited: steps since it was last served.
        parked: it gave its cells up and waits for another request to end.
        robbed: it was parked; it may find a beginning to share when it goes on.
        marks: positions at which to leave a checkpoint.
        leader: who computes the beginning of this one's prompt.
        fork_at: how long that beginning is; 0 without a leader.
    """

    work: Work
    held: Held
    evaluated: int
    order: int
    cached: int = 0
    waited: int = 0
    parked: bool = False
    robbed: bool = False
    leader: Running | None = None
    fork_at: int = 0
    followers: list[Running] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)

    @property
    def pending(self) -> int:
        """Tokens the cache does not hold yet."""
        return len(self.held.tokens) - self.evaluated

    @property
    def active(self) -> bool:
        """Whether a step may compute it."""
        return not self.parked and self.leader is None

    @property
    def reach(self) -> int:
        """Tokens the next step may compute: it stops where others part from it, and at marks."""
        stops = [run.fork_at - self.evaluated for run in self.followers]
        stops += [mark - self.evaluated for mark in self.marks]
        return min([self.pending, *(stop for stop in stops if stop > 0)])

    @property
    def rest(self) -> int:
        """Tokens until the first answer, of this request or of one that follows it."""
        ends = [self.held.tokens, *(run.held.tokens for run in self.followers)]
        return min(map(len, ends)) - self.evaluated

    @property
    def answered(self) -> bool:
        """Whether a token has been sampled."""
        return len(self.held.tokens) > len(self.work.prompt)

    def follow(self, leader: Running, fork_at: int) -> None:
        """Wait for the beginning that another request computes."""
        self.leader, self.fork_at = leader, fork_at
        leader.followers.append(self)

    def unfollow(self) -> None:
        """Follow nobody any more."""
        if self.leader is not None:
            self.leader.followers.remove(self)
        self.leader, self.fork_at = None, 0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a request starts: behind ``length`` tokens of a source, or following a leader.

    ``branch`` is how long the longest beginning is that any sequence has, usable or not.
    ``saved`` is a state outside the cache to begin with, instead of a source.
    """

    source: Held | None
    length: int
    leader: Running | None
    fork_at: int
    branch: int
    saved: Saved | None = None
