"""The part of a SentencePiece model file that a vocabulary needs. Pure.

Source: sentencepiece_model.proto: pieces are field 1, the trainer's settings field 2, the
normalizer's field 3; and the wire format of protocol buffers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from bundler.errors import PackError

_BPE: Final = 2
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_TEXT, _SCORE, _KIND = 1, 2, 3
_MODEL_TYPE: Final = 3
_ADD_DUMMY_PREFIX: Final = 3
_MAX_PIECES: Final = 4_000_000
"""Why: ten times the largest vocabulary known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One token: text with spaces as U+2581, score, and kind from 1 to 6."""

    text: str
    score: float = 0.0
    kind: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Pieces by id, and whether a text gets a space before it."""

    pieces: tuple[Piece, ...]
    adds_space: bool


def read_model(data: bytes) -> Model:
    """Read a ``tokenizer.model``.

    Raises:
        PackError: it is none, or not of the BPE kind.
    """
    pieces: list[Piece] = []
    kind, adds_space = 1, True
    try:
        for number, value in _fields(data):
            if number == _PIECES and isinstance(value, bytes) and len(pieces) < _MAX_PIECES:
                pieces.append(_piece(value))
            elif number == _TRAINER and isinstance(value, bytes):
                kind = next((v for n, v in _fields(value) if n == _MODEL_TYPE), kind)  # type: ignore[assignment]
            elif number == _NORMALIZER and isinstance(value, bytes):
                adds_space = all(v for n, v in _fields(value) if n == _ADD_DUMMY_PREFIX)
    except (ValueError, IndexError, struct.error) as error:
        raise PackError(f"tokenizer.model: not a SentencePiece model: {error}") from error
    if not pieces:
        raise PackError("tokenizer.model: not a SentencePiece model: no pieces in it")
    if kind != _BPE:
        raise PackError(
            f"tokenizer.model: expected a BPE model, found kind {kind}",
            hint="unigram models are not converted; pack a GGUF file of this model",
        )
    return Model(pieces=tuple(pieces), adds_space=adds_space)


def _piece(data: bytes) -> Piece:
    text, score, kind = "", 0.0, 1
    for number, value in _fields(data):
        if number == _TEXT and isinstance(value, bytes):
            text = value.decode("utf-8")
        elif number == _SCORE and isinstance(value, bytes):
            (score,) = struct.unpack("<f", value)
        elif number == _KIND and isinstance(value, int):
            kind = value
    if not 1 <= kind <= 6:  # noqa: PLR2004 - the six kinds
        raise ValueError(f"piece of kind {kind}")
    return Piece(text=text, score=score, kind=kind)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field: an integer, or the bytes of anything else."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        value: int | bytes
        match tag & 7:
            case 0:
                value, at = _varint(data, at)
            case 1:
                value, at = data[at : at + 8], at + 8
            case 2:
                length, at = _varint(data, at)
                value, at = data[at : at + length], at + length
            case 5:
                value, at = data[at : at + 4], at + 4
            case other:
                raise ValueError(f"wire type {other}")
        if at > len(data):
            raise ValueError("cut off")
        yield tag >> 3, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 - the last one
            return value, at
        shift += 7
        if shift > 63:  # noqa: PLR2004 - 64 bits
            raise ValueError("number too long")
