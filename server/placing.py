"""Where images stand in a prompt: marks that templates carry along, and clients cannot write. Pure.

An image's mark stands where its message says ``[img]``, else before the message's text, as in
Ollama. Each request has marks of its own, with 128 bits drawn for it: a client that writes
``[img-0]``, or the mark of an earlier answer, writes ordinary text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from server.chat import Message

_WISHED = "[img]"


class Marks:
    """The marks of one request."""

    def __init__(self, nonce: str) -> None:
        """``nonce`` is drawn for the request, in hexadecimal, and told to nobody."""
        self._nonce = nonce
        self._mark = re.compile(rf"\[img-([0-9]+):{nonce}\]")

    def place(self, messages: Sequence[Message]) -> tuple[tuple[Message, ...], tuple[bytes, ...]]:
        """The messages with a mark for each image, and the images by the numbers of the marks."""
        images: list[bytes] = []
        placed = []
        for message in messages:
            content, before = message.content, ""
            for image in message.images:
                mark = f"[img-{len(images)}:{self._nonce}]"
                images.append(image)
                if _WISHED in content:
                    content = content.replace(_WISHED, mark, 1)
                else:
                    before += mark
            placed.append(replace(message, content=before + content))
        return tuple(placed), tuple(images)

    def split(self, prompt: str) -> tuple[str | int, ...]:
        """A rendered prompt as texts and numbers of images; it begins and ends with a text."""
        parts = self._mark.split(prompt)
        return tuple(int(part) if index % 2 else part for index, part in enumerate(parts))

    def shown(self, prompt: str) -> str:
        """A rendered prompt as Ollama shows it, with ``[img-0]`` for the first image."""
        return self._mark.sub(lambda found: f"[img-{found[1]}]", prompt)
