"""Draft models: whether one goes with a model, and what it adds to the model's memory. Pure.

A draft model proposes tokens by their numbers, so both vocabularies must mean the same by each.
Tokens that are not taken are taken back, which neither a running state nor a sliding window allows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from hwprobe.errors import DraftError
from hwprobe.gguf import GgufArray, GgufHeader, ModelProfile, model_profile

MOST_EXTRA_TOKENS: Final = 128
"""Tokens that only one of both may have, at its end. Why: sizes are rounded up for fast kernels.

Source: SPEC_VOCAB_MAX_SIZE_DIFFERENCE in the engine's common/speculative.cpp.
"""

_TOKENS = "tokenizer.ggml.tokens"
_KIND = "tokenizer.ggml.model"


def check_draft(draft: GgufHeader, model: GgufHeader) -> None:
    """Refuse a draft model that is none, or one for another model.

    Raises:
        DraftError: it is; the message names what differs.
        GgufError: one of both is no language model.
    """
    _check_divisible(model_profile(model), "the model")
    _check_divisible(model_profile(draft), "the draft model")
    wanted, found = model.string(_KIND, "none"), draft.string(_KIND, "none")
    if wanted != found:
        raise DraftError(f"draft: expected a vocabulary of kind {wanted}, found {found}")
    sizes = model.array_length(_TOKENS), draft.array_length(_TOKENS)
    if not all(sizes) or abs(sizes[0] - sizes[1]) > MOST_EXTRA_TOKENS:
        raise DraftError(f"draft: expected a vocabulary of {sizes[0]} tokens, found {sizes[1]}")
    pairs = zip(_tokens(model), _tokens(draft), strict=False)
    for number, (here, there) in enumerate(pairs):
        if here != there:
            raise DraftError(
                f"draft: expected the model's vocabulary, found another: token {number} is "
                f"{_shown(there)}, not {_shown(here)}"
            )


def drafted(profile: ModelProfile, draft: GgufHeader) -> ModelProfile:
    """The profile with a draft model beside it."""
    return replace(profile, draft=model_profile(draft))


def _check_divisible(profile: ModelProfile, whose: str) -> None:
    if profile.pools:
        raise DraftError(f"draft: {whose} generates no text")
    if profile.recurrent_bytes:
        raise DraftError(f"draft: {whose} keeps a running state, and cannot take tokens back")
    if profile.sliding_window:
        raise DraftError(f"draft: {whose} has a sliding window, and cannot take tokens back")


def _tokens(header: GgufHeader) -> Iterator[bytes]:
    value = header.metadata.get(_TOKENS)
    if isinstance(value, GgufArray | tuple):  # a short array is held as texts
        for token in value:
            yield token if isinstance(token, bytes) else str(token).encode()


def _shown(token: bytes) -> str:
    return f"{token.decode(errors='replace')!r:.40}"
