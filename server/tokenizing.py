"""Texts to tokens and back, with a model's own vocabulary; the model is loaded for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from server.desk import Desk
from server.errors import BadRequestError
from server.generation import Gone


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizeRequest:
    """A text that is to become tokens.

    Attributes:
        model: as the client spelled it.
        text: the text.
        add_special: put the model's tokens for the beginning and the end around it.
        parse_special: control tokens in the text become control tokens.
        options: load options; the others have no effect here.
        keep_alive_s: ``None`` leaves it to the server.
    """

    model: str
    text: str
    add_special: bool = False
    parse_special: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    keep_alive_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DetokenizeRequest:
    """Tokens that are to become text; see `TokenizeRequest`."""

    model: str
    tokens: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    keep_alive_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lexed:
    """A text and its tokens.

    Attributes:
        text: the text.
        tokens: its token ids.
        pieces: the bytes of each, where they were asked for.
        load_s: seconds until the model was there.
        total_s: seconds in all.
    """

    text: str
    tokens: tuple[int, ...]
    pieces: tuple[bytes, ...]
    load_s: float
    total_s: float


class Tokenizing:
    """Tokenizes and detokenizes. All methods may be called from any thread."""

    def __init__(self, desk: Desk) -> None:
        """Work with the models and runners of this desk."""
        self._desk = desk

    def tokenize(self, request: TokenizeRequest, gone: Gone) -> Lexed:
        """Turn text into tokens.

        Raises:
            ServerError: there will be none.
        """
        desk = self._desk
        started_s = desk.now_s()
        terms = desk.terms(desk.find(request.model), request, started_s, gone)
        with desk.admission.enter(), desk.acquire(terms) as lease:
            answer = lease.runner.lex(
                request.text, framed=request.add_special, parse_special=request.parse_special
            )
        return Lexed(
            text=request.text,
            tokens=answer.tokens,
            pieces=tuple(map(bytes.fromhex, answer.pieces)),
            load_s=lease.load_s,
            total_s=desk.now_s() - started_s,
        )

    def detokenize(self, request: DetokenizeRequest, gone: Gone) -> Lexed:
        """Turn tokens into text.

        Raises:
            ServerError: there will be none.
        """
        desk = self._desk
        started_s = desk.now_s()
        terms = desk.terms(desk.find(request.model), request, started_s, gone)
        with desk.admission.enter(), desk.acquire(terms) as lease:
            _check(request.tokens, lease.runner.ready.n_vocab)
            text = lease.runner.detokenize(request.tokens)
        return Lexed(
            text=text,
            tokens=request.tokens,
            pieces=(),
            load_s=lease.load_s,
            total_s=desk.now_s() - started_s,
        )


def _check(tokens: tuple[int, ...], size: int) -> None:
    for index, token in enumerate(tokens):
        if not 0 <= token < size:
            raise BadRequestError(
                f"tokens[{index}]: expected a token id below {size}, found {token}"
            )
