"""Text to tokens and back, with the loaded model's own vocabulary. Native.

Safe to call from any thread: the vocabulary does not change after the load.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from server.errors import EngineRefusedError
from server.runner.embedding import Frame
from server.runner.marking import split_prompt
from server.runner.native import LIB, QUICK
from server.runner.shown import is_shown
from server.runner.spelling import Spellings

_PIECE_BYTES = 256
"""First try for a token's text. Why: nearly all are shorter; longer ones get a second call."""


class Vocabulary:
    """Tokens of one model."""

    def __init__(self, model: Any) -> None:
        self.handle: Any = LIB.llama_model_get_vocab(model)
        self.size: int = LIB.llama_vocab_n_tokens(self.handle)
        self.bos: int = LIB.llama_vocab_bos(self.handle)
        self.adds_bos: bool = LIB.llama_vocab_get_add_bos(self.handle)
        self._shown: dict[int, bytes] = {}
        self._whole: dict[int, bytes] = {}
        self._ends: dict[int, bool] = {}
        self._framing: dict[int, bool] = {}

    def tokenize(self, text: str, *, special: bool) -> tuple[int, ...]:
        """Token ids of ``text``; ``special`` lets control-token texts become control tokens."""
        raw = text.encode("utf-8", "replace")
        capacity = len(raw) + 8
        for _attempt in range(2):
            buffer = np.empty(capacity, np.int32)
            pointer = buffer.ctypes.data_as(LIB.llama_token_p)
            count = LIB.llama_tokenize(
                self.handle, raw, len(raw), pointer, capacity, False, special
            )
            if count >= 0:
                return tuple(buffer[:count].tolist())
            capacity = -count
            if capacity >= np.iinfo(np.int32).max:
                break
        raise EngineRefusedError(f"the text of {len(raw)} bytes is too long to tokenize")

    def prompt(self, text: str, *, add_bos: bool) -> tuple[int, ...]:
        """Token ids of a prompt: special texts are parsed, guarded ones are not.

        A BOS is put in front where the model asks for one and the text brings none.
        """
        tokens: tuple[int, ...] = ()
        for part in split_prompt(text):
            tokens += self.tokenize(part, special=True)
        return self.with_bos(tokens) if add_bos else tokens

    def with_bos(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        """The tokens with a BOS in front where the model asks for one, never with two."""
        if not self.adds_bos or self.bos < 0 or tokens[:1] == (self.bos,):
            return tokens
        return (self.bos, *tokens)

    def piece(self, token: int) -> bytes:
        """What a generated token adds to the text."""
        found = self._shown.get(token)
        if found is None:
            found = self._read(token, special=self._is_shown(token))
            self._shown[token] = found
        return found

    def whole_piece(self, token: int) -> bytes:
        """A token's text, control tokens by their names."""
        found = self._whole.get(token)
        if found is None:
            found = self._whole[token] = self._read(token, special=True)
        return found

    def detokenize(self, tokens: Iterable[int]) -> str:
        """The text of tokens, control tokens by their names; broken characters are replaced."""
        return b"".join(map(self.whole_piece, tokens)).decode("utf-8", "replace")

    def is_end(self, token: int) -> bool:
        """Whether a token ends the generation."""
        found = self._ends.get(token)
        if found is None:
            found = self._ends[token] = bool(LIB.llama_vocab_is_eog(self.handle, token))
        return found

    def is_control(self, token: int) -> bool:
        """Whether a token is one that text does not produce."""
        return bool(LIB.llama_vocab_is_control(self.handle, token))

    @functools.cached_property
    def control_tokens(self) -> npt.NDArray[np.int64]:
        """All control tokens that do not end the generation, ascending."""
        ids = (i for i in range(self.size) if self.is_control(i))
        return np.array([i for i in ids if not self.is_end(i)], np.int64)

    @functools.cached_property
    def end_tokens(self) -> tuple[int, ...]:
        """All tokens that end the generation, ascending."""
        return tuple(i for i in range(self.size) if self.is_end(i))

    def is_framing(self, token: int) -> bool:
        """Whether a token is a control token, or looks like one, as ``<tool_call>`` does."""
        found = self._framing.get(token)
        if found is None:
            found = self._framing[token] = self._frames(token)
        return found

    @functools.cached_property
    def spellings(self) -> Spellings:
        """The texts of all such tokens; some tenths of a second for a large vocabulary."""
        tokens = filter(self._frames, range(self.size))
        return Spellings(self.whole_piece(token).decode("utf-8", "replace") for token in tokens)

    @functools.cached_property
    def frame(self) -> Frame:
        """The tokens around a text that is embedded.

        Raises:
            EngineRefusedError: the vocabulary lacks one; the engine would not survive asking.
        """
        end, separator = LIB.llama_vocab_eos(self.handle), LIB.llama_vocab_sep(self.handle)
        pieces = LIB.llama_vocab_type(self.handle) == LIB.LLAMA_VOCAB_TYPE_WPM
        opens = pieces or self.adds_bos
        closes = pieces or bool(LIB.llama_vocab_get_add_eos(self.handle))
        closing = separator if pieces else end
        parts = bool(LIB.llama_vocab_get_add_sep(self.handle)) and not pieces
        wanted = ((opens, self.bos), (closes, closing), (parts, separator))
        if any(wants and token < 0 for wants, token in wanted):
            raise EngineRefusedError("the model's vocabulary names no token to frame texts with")
        opening, behind, between = ((token,) if wants else () for wants, token in wanted)
        return Frame(opening=opening, closing=behind, between=between)

    def check(self, tokens: Iterable[int]) -> None:
        """Refuse ids that are not in the vocabulary.

        Raises:
            EngineRefusedError: an id is out of range; the engine would not survive some of them.
        """
        for token in tokens:
            if not 0 <= token < self.size:
                raise EngineRefusedError(f"token: expected 0 to {self.size - 1}, found {token}")

    def _frames(self, token: int) -> bool:
        attributes = LIB.llama_vocab_get_attr(self.handle, token)
        if attributes & LIB.LLAMA_TOKEN_ATTR_CONTROL:
            return True
        piece = self.whole_piece(token)
        own = bool(attributes & LIB.LLAMA_TOKEN_ATTR_USER_DEFINED)
        return own and piece.startswith(b"<") and piece.endswith(b">")

    def _is_shown(self, token: int) -> bool:
        name: bytes | None = LIB.llama_vocab_get_text(self.handle, token)
        return is_shown((name or b"").decode(errors="replace"))

    def _read(self, token: int, *, special: bool) -> bytes:
        buffer = ctypes.create_string_buffer(_PIECE_BYTES)
        count = QUICK.token_to_piece(self.handle, token, buffer, len(buffer), 0, special)
        if count < 0:
            buffer = ctypes.create_string_buffer(-count)
            count = QUICK.token_to_piece(self.handle, token, buffer, len(buffer), 0, special)
        return buffer.raw[:count]
