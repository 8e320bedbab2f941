"""What batching is asked, and what it answers with: requests, cache effects, chunks. Values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the engine holds.

    Attributes:
        slots: most requests at once.
        cells: KV cells all sequences share; at least ``slots * context_tokens`` uses every slot.
        context_tokens: most tokens of one request.
        sequences: sequence ids; more than ``slots`` keeps more idle prompts.
        batch_tokens: most tokens per step.
        proposed_tokens: most proposed tokens per step.
        divisible: the end of a sequence can be dropped and its beginning shared.
        can_slide: positions can be moved.
        checkpoints: a sequence cannot go on at every position of another: its prompt's end, and
            where prompts part, are kept in sequences of their own.
        whole_pictures: nothing is cut or shared inside a picture, and it is computed in one step.
        parted_pictures: it may be computed in several all the same.
        tile_rows: from so many rows on, attention works in tiles of them, see
            `server.runner.pace.TILE_ROWS`; 0 if it does not.
    """

    slots: int
    cells: int
    context_tokens: int
    sequences: int
    batch_tokens: int
    proposed_tokens: int = 0
    divisible: bool = True
    can_slide: bool = True
    checkpoints: bool = False
    whole_pictures: bool = False
    parted_pictures: bool = False
    tile_rows: int = 0

    def final(self, work: Work) -> int:
        """The most positions a request will hold."""
        most = min(self.context_tokens, self.cells)
        return min(most, len(work.prompt) + max(work.most_tokens, 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A request as batching sees it.

    Attributes:
        prompt: 1 to ``context_tokens - 1`` token ids, and places of pictures, see
            `server.runner.pictures`.
        most_tokens: longest answer.
        keep: tokens at the start that stay when the context slides.
        slide: on a full context drop old tokens instead of ending.
        tenant: who shares the machine with others; see `server.runner.fairness`.
        scope: only requests of one scope share what they have computed.
    """

    id: int
    prompt: tuple[int, ...]
    most_tokens: int
    keep: int = 0
    slide: bool = False
    tenant: str = ""
    scope: str = ""


@dataclass(frozen=True, slots=True)
class Drop:
    """Forget all positions of ``sequence`` from ``start`` on."""

    sequence: int
    start: int = 0


@dataclass(frozen=True, slots=True)
class Share:
    """Give the empty ``target`` the first ``end`` positions of ``source``."""

    source: int
    target: int
    end: int


@dataclass(frozen=True, slots=True)
class Slide:
    """Forget positions ``start`` to ``end`` of ``sequence`` and move the rest down."""

    sequence: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Save:
    """Keep what ``sequence`` holds as a state outside the cache.

    ``size_bytes`` is what was accounted for it. If effects before this one have changed that,
    the state is not kept.
    """

    sequence: int
    state: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Restore:
    """Fill the empty ``sequence`` of a request from a state."""

    state: int
    sequence: int
    id: int


@dataclass(frozen=True, slots=True)
class Discard:
    """Give up a state that is kept outside the cache."""

    state: int


Effect = Drop | Share | Slide | Save | Restore | Discard


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Consecutive tokens of one request for the next step: text, or rows of one picture.

    Attributes:
        output: the last token's logits are wanted.
        proposed: how many tokens at the end are only proposed; with them, the logits of each and
            of the one before them are wanted.
    """

    id: int
    sequence: int
    start: int
    tokens: tuple[int, ...]
    output: bool
    proposed: int = 0

    @property
    def outputs(self) -> int:
        """Tokens whose logits are wanted, at the end."""
        return self.output + self.proposed
