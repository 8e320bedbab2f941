"""Texts to rows of a batch, and what the engine makes of them to what a client gets. Pure.

Rules:
 * a text stands between the tokens its model frames texts with, such as ``[CLS]`` and ``[SEP]``;
 * a text that is too long loses its end, never its frame, or is refused;
 * a vector is cut to the wished length, then scaled to length one where that is wished;
 * a vector with a number that is none ends its request;
 * vectors go out in the order of their texts.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

import numpy as np
import numpy.typing as npt

from server.errors import EngineRefusedError
from server.runner.protocol import DoneReason, Row, VectorForm

Vector = npt.NDArray[np.float32]

TOO_LONG = "the input length exceeds the context length"
NO_ROOM = "input after truncation exceeds maximum context length"
NOT_FINITE = "embedding contains NaN or Inf values"
"""Ollama's texts."""

SHORTEST = 1e-12
"""A shorter vector is not scaled up. Source: Ollama's server/routes.go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """The tokens around a text.

    Attributes:
        opening: before it.
        closing: behind it.
        between: between two texts that are compared, besides ``closing``.
    """

    opening: tuple[int, ...] = ()
    closing: tuple[int, ...] = ()
    between: tuple[int, ...] = ()

    def around(self, text: Sequence[int], *, limit: int, truncate: bool) -> tuple[int, ...]:
        """A framed text of at most ``limit`` tokens.

        Raises:
            EngineRefusedError: it is too long and may not be cut, or nothing is left of it.
        """
        room = limit - len(self.opening) - len(self.closing)
        return (*self.opening, *_cut(text, room, truncate=truncate), *self.closing)

    def pair(
        self, query: Sequence[int], document: Sequence[int], *, limit: int, truncate: bool
    ) -> tuple[int, ...]:
        """A query and a document; only the document is cut. Raises as `around`."""
        head = (*self.opening, *query, *self.closing, *self.between)
        room = limit - len(head) - len(self.closing)
        return (*head, *_cut(document, room, truncate=truncate), *self.closing)


def _cut(text: Sequence[int], room: int, *, truncate: bool) -> Sequence[int]:
    if len(text) <= room:
        return text
    if not truncate:
        raise EngineRefusedError(TOO_LONG)
    if room < 1:
        raise EngineRefusedError(NO_ROOM)
    return text[:room]


def shape_vector(vector: Vector, *, dimensions: int, normalize: bool) -> Vector:
    """What a client gets of a vector.

    Args:
        vector: as the engine gave it.
        dimensions: its wished length; 0, or more than there are, leaves it whole.
        normalize: scale it to length one.

    Raises:
        EngineRefusedError: it holds a number that is none.
    """
    if not np.isfinite(vector).all():
        raise EngineRefusedError(NOT_FINITE)
    if 0 < dimensions < len(vector):
        vector = vector[:dimensions]
    if normalize:
        length = float(np.linalg.norm(vector.astype(np.float64)))
        vector = (vector / max(length, SHORTEST)).astype(np.float32)
    return vector


def write_vector(vector: Vector, form: VectorForm) -> str:
    """A vector as text.

    ``float32`` is a JSON array of the shortest numbers that read back as the same single-precision
    value; ``float64`` one of the same values in double precision; ``base64`` the little-endian
    bytes.
    """
    match form:
        case "float32":
            return f"[{','.join(vector.astype('U').tolist())}]"
        case "float64":
            return f"[{','.join(map(repr, vector.tolist()))}]"
        case "base64":
            return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
        case _:
            assert_never(form)


class Job:
    """One request for vectors.

    Attributes:
        id: the request.
        texts: framed token ids, in order.
        tenant: who shares the machine with others.
        scope: only requests of one scope share what they have computed.
        done: all vectors went out, or it ended otherwise.
    """

    def __init__(
        self,
        *,
        request: int,
        texts: Sequence[tuple[int, ...]],
        dimensions: int = 0,
        normalize: bool = True,
        form: VectorForm = "float32",
        tenant: str = "",
        scope: str = "",
    ) -> None:
        self.id = request
        self.tenant = tenant
        self.scope = scope
        self.texts = tuple(texts)
        self.done = False
        self._dimensions = dimensions
        self._normalize = normalize
        self._form = form
        self._ready: dict[int, str] = {}
        self._sent = 0

    @property
    def tokens(self) -> int:
        """Tokens of all texts."""
        return sum(map(len, self.texts))

    def put(self, index: int, vector: Vector) -> None:
        """Take the vector of one text.

        Raises:
            EngineRefusedError: it holds a number that is none.
        """
        shaped = shape_vector(vector, dimensions=self._dimensions, normalize=self._normalize)
        self._ready[index] = write_vector(shaped, self._form)

    def row(self) -> Row | None:
        """The vectors that may go out now, with the end behind the last; ``None`` without any."""
        vectors = []
        while self._sent in self._ready:
            vectors.append(self._ready.pop(self._sent))
            self._sent += 1
        if not vectors:
            return None
        if self._sent == len(self.texts):
            return self.end("stop", tuple(vectors))
        return Row(id=self.id, vectors=tuple(vectors))

    def end(self, reason: DoneReason, vectors: tuple[str, ...] = ()) -> Row:
        """The last row."""
        self.done = True
        return Row(id=self.id, vectors=vectors, done=reason, prompt_tokens=self.tokens)

    def fault(self, message: str, *, refused: bool = False) -> Row:
        """The last row of a request that broke; see `Row`."""
        self.done = True
        return Row(id=self.id, fault=message, refused=refused)
