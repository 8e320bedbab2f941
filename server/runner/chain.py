"""The engine's samplers: a chain for one request, a grammar, and the array they work on. Native.

Mistakes here end the process: a chain without a drawing step, a token the grammar does not
allow. So a chain is only made from `sampling.chain`, and a grammar is asked before it is told.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from server.errors import EngineRefusedError
from server.runner.native import LIB, LOG, QUICK
from server.runner.sampling import Step

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
"""Source: llama.h, llama_token_data."""


class Candidates:
    """Tokens to choose from, in memory the samplers reorder and cut."""

    def __init__(self, capacity: int) -> None:
        self._data = np.zeros(capacity, _CANDIDATE)
        self._all = np.arange(capacity, dtype=np.int32)
        self.native = LIB.llama_token_data_array()
        self.reference = ctypes.byref(self.native)

    def fill(self, logits: npt.NDArray[np.float32], ids: npt.NDArray[Any] | None = None) -> None:
        """Take the tokens ``ids`` with their logits, or the whole vocabulary."""
        count = len(logits)
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


class Chain:
    """One request's samplers, with their state."""

    def __init__(self, steps: Sequence[Step], *, bias: Sequence[tuple[int, float]] = ()) -> None:
        self._native = LIB.llama_sampler_chain_init(LIB.llama_sampler_chain_default_params())
        for name, *arguments in steps:
            make = getattr(LIB, f"llama_sampler_init_{name}")
            sampler = make(*_bias_table(bias)) if name == "logit_bias" else make(*arguments)
            LIB.llama_sampler_chain_add(self._native, sampler)

    def choose(self, candidates: Candidates) -> int:
        """Run the samplers; returns the token they drew, -1 if none."""
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
        LOG.last_errors()
        raw = source.encode("utf-8", "replace")
        self._native = LIB.llama_sampler_init_grammar(vocabulary.handle, raw, b"root")
        # A null pointer object is never None; only its truth value tells.
        if not raw or b"\0" in raw or not self._native:
            reason = LOG.last_errors() or "it is empty or holds a zero byte"
            raise EngineRefusedError(f"the grammar is not accepted: {reason}")
        self._one = Candidates(1)

    def allows(self, token: int) -> bool:
        """Whether ``token`` may come next."""
        self._one.fill(np.zeros(1, np.float32), np.array([token], np.int32))
        LIB.llama_sampler_apply(self._native, self._one.reference)
        return self._one.first_possible()

    def restrict(self, candidates: Candidates) -> None:
        """Rule out all tokens that may not come next."""
        LIB.llama_sampler_apply(self._native, candidates.reference)

    def accept(self, token: int) -> None:
        """Go on after ``token``, which `allows` must have allowed: otherwise the process ends."""
        LIB.llama_sampler_accept(self._native, token)

    def close(self) -> None:
        """Free the grammar; may be called twice."""
        if self._native:
            LIB.llama_sampler_free(self._native)
        self._native = None
