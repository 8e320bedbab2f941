"""Texts to tokens and back, with a model's own vocabulary; the model is loaded for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from server.coroner import Computed
from server.desk import Desk, Terms
from server.errors import BadRequestError
from server.generation import Gone
from server.runner import protocol
from server.scheduler import Lease


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
        command = protocol.Tokenize(id=0, text=request.text)
        with (
            desk.admission.enter(),
            desk.acquire(terms) as lease,
            _watched(lease, terms, command),
        ):
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
            with _watched(lease, terms, protocol.Detokenize(id=0, tokens=request.tokens)):
                text = lease.runner.detokenize(request.tokens)
        return Lexed(
            text=text,
            tokens=request.tokens,
            pieces=(),
            load_s=lease.load_s,
            total_s=desk.now_s() - started_s,
        )


@contextmanager
def _watched(lease: Lease, terms: Terms, command: Computed) -> Iterator[None]:
    """While inside, the runner may die of this command."""
    mark = lease.coroner.mark(lease.key, command)
    with lease.coroner.watching(lease.runner.pid, mark, model=lease.key, gone=terms.over):
        yield
    lease.coroner.answered(mark)


def _check(tokens: tuple[int, ...], size: int) -> None:
    for index, token in enumerate(tokens):
        if not 0 <= token < size:
            raise BadRequestError(
                f"tokens[{index}]: expected a token id below {size}, found {token}"
            )
