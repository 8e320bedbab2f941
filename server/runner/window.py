"""What of a conversation fits the context, at the start and when it fills up. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from server.errors import EngineRefusedError

LONGEST_ANSWER_CONTEXTS = 10
"""An open-ended answer ends after this many contexts. Source: Ollama's llm/server.go."""

MIN_DISCARDABLE_TOKENS = 4
"""Kept tokens leave at least this many. Source: llama.cpp's server, n_keep <= n_ctx - 4."""


def kept_tokens(num_keep: int, *, context_tokens: int, prompt_tokens: int, bos: bool) -> int:
    """How many tokens at the start stay when others go; negative ``num_keep`` means the prompt."""
    wanted = prompt_tokens if num_keep < 0 else num_keep + bos
    return max(0, min(wanted, context_tokens - MIN_DISCARDABLE_TOKENS))


def fit_prompt(
    tokens: Sequence[int], *, context_tokens: int, keep: int, truncate: bool
) -> tuple[int, ...]:
    """The prompt, cut if need be to the first ``keep`` tokens and its end.

    A cut prompt leaves half of what is not kept free for the answer.

    Raises:
        EngineRefusedError: it is empty, or too long and may not be cut.
    """
    if not tokens:
        raise EngineRefusedError("the prompt is empty")
    if len(tokens) < context_tokens:
        return tuple(tokens)
    if not truncate:
        raise EngineRefusedError("the input length exceeds the context length")
    room = context_tokens - max((context_tokens - keep) // 2, 1)
    tail = room - keep
    return (*tokens[:keep], *tokens[len(tokens) - tail :])


def longest_answer(num_predict: int, *, context_tokens: int) -> int:
    """Most tokens an answer may have; negative means as long as the server allows."""
    most = LONGEST_ANSWER_CONTEXTS * context_tokens
    return most if num_predict < 0 else min(num_predict, most)


def slide_range(length: int, *, keep: int) -> tuple[int, int]:
    """Which positions go when a sequence of ``length`` tokens has filled its context."""
    return keep, keep + max((length - keep) // 2, 1)
