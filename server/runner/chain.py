"""The engine's samplers: a chain for one request, a grammar, and the array they work on. Native.

Mistakes here would end the process: a chain without a drawing step, a token the grammar does not
allow. They are refused before the engine sees them.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from server.errors import EngineRefusedError
from server.runner.lastwords import MisuseError
from server.runner.native import LIB, LOG, QUICK
from server.runner.sampling import Step
from server.wishes import SamplingOptions

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
"""Source: llama.h, llama_token_data."""

_DRAWING = ("greedy", "dist", "mirostat", "mirostat_v2")
"""The steps that choose a token; the engine asserts that one of them has."""


class Candidates:
    """Tokens to choose from, in memory the samplers reorder and cut."""

    def __init__(self, capacity: int) -> None:
        self._data = np.zeros(capacity, _CANDIDATE)
        self._all = np.arange(capacity, dtype=np.int32)
        self.native = LIB.llama_token_data_array()
        self.reference = ctypes.byref(self.native)

    def fill(self, logits: npt.NDArray[np.float32], ids: npt.NDArray[Any] | None = None) -> None:
        """Take the tokens ``ids`` with their logits, or the whole vocabulary.

        Raises:
            MisuseError: there are none, or more than the memory holds.
        """
        count = len(logits)
        if not 0 < count <= len(self._data):
            raise MisuseError(f"candidates: expected 1 to {len(self._data)}, found {count}")
        data = self._data[:count]
        data["id"] = self._all[:count] if ids is None else ids
        data["logit"] = logits
        data["p"] = 0
        self.native.data = ctypes.cast(self._data.ctypes.data, LIB.llama_token_data_p)
        self.native.size = count
        self.native.selected = -1
        self.native.sorted = False

    def forbid(self, tokens: npt.NDArray[Any]) -> None:
        """Rule tokens out; the whole vocabulary must have been taken."""
        self._data["logit"][tokens] = -np.inf

    def any_possible(self) -> bool:
        """Whether a token is left that is not ruled out."""
        return bool(np.isfinite(self._data["logit"][: self.native.size]).any())

    def possible(self) -> npt.NDArray[np.int64]:
        """The tokens that are not ruled out, ascending."""
        data = self._data[: self.native.size]
        ids: npt.NDArray[np.int64] = data["id"][data["logit"] != -np.inf].astype(np.int64)
        ids.sort()
        return ids

    def chosen(self) -> int:
        """The token a chain has selected; -1 without one."""
        if not 0 <= self.native.selected < self.native.size:
            return -1
        return int(self.native.data[self.native.selected].id)

    def first_possible(self) -> bool:
        """Whether the first token is not ruled out."""
        return bool(self._data["logit"][0] != -np.inf)


class Dry:
    """The sampler against repeated sequences at its beginning, to be copied for each request.

    To make one takes tens of milliseconds with a large vocabulary: not in the decode thread. A copy
    takes less than four.
    """

    def __init__(self, vocabulary: Any, options: SamplingOptions, *, last_tokens: int) -> None:
        """``last_tokens`` is how far it looks back, more than 0."""
        texts = [text.encode("utf-8", "replace") for text in options.dry_sequence_breakers]
        self.native = LIB.llama_sampler_init_dry(
            vocabulary.handle,
            options.dry_multiplier,
            options.dry_base,
            options.dry_allowed_length,
            last_tokens,
            (ctypes.c_char_p * len(texts))(*texts),
            len(texts),
        )
        weakref.finalize(self, LIB.llama_sampler_free, self.native)


class Chain:
    """One request's samplers, with their state."""

    def __init__(
        self,
        steps: Sequence[Step],
        *,
        bias: Sequence[tuple[int, float]] = (),
        dry: Dry | None = None,
    ) -> None:
        """Make the samplers; the last one draws. ``dry`` is needed by a step of that name.

        Raises:
            MisuseError: none or another one draws, or the engine does not make one of them.
        """
        drawing = [index for index, (name, *_) in enumerate(steps) if name in _DRAWING]
        if drawing != [len(steps) - 1]:
            raise MisuseError("chain: expected one drawing step, at the end")
        self._native = LIB.llama_sampler_chain_init(LIB.llama_sampler_chain_default_params())
        for step in steps:
            sampler = _sampler(step, bias, dry)
            if not sampler:  # a null pointer in the chain would be followed
                self.close()
                raise MisuseError(f"chain: the engine made no sampler {step[0]}")
            LIB.llama_sampler_chain_add(self._native, sampler)

    def choose(self, candidates: Candidates) -> int:
        """Run the samplers; returns the token they drew, -1 if none.

        Raises:
            MisuseError: the chain is closed, or there is nothing to choose from.
        """
        if not self._native or not candidates.native.size:
            raise MisuseError("chain: expected an open chain and candidates")
        QUICK.sampler_apply(self._native, candidates.reference)
        return candidates.chosen()

    def accept(self, token: int) -> None:
        """Let the samplers remember a token."""
        QUICK.sampler_accept(self._native, token)

    def close(self) -> None:
        """Free the samplers; may be called twice."""
        if self._native:
            LIB.llama_sampler_free(self._native)
        self._native = None


def _sampler(step: Step, bias: Sequence[tuple[int, float]], dry: Dry | None) -> Any:
    """One of the engine's samplers; nothing where it makes none."""
    name, *arguments = step
    if name == "dry":
        return None if dry is None else LIB.llama_sampler_clone(dry.native)
    make = getattr(LIB, f"llama_sampler_init_{name}")
    return make(*_bias_table(bias)) if name == "logit_bias" else make(*arguments)


def _bias_table(bias: Sequence[tuple[int, float]]) -> tuple[int, int, Any]:
    """The arguments of the bias sampler; it copies the table and does not use the first."""
    return len(bias), len(bias), (LIB.llama_logit_bias * len(bias))(*bias)


class Grammar:
    """What one request may still say, by a GBNF grammar."""

    def __init__(self, vocabulary: Any, source: str) -> None:
        """Parse the grammar; its start is the rule ``root``.

        Raises:
            EngineRefusedError: the engine does not accept it.
        """
        raw = source.encode("utf-8", "replace")
        if not raw or b"\0" in raw:
            raise EngineRefusedError(
                "the grammar is not accepted: it is empty or holds a zero byte"
            )
        LOG.last_errors()
        self._native = LIB.llama_sampler_init_grammar(vocabulary.handle, raw, b"root")
        # A null pointer object is never None; only its truth value tells.
        if not self._native:
            raise EngineRefusedError(f"the grammar is not accepted: {LOG.last_errors()}")
        self._one = Candidates(1)
        self._size = int(vocabulary.size)
        self._allowed: int | None = None

    def allows(self, token: int) -> bool:
        """Whether ``token`` may come next; none that the vocabulary does not have.

        Raises:
            MisuseError: the grammar is closed.
        """
        self._check_open()
        self._allowed = None
        if not 0 <= token < self._size:
            return False
        self._one.fill(np.zeros(1, np.float32), np.array([token], np.int32))
        LIB.llama_sampler_apply(self._native, self._one.reference)
        if self._one.first_possible():
            self._allowed = token
        return self._allowed is not None

    def restrict(self, candidates: Candidates) -> None:
        """Rule out all tokens that may not come next.

        Raises:
            MisuseError: the grammar is closed.
        """
        self._check_open()
        LIB.llama_sampler_apply(self._native, candidates.reference)

    def accept(self, token: int) -> None:
        """Go on after ``token``.

        Raises:
            MisuseError: `allows` was not asked about it just before, or did not allow it.
        """
        self._check_open()
        if token != self._allowed:
            raise MisuseError(f"grammar: expected a token that was just allowed, found {token}")
        self._allowed = None
        LIB.llama_sampler_accept(self._native, token)

    def close(self) -> None:
        """Free the grammar; may be called twice."""
        if self._native:
            LIB.llama_sampler_free(self._native)
        self._native = None

    def _check_open(self) -> None:
        if not self._native:
            raise MisuseError("grammar: it is closed")
