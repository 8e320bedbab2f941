"""Clients' words must not become control tokens.

A prompt is tokenized with control-token texts parsed: that is how the template's ``<|im_end|>``
ends a turn. The same characters inside a client's message are only characters. Before rendering,
a mark U+E000 is put into every such text of the client's, behind its first character; the runner
cuts the prompt at the mark and tokenizes the parts apart (`server.runner.marking`). A U+E000 of
the client's own is doubled.

A text that could be completed by what follows it (``<|im_`` at the end of a message, ``end|>`` at
the start of the next) gets a mark at its end.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

MARK = "\ue000"
"""The same as `server.runner.marking.MARK`; the runner may not be imported here."""

CONTROL = 3
USER_DEFINED = 4
"""Token types of GGUF's ``tokenizer.ggml.token_type``. Source: llama.h, llama_token_type."""

_LOOKS_LIKE_CONTROL = re.compile(
    r"<\|[^<>|\s]+\|>|<\uff5c[^<>\uff5c]+\uff5c>|</?s>|<(start|end)_of_turn>|<\|?/?(im|eot|eom)_\w+\|?>"
    r"|\[/?(INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_RESULTS|TOOL_CALLS|TOOL_CONTENT|CALL_ID|ARGS)\]"
)
"""Control tokens that some files list under another type; the engine corrects most of them."""

_MARKER = re.compile(
    r"think|tool|function|channel|call|arg_|\bargs?\b|response|action|escape|DSML|^<\|\"\|>$",
    re.IGNORECASE,
)
"""User-defined tokens that frame reasoning and tool calls. Others, such as runs of spaces, are
ordinary text to the model and must stay whole."""

_RUN = re.compile(f"{MARK}+")


class Guard:
    """Knows the control-token texts of one vocabulary."""

    def __init__(self, control: Iterable[str], markers: Iterable[str] = ()) -> None:
        """Take the texts.

        Args:
            control: texts no client may write, whoever seems to say them.
            markers: texts an assistant's turn may hold, for instance ``<think>``, others not.
        """
        self._control = _Finder(text for text in control if text)
        self._all = _Finder([*self._control.texts, *(text for text in markers if text)])

    @classmethod
    def of_vocabulary(cls, tokens: Iterable[str], types: Iterable[int]) -> Guard:
        """The guard for a GGUF's ``tokenizer.ggml.tokens`` and ``tokenizer.ggml.token_type``.

        Tokens beyond the end of ``types`` count as ordinary ones.
        """
        control, markers = [], []
        for text, kind in itertools.zip_longest(tokens, types, fillvalue=0):
            if not isinstance(text, str):
                break
            if kind == CONTROL or _LOOKS_LIKE_CONTROL.fullmatch(text):
                control.append(text)
            elif kind == USER_DEFINED and _MARKER.search(text):
                markers.append(text)
        return cls(control, markers)

    def text(self, text: str, *, assistant: bool = False) -> str:
        """The text with its marks; ``assistant`` lets markers stand."""
        return (self._control if assistant else self._all).mark(text)

    def data(self, value: Any, *, assistant: bool = False) -> Any:
        """JSON-like data with all its texts guarded, keys included."""
        if isinstance(value, str):
            return self.text(value, assistant=assistant)
        if isinstance(value, Mapping):
            return {
                self.text(str(key), assistant=assistant): self.data(item, assistant=assistant)
                for key, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.data(item, assistant=assistant) for item in value]
        return value

    def foreign(self, word: str) -> str:
        """A word that may not even become part of a control token, such as an unknown role."""
        return f"{MARK}{self.text(word)}{MARK}"


def escape_marks(text: str) -> str:
    """A prompt whose control-token texts are meant: only its own U+E000 are doubled."""
    return text.replace(MARK, MARK * 2)


def without_marks(prompt: str) -> str:
    """A rendered prompt as a person should see it."""
    return _RUN.sub(lambda run: MARK * (len(run[0]) // 2), prompt)


class _Finder:
    """Finds texts in a text, in time proportional to its length."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = frozenset(texts)
        firsts = sorted({text[0] for text in self.texts})
        self._lengths: dict[str, tuple[int, ...]] = {
            first: tuple(sorted({len(text) for text in self.texts if text[0] == first}))
            for first in firsts
        }
        self._beginnings = frozenset(
            text[:length] for text in self.texts for length in range(1, len(text))
        )
        self._longest = max(map(len, self.texts), default=0)
        pattern = "".join(re.escape(first) for first in firsts)
        self._first = re.compile(f"[{pattern}{MARK}]") if firsts else re.compile(MARK)

    def mark(self, text: str) -> str:
        """The text with a mark inside each text found, and one at its end if need be."""
        parts: list[str] = []
        done = 0
        for found in self._first.finditer(text):
            at = found.start()
            sizes = self._lengths.get(found[0], ())
            if found[0] == MARK or any(text[at : at + size] in self.texts for size in sizes):
                parts += text[done : at + 1], MARK
                done = at + 1
        parts.append(text[done:])
        if self._may_go_on(text):
            parts.append(MARK)
        return "".join(parts)

    def _may_go_on(self, text: str) -> bool:
        longest = min(self._longest - 1, len(text))
        return any(text[-length:] in self._beginnings for length in range(1, longest + 1))
