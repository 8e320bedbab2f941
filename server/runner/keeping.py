"""What is put on the shelf when a runner ends: the prompts that its cache and its memory hold."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from server.runner.batching import Batching
from server.runner.pictures import is_place
from server.runner.prefixes import common_prefix
from server.runner.shelf import Bytes, Shelf
from server.runner.states import States

LEAST_TOKENS = 64
"""Shorter prompts are not kept. Why: a file is opened, checked and read for one, which costs as
much as computing a few tokens."""


@dataclass(frozen=True, slots=True)
class Keepable:
    """A state that could be put on the shelf.

    Attributes:
        fill: writes it, and tells whether it could.
    """

    scope: str
    tokens: tuple[int, ...]
    size_bytes: int
    fill: Callable[[Bytes], bool]


def keepables(batching: Batching, states: States) -> Iterator[Keepable]:
    """What the idle sequences hold, then what is in memory; each the last used first."""
    for held in reversed(batching.idle):
        tokens = tuple(held.tokens)
        if len(tokens) <= held.exact:
            size = states.size(held.sequence)
            yield Keepable(held.scope, tokens, size, states.writer(held.sequence))
    for saved in reversed(batching.saved.all):
        if saved.size_bytes:
            yield Keepable(saved.scope, saved.tokens, saved.size_bytes, states.copier(saved.id))


def keep(
    shelf: Shelf,
    batching: Batching,
    states: States,
    *,
    until_s: float,
    clock: Callable[[], float] = time.monotonic,
    now_s: Callable[[], float] = time.time,
) -> int:
    """Put on the shelf what is not there, the last used first; returns how many files were written.

    A prompt that another one begins with is left out where that one can stand for it. After
    ``until_s`` no file is begun.
    """
    begin_s = now_s()
    written = 0
    known: list[tuple[str, tuple[int, ...]]] = []
    whole = batching.limits.checkpoints or not batching.limits.divisible
    for rank, one in enumerate(keepables(batching, states)):
        if clock() >= until_s:
            break
        if len(one.tokens) < LEAST_TOKENS or any(map(is_place, one.tokens)):
            continue
        if any(_stands_for(other, one, whole=whole) for other in known):
            continue
        known.append((one.scope, one.tokens))
        used_s = begin_s - rank  # so that their order survives
        if not shelf.touch(one.scope, one.tokens, used_s=used_s):
            written += shelf.write(one.scope, one.tokens, one.size_bytes, one.fill, used_s=used_s)
    return written


def _stands_for(known: tuple[str, tuple[int, ...]], one: Keepable, *, whole: bool) -> bool:
    scope, tokens = known
    if scope != one.scope or (whole and len(tokens) != len(one.tokens)):
        return False
    return common_prefix(tokens, one.tokens) == len(one.tokens)
