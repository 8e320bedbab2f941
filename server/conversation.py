"""Which messages the model gets to see. Pure, but for the measure it is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from server.chat import Message

PROMPT_TOO_LONG = (
    "the prompt is longer than the context length currently available to the model; "
    "shorten the prompt, adjust the context length in settings, "
    "or use a model with a longer context length"
)
"""Ollama's words, which clients look for."""

Measured = TypeVar("Measured")


def assemble(
    request: Sequence[Message], *, system: str, opening: Sequence[tuple[str, str]]
) -> tuple[Message, ...]:
    """The model's opening messages and then the request's.

    The model's system text goes in front unless the request begins with its own.
    """
    messages = [Message(role=role, content=content) for role, content in opening]
    messages.extend(request)
    if system and (not request or request[0].role != "system"):
        messages.insert(0, Message(role="system", content=system))
    return tuple(messages)


def fit(
    messages: Sequence[Message],
    *,
    measure: Callable[[tuple[Message, ...]], Measured],
    fits: Callable[[Measured], bool],
) -> tuple[Measured, int]:
    """Drop the oldest messages until the rest fits; system messages and the last one stay.

    The number dropped is found by bisection, because each measure renders and tokenizes.

    Returns:
        The measure of what is left, and how many messages were dropped. When not even the last
        message fits, the measure of it alone.
    """
    whole = measure(tuple(messages))
    droppable = [index for index, message in enumerate(messages[:-1]) if message.role != "system"]
    if fits(whole) or not droppable:
        return whole, 0

    def without(count: int) -> Measured:
        dropped = set(droppable[:count])
        return measure(tuple(m for index, m in enumerate(messages) if index not in dropped))

    low, high = 1, len(droppable)
    best = without(high)
    if not fits(best):
        return best, high
    while low < high:
        middle = (low + high) // 2
        tried = without(middle)
        if fits(tried):
            best, high = tried, middle
        else:
            low = middle + 1
    return best, high
