"""When an answer is bound to a grammar and when it is free. Pure.

An answer goes through phases:

 * ``undecided``: it may still begin with reasoning; ``reasoning``: it is free until the closing
   text; ``blank``: white space behind that;
 * ``free``: a text that begins what is bound has not been said yet;
 * ``bound``: the matcher decides; ``done``: nothing may follow.

Rules:
 * the first token that can no longer be reasoning is asked of the grammar, so nothing has to be
   said twice;
 * an answer that is to be bound does not end before it was;
 * what a token says beyond a closing text is asked of the grammar, too;
 * where a text begins what is bound, nothing is refused before it: if the grammar does not take
   the text with what its last token says beyond it, the answer stays free;
 * a token that completes what is bound and goes on is allowed, if the answer is free behind it;
 * where a text is that of a control token, or has one in it, only that token says it.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from server.errors import EngineRefusedError
from server.wishes import Constraint

MOST_BLANK_TOKENS = 4
"""White space behind reasoning. Why: models write two line breaks; without an end, some go on."""

_CONTROL = re.compile(rb"\xff\[([0-9]+)\]")
"""How a control token stands among the bytes that were said; no text holds this byte."""

Phase = Literal["undecided", "reasoning", "blank", "free", "bound", "done"]
Ids = npt.NDArray[np.int64]


class Matcher(Protocol):
    """What a grammar still allows; see `grammar`."""

    def allows(self, token: int) -> bool:
        """Whether a token may come next."""

    def allowed(self) -> Ids:
        """All tokens that may come next, ascending.

        Raises:
            EngineRefusedError: the grammar takes too long here.
        """

    def accept(self, token: int) -> None:
        """Go on behind a token.

        Raises:
            EngineRefusedError: it is not allowed, or the grammar takes too long here.
        """

    def takes(self, text: bytes) -> bool:
        """Go on behind a text that is not made of sampled tokens; False if it may not come."""

    def forced(self) -> tuple[int, ...]:
        """The tokens that must come next."""

    @property
    def complete(self) -> bool:
        """Whether nothing may follow."""

    def fork(self) -> Matcher:
        """A matcher for another answer, or for another part of this one."""

    def close(self) -> None:
        """Free what it holds."""


class Tokens(Protocol):
    """What a gate asks of a vocabulary."""

    @property
    def size(self) -> int:
        """How many tokens there are."""

    def whole_piece(self, token: int) -> bytes:
        """A token's text, control tokens by their names."""

    def is_end(self, token: int) -> bool:
        """Whether a token ends the generation."""

    def is_framing(self, token: int) -> bool:
        """Whether a token is a control token, or looks like one."""

    def tokenize(self, text: str, *, special: bool) -> tuple[int, ...]:
        """Token ids of a text."""


@dataclass(frozen=True, slots=True)
class _Move:
    """Where a token leads.

    Attributes:
        phase: the phase behind it.
        said: what has been said that a text to look for may begin with.
        asked: the matcher decides about the token.
        rest: what the matcher decides about in place of the token.
    """

    phase: Phase
    said: bytes = b""
    asked: bool = False
    rest: bytes = b""


class Gate:
    """Which tokens one answer may go on with.

    Attributes:
        phase: see this module.
    """

    def __init__(self, constraint: Constraint, matcher: Matcher, tokens: Tokens) -> None:
        """Begin an answer; ``matcher`` is at its beginning and is closed with the gate."""
        reasoning = constraint.reasoning
        self._tokens = tokens
        self._begins = tuple(self._coded(text) for text in constraint.begins if text)
        self._lazy = bool(self._begins)
        self._open = self._coded(reasoning.open) if reasoning is not None else b""
        self._close = self._coded(reasoning.close) if reasoning is not None else b""
        self._said = b""
        self._blanks = 0
        self._begin = matcher
        self._matcher = matcher.fork()
        self.phase: Phase = "free" if self._lazy else "bound"
        if reasoning is not None and self._close:
            self.phase = "reasoning" if reasoning.opened or not self._open else "undecided"

    @property
    def done(self) -> bool:
        """Whether the answer is complete and nothing may follow."""
        return self.phase == "done"

    def allows(self, token: int) -> bool:
        """Whether the answer may go on with a token."""
        move = self._move(token)
        if move is None:
            return False
        if move.asked:
            return self._matcher.allows(token)
        return self._lazy or not move.rest or self._would_take(move.rest)

    def yields(self) -> bool:
        """Go on freely, because the grammar cannot; False if the answer must be bound."""
        if self._lazy:
            self._begins = ()
            self.phase, self._said = "free", b""
        return self._lazy

    def allowed(self, refused: Collection[int]) -> Ids:
        """Tokens to choose from when the last choice was one of ``refused``, ascending.

        `allows` has the last word: a choice may be refused again.

        Raises:
            EngineRefusedError: the grammar takes too long here.
        """
        if self.phase == "bound" or (not self._lazy and self._at_the_start):
            ids = self._matcher.allowed()
        elif not self._lazy and self.phase == "undecided" and self._said.strip():
            ids = np.array(self._first_of(self._open[len(self._said.lstrip()) :]), np.int64)
        else:
            ids = np.arange(self._tokens.size, dtype=np.int64)
        return np.setdiff1d(ids, np.fromiter(refused, np.int64, len(refused)), assume_unique=True)

    def accept(self, token: int) -> None:
        """Go on behind a token that `allows` has allowed.

        Raises:
            EngineRefusedError: the grammar takes too long here.
        """
        move = self._move(token)
        if move is None:
            raise EngineRefusedError("the grammar cannot go on: the token is not allowed")
        self._blanks = self._blanks + 1 if move.phase == self.phase == "blank" else 0
        if self.phase == "bound" and move.phase == "free":
            self._complete()
        self.phase, self._said = move.phase, move.said
        if move.asked:
            self._matcher.accept(token)
        elif move.rest and not self._take(self._matcher, move.rest):
            raise EngineRefusedError("the grammar cannot go on: the text is not allowed")
        if self.phase == "bound" and self._matcher.complete:
            self._complete()

    def forced(self) -> tuple[int, ...]:
        """The tokens that must come next, as far as the grammar says."""
        return self._matcher.forced() if self.phase == "bound" else ()

    def close(self) -> None:
        """Free what the matchers hold."""
        self._matcher.close()
        self._begin.close()

    @property
    def _at_the_start(self) -> bool:
        """Whether what is bound begins now, unless reasoning or white space comes before it."""
        return self.phase == "blank" or (self.phase == "undecided" and not self._said.strip())

    def _complete(self) -> None:
        if not self._lazy:
            self.phase = "done"
            return
        self._matcher.close()
        self._matcher = self._begin.fork()
        self.phase, self._said = "free", b""

    def _coded(self, text: str) -> bytes:
        """A text as tokens say it."""
        said, rest = b"", text.encode("utf-8", "replace")
        for token in self._tokens.tokenize(text, special=True):
            if self._tokens.is_framing(token):
                before, name, behind = rest.partition(self._tokens.whole_piece(token))
                if name:
                    said, rest = said + before + self._says(token), behind
        return said + rest

    def _says(self, token: int) -> bytes:
        if self._tokens.is_framing(token):
            return b"\xff[%d]" % token
        return self._tokens.whole_piece(token)

    def _first_of(self, said: bytes) -> tuple[int, ...]:
        """The first token of what is to be said."""
        if control := _CONTROL.match(said):
            return (int(control[1]),)
        text = said.partition(b"\xff")[0].decode("utf-8", "ignore")
        return self._tokens.tokenize(text, special=False)[:1]

    def _would_take(self, said: bytes) -> bool:
        probe = self._matcher.fork()
        try:
            return self._take(probe, said)
        finally:
            probe.close()

    def _take(self, matcher: Matcher, said: bytes) -> bool:
        """Let the matcher go on behind what was said; False if it may not come."""
        at = 0
        for control in _CONTROL.finditer(said):
            token = int(control[1])
            if at < control.start() and not matcher.takes(said[at : control.start()]):
                return False
            if not matcher.allows(token):
                return False
            matcher.accept(token)
            at = control.end()
        return at == len(said) or matcher.takes(said[at:])

    def _move(self, token: int) -> _Move | None:
        """Where a token leads; ``None`` if it must not come."""
        match self.phase:
            case "bound":
                move: _Move | None = self._from_bound(token)
            case "done":
                move = None
            case "free":
                move = self._from_free(token)
            case "undecided":
                move = self._from_undecided(token)
            case "reasoning":
                move = self._from_reasoning(token)
            case "blank":
                move = self._from_blank(token)
        return move

    def _from_bound(self, token: int) -> _Move:
        """Usually the matcher decides, but of text that is longer than what is bound."""
        if not self._lazy or self._tokens.is_framing(token) or self._matcher.allows(token):
            return _Move("bound", asked=True)
        piece = self._tokens.whole_piece(token)
        probe = self._matcher.fork()
        try:
            for at in range(1, len(piece)):
                if not probe.takes(piece[at - 1 : at]):
                    break
                if probe.complete:
                    return _Move("free", piece[at:])
        finally:
            probe.close()
        return _Move("bound", asked=True)

    def _from_undecided(self, token: int) -> _Move | None:
        if self._tokens.is_end(token):
            wrong = self._said.strip() and not self._lazy
            return None if wrong else self._into_answer(token)
        said = (self._said + self._says(token)).lstrip()
        if said.startswith(self._open):
            return _Move("reasoning", said[len(self._open) :])
        if said and self._open.startswith(said):
            return _Move("undecided", said)
        if self._lazy:
            return self._look_for_begin(said, 0) if said else _Move("undecided")
        if not self._said.strip():
            blank = not said and self._said.count(b" ") < MOST_BLANK_TOKENS
            return _Move("undecided", self._said + b" ") if blank else self._into_answer(token)
        return _Move("bound", rest=said)

    def _from_blank(self, token: int) -> _Move:
        blank = not self._tokens.is_end(token) and not self._says(token).strip()
        if blank and (self._lazy or self._blanks < MOST_BLANK_TOKENS):
            return _Move("blank")
        return self._into_answer(token)

    def _from_reasoning(self, token: int) -> _Move | None:
        if self._tokens.is_end(token):
            return _Move("reasoning") if self._lazy else None
        said = self._said + self._says(token)
        before, close, behind = said.partition(self._close)
        if not close:
            return _Move("reasoning", _tail(before, len(self._close)))
        if not behind.strip():
            return _Move("blank")
        if self._lazy:
            return self._look_for_begin(behind, 0)
        return _Move("bound", rest=behind.lstrip())

    def _into_answer(self, token: int) -> _Move:
        """The answer proper begins with this token."""
        return self._from_free(token) if self._lazy else _Move("bound", asked=True)

    def _from_free(self, token: int) -> _Move:
        if self._tokens.is_end(token):
            return _Move("free")
        said = self._said if self.phase == "free" else b""
        return self._look_for_begin(said + self._says(token), len(said))

    def _look_for_begin(self, text: bytes, known: int) -> _Move:
        """In free text of which the first ``known`` bytes hold no whole beginning text."""
        found = [
            at
            for begin in self._begins
            if (at := text.find(begin, max(0, known - len(begin) + 1))) >= 0
        ]
        if found and self._would_take(text[min(found) :]):
            return _Move("bound", rest=text[min(found) :])
        return _Move("free", _tail(text, max(map(len, self._begins), default=1)))


def _tail(text: bytes, size: int) -> bytes:
    """As much of the end as could begin a text of ``size`` bytes."""
    return text[max(0, len(text) - size + 1) :]
