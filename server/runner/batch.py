"""The tokens of one decode call, in arrays that the engine reads in place. Native."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from server.runner.lastwords import MisuseError
from server.runner.native import LIB

GRID_SECTIONS = 4
"""Positions of a row with M-RoPE: time, row, column, and one that no served model uses.

Source: llama.h; a batch of rows has them section by section.
"""


class Batch:
    """Tokens for one decode call, in arrays of our own that the engine reads in place.

    Attributes:
        capacity: most tokens.
        size: tokens so far.
        outputs: of these, those whose logits are asked for.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.size = 0
        self.outputs = 0
        self._tokens = np.zeros(capacity, np.int32)
        self._positions = np.zeros(capacity, np.int32)
        self._grid = np.zeros(GRID_SECTIONS * capacity, np.int32)
        self._sequences = np.zeros(capacity, np.int32)
        self._outputs = np.zeros(capacity, np.int8)
        self._counts = np.ones(capacity, np.int32)
        # One sequence per token: the array of pointers points into the array of ids, once for all.
        first = self._sequences.ctypes.data
        self._pointers = first + 4 * np.arange(capacity, dtype=np.uint64)
        self.native = LIB.llama_batch()
        self._token_pointer = _pointer(self._tokens, ctypes.c_int32)
        self._position_pointer = _pointer(self._positions, ctypes.c_int32)
        self._grid_pointer = _pointer(self._grid, ctypes.c_int32)
        self._rows: npt.NDArray[np.float32] | None = None
        self.native.token = self._token_pointer
        self.native.pos = self._position_pointer
        self.native.n_seq_id = _pointer(self._counts, ctypes.c_int32)
        self.native.seq_id = _pointer(self._pointers, ctypes.POINTER(ctypes.c_int32))
        self.native.logits = _pointer(self._outputs, ctypes.c_int8)

    def clear(self) -> None:
        """Begin a new batch."""
        self.size = self.outputs = 0
        if self._rows is not None:
            self._rows = None
            self.native.embd = None
            self.native.token = self._token_pointer
            self.native.pos = self._position_pointer

    def add(self, tokens: Sequence[int], *, position: int, sequence: int, output: int) -> None:
        """Append consecutive tokens of one sequence; the last ``output`` of them get logits.

        Raises:
            MisuseError: they do not fit, or fewer are there than are to get logits.
        """
        begin, end = self.size, self.size + len(tokens)
        if not tokens or end > self.capacity:
            raise MisuseError(
                f"batch: expected 1 to {self.capacity - begin} more tokens, found {len(tokens)}"
            )
        if not 0 <= output <= len(tokens):
            raise MisuseError(f"batch: expected 0 to {len(tokens)} outputs, found {output}")
        self._tokens[begin:end] = tokens
        self._positions[begin:end] = np.arange(position, position + len(tokens))
        self._sequences[begin:end] = sequence
        self._outputs[begin:end] = 0
        self._outputs[end - output : end] = 1
        self.outputs += output
        self.size = end
        self.native.n_tokens = end

    def put_rows(
        self,
        rows: npt.NDArray[np.float32],
        *,
        position: int,
        sequence: int,
        output: bool,
        grid: npt.NDArray[np.int32] | None = None,
    ) -> None:
        """Make rows of one picture, float32[n, n_embd], the whole batch instead of tokens.

        ``grid``, int32[4, n], are their positions where a row has several, as with M-RoPE.
        """
        self.clear()
        count = len(rows)
        if not 0 < count <= self.capacity:
            raise MisuseError(f"batch: expected 1 to {self.capacity} rows, found {count}")
        self._rows = np.ascontiguousarray(rows)  # the engine reads it in place
        self.native.embd = _pointer(self._rows, ctypes.c_float)
        self.native.token = None
        self._positions[:count] = np.arange(position, position + count)
        if grid is not None:
            if grid.shape != (GRID_SECTIONS, count):
                raise MisuseError(f"batch: expected 4 positions for {count} rows: {grid.shape}")
            self._grid[: grid.size] = grid.ravel()
            self.native.pos = self._grid_pointer
        self._sequences[:count] = sequence
        self._outputs[:count] = 0
        self._outputs[count - 1] = output
        self.outputs = int(output)
        self.size = count
        self.native.n_tokens = count

    def ask_for_all(self) -> None:
        """Make every token an output, as pooling needs it."""
        self._outputs[: self.size] = 1
        self.outputs = self.size


def _pointer(array: npt.NDArray[Any], kind: Any) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))
