"""Filling a gap between two texts, with other texts around: what of it fits, in which order. Pure.

The order is that of the models' training: other files first, each behind its name, then what stands
before the gap, then what stands behind it. Source: llama-server's description of ``/infill``, and
"Qwen2.5-Coder Technical Report" (arXiv 2409.12186) for several files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.chat import Infill

Tokenize = Callable[[str], tuple[int, ...]]
"""The tokens of a text in which nothing is a control token."""

_KEYS = (("fim_pre", "prefix"), ("fim_suf", "suffix"), ("fim_mid", "middle"))
_MORE_KEYS = (("fim_rep", ""), ("fim_sep", ""))
_NAMES: tuple[frozenset[str], ...] = (
    frozenset(
        {"<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>",
         "<|code_prefix|>", "<|prefix|>"}
    ),
    frozenset(
        {"<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>",
         "<|code_suffix|>", "<|suffix|>"}
    ),
    frozenset(
        {"<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>",
         "<|code_middle|>", "<|middle|>"}
    ),
    frozenset({"<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"}),
    frozenset({"<|file_sep|>"}),
)  # fmt: skip
"""Tokens of files that do not name them by keys. Source: llama.cpp, llama-vocab.cpp."""

PROJECT = "project\n"
FILE = "file\n"
"""Stand for names that clients do not tell."""

_SUFFIX_PART = 4
"""What stands behind the gap gets a quarter of the room, or what is left. Source: llama-server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GapTokens:
    """Ids of the tokens that frame a gap.

    Attributes:
        prefix, suffix, middle: before what stands before, behind, and in the gap.
        project, file: before the names of a project and of a file; ``None`` without such.
    """

    prefix: int
    suffix: int
    middle: int
    project: int | None = None
    file: int | None = None


def gap_tokens(metadata: Mapping[str, Any], names: Sequence[str]) -> GapTokens | None:
    """The tokens of a vocabulary, by its file's keys, else by their names; ``None`` without.

    Args:
        metadata: of the GGUF file.
        names: texts of all tokens.
    """
    ids = [_keyed(metadata, keys) for keys in (*_KEYS, *_MORE_KEYS)]
    missing = [place for place, found in enumerate(ids) if found is None]
    if missing:
        wanted = {name: place for place in missing for name in _NAMES[place]}
        for token, name in enumerate(names):
            place = wanted.get(name)
            if place is not None and ids[place] is None:
                ids[place] = token
    prefix, suffix, middle, project, file = ids
    if prefix is None or suffix is None or middle is None:
        return None
    return GapTokens(prefix=prefix, suffix=suffix, middle=middle, project=project, file=file)


def _keyed(metadata: Mapping[str, Any], keys: tuple[str, str]) -> int | None:
    for key in filter(None, keys):
        value = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if isinstance(value, int):
            return value
    return None


def gap_prompt(
    gap: Infill, tokens: GapTokens, tokenize: Tokenize, *, opening: tuple[int, ...], room: int
) -> tuple[int, ...]:
    """The prompt, cut to what matters most: what stands next to the gap.

    Args:
        gap: what is to be filled.
        tokens: what frames it.
        tokenize: of the model.
        opening: what begins every prompt of the model.
        room: most tokens of the prompt.
    """
    before = tokenize(gap.prefix + gap.lead)
    behind = tokenize(gap.suffix)
    left = max(room - len(opening) - 3, 0)  # prefix, suffix and middle
    behind = behind[: max(left // _SUFFIX_PART, left - len(before))]
    before = before[max(len(before) - (left - len(behind)), 0) :]
    left -= len(before) + len(behind)
    framed = (tokens.prefix, *before, tokens.suffix, *behind, tokens.middle)
    return (*opening, *_others(gap, tokens, tokenize, room=left), *framed)


def gap_text(gap: Infill) -> str:
    """What stands before the gap where a template frames it."""
    others = "".join(f"{_file_name(one.name)}{one.text}\n\n" for one in gap.others)
    return others + gap.prefix + gap.lead


def _others(gap: Infill, tokens: GapTokens, tokenize: Tokenize, *, room: int) -> tuple[int, ...]:
    """The other texts, whole ones; the last ones where not all fit."""
    if not gap.others:
        return ()
    file = (tokens.file,) if tokens.file is not None else tokenize("\n\n")
    head: tuple[int, ...] = ()
    tail: tuple[int, ...] = ()
    if tokens.project is not None:
        head = (tokens.project, *tokenize(PROJECT))
    if tokens.file is not None:
        tail = (tokens.file, *tokenize(FILE))
    room -= len(head) + len(tail)
    kept: list[tuple[int, ...]] = []
    for one in reversed(gap.others):
        written = (*file, *tokenize(_file_name(one.name)), *tokenize(one.text))
        room -= len(written)
        if room < 0:
            break
        kept.append(written)
    if not kept:
        return ()
    return (*head, *(token for one in reversed(kept) for token in one), *tail)


def _file_name(name: str) -> str:
    return f"{name}\n" if name else FILE
