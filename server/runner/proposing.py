"""Tokens that probably come next, to be computed in the step of the one before them. Pure.

A step computes the last token of a request and, behind it, tokens that are only proposed. Each row
is then sampled as ever; as long as the sampled token is the proposed one, the next row counts, and
the rest is taken back. So proposals change what a step costs, never what is said.

Three sources: the grammar's forced tokens, the continuation of the last place where the same
three tokens stood, and a draft model where there is one (`server.runner.drafting`). How many
tokens are worth their rows follows from how often the source was right and from what a row costs
beside a step, for a draft also from what it takes to make.
"""

from __future__ import annotations

from collections.abc import Iterable

from hwprobe.settings import PROPOSED_ROWS

MOST_PROPOSED = PROPOSED_ROWS
"""Of all requests together."""

KEY_TOKENS = 3
"""Tokens that must agree. Why: two agree by chance too often, four are found too seldom."""

LOOKUP_TOKENS = 16_384
"""The end of a prompt that is searched. Why: it is indexed in the decode thread, in 5 ms."""

PAUSE = 32
"""Steps after which a source that was not worth it is tried again, with one token."""

NEVER = 0.9
"""Where a row costs this much of what an accepted token saves, nothing is tried."""

_WEIGHT = 0.15
"""Of the newest row, in the average of how often a source is right."""


class Odds:
    """How often the proposals of one source are right.

    Attributes:
        right: a moving average, 0 to 1.
    """

    def __init__(self, prior: float) -> None:
        """``prior``: how often they are right as long as nothing is known."""
        self.right = prior
        self._skipped = 0

    def most(self, ratio: float) -> int:
        """How many tokens to propose, where ``ratio`` is what a row costs of what one saves.

        The n-th token counts only if all before it are right.
        """
        if ratio >= NEVER:
            return 0
        count, chance = 0, self.right
        while count < MOST_PROPOSED and chance > ratio:
            count += 1
            chance *= self.right
        if count:
            return count
        self._skipped += 1
        if self._skipped < PAUSE:
            return 0
        self._skipped = 0
        return 1

    def note(self, *, right: int, wrong: int) -> None:
        """Take rows into the average."""
        for value in (1.0,) * right + (0.0,) * wrong:
            self.right += _WEIGHT * (value - self.right)


class Lookup:
    """Where the last tokens of a text stood before."""

    def __init__(self, tokens: Iterable[int]) -> None:
        self._tokens: list[int] = []
        self._behind: dict[tuple[int, ...], int] = {}
        self._found: int | None = None
        for token in tokens:
            self.push(token)

    def push(self, token: int) -> None:
        """The text goes on."""
        self._tokens.append(token)
        key = tuple(self._tokens[-KEY_TOKENS:])
        self._found = self._behind.get(key)
        self._behind[key] = len(self._tokens)

    def propose(self, most: int) -> tuple[int, ...]:
        """What came behind these tokens the last time."""
        if self._found is None:
            return ()
        return tuple(self._tokens[self._found : self._found + most])


class Proposer:
    """Proposes for one request.

    Attributes:
        proposed: tokens proposed and computed so far.
        accepted: of these, those that were right.
        drafted: of those proposed, the draft model's.
        confirmed: of these, those that were right.
    """

    def __init__(
        self, prompt: tuple[int, ...], *, drafts: Odds | None = None, drafted_tokens: int = -1
    ) -> None:
        """Begin behind a prompt.

        Args:
            prompt: token ids.
            drafts: how often a draft model is right; ``None`` without one.
            drafted_tokens: how many tokens it is asked for, always; negative for as many as pay.
        """
        self.proposed = 0
        self.accepted = 0
        self.drafted = 0
        self.confirmed = 0
        self._prompt = prompt[-LOOKUP_TOKENS:]
        self._lookup: Lookup | None = None
        self._forced = Odds(1.0)
        self._looked_up = Odds(0.5)
        self._drafts = drafts
        self._drafted_tokens = drafted_tokens
        self._draft_pays = drafted_tokens > 0
        self._source = self._forced

    def push(self, token: int) -> None:
        """The answer goes on."""
        if self._lookup is None:
            self._lookup = Lookup(self._prompt)
        self._lookup.push(token)

    def propose(self, forced: tuple[int, ...], ratio: float) -> tuple[int, ...]:
        """Tokens for the next step; see `Odds.most` for ``ratio``."""
        if forced and (most := self._forced.most(ratio)):
            self._source = self._forced
            return forced[:most]
        if self._lookup is None or forced or self._is_drafted:
            return ()
        self._source = self._looked_up
        if not (found := self._lookup.propose(MOST_PROPOSED)):
            return ()
        return found[: self._looked_up.most(ratio)]

    def wants(self, ratio: float) -> int:
        """Tokens to ask a draft model for, where nothing else is proposed.

        ``ratio`` is what a drafted row costs, the drafting included, of what one saves.
        """
        if self._drafts is None or not self._drafted_tokens:
            return 0
        if self._drafted_tokens > 0:
            return self._drafted_tokens
        most = self._drafts.most(ratio)
        self._draft_pays = most > 0
        return most

    def least_chance(self, ratio: float) -> float:
        """How likely a draft must be right as a whole to be worth another token."""
        return 0.0 if self._drafted_tokens > 0 else ratio

    def take_draft(self) -> None:
        """What is computed next was drafted."""
        assert self._drafts is not None
        self._source = self._drafts

    def settle(self, *, proposed: int, right: int) -> bool:
        """Note what became of ``proposed`` tokens that were computed; returns whether drafted."""
        self.proposed += proposed
        self.accepted += right
        self._source.note(right=right, wrong=int(right < proposed))
        if self._source is not self._drafts:
            return False
        self.drafted += proposed
        self.confirmed += right
        return True

    @property
    def _is_drafted(self) -> bool:
        """Whether a draft is the better source, and pays."""
        if self._drafts is None or not self._draft_pays:
            return False
        return self._drafted_tokens > 0 or self._drafts.right > self._looked_up.right
