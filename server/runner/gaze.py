"""Whether a step computes text or a picture: both wait for each other, in turns. Pure.

A batch of the engine holds tokens or rows of pictures, not both. So a planned step is narrowed to
its text, or to one picture; while both wait they alternate, and a picture whose rows are in hand
goes before others.
"""

from __future__ import annotations

from collections.abc import Callable

from server.runner.pictures import is_place, key_of
from server.runner.work import Chunk


class Gaze:
    """Remembers whose turn it is."""

    def __init__(self) -> None:
        """Begin with a picture."""
        self._looked = False

    def narrow(
        self, chunks: tuple[Chunk, ...], in_hand: Callable[[int], bool]
    ) -> tuple[Chunk, ...]:
        """The text of a planned step, or one picture of it.

        Args:
            chunks: the step.
            in_hand: whether the rows of the picture with this key need no computing.
        """
        pictures = [chunk for chunk in chunks if shows_picture(chunk)]
        texts = tuple(chunk for chunk in chunks if not shows_picture(chunk))
        if not pictures or (texts and self._looked):
            self._looked = False
            return texts
        self._looked = True
        return (min(pictures, key=lambda chunk: not in_hand(key_of(chunk.tokens[0]))),)


def shows_picture(chunk: Chunk) -> bool:
    """Whether a chunk is of a picture."""
    return is_place(chunk.tokens[0])
