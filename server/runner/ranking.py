"""Prompts of rerankers that read query and document in a text of their own, such as Qwen3's. Pure.

The text stands in the model's file and holds ``{query}`` and ``{document}``. Source: llama.cpp's
conversion of Qwen3-Reranker, which names it the chat template ``rerank``.

Rules:
 * control tokens of the text are parsed, those that a client spells are not;
 * only the document is cut, at its end.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from server.errors import EngineRefusedError
from server.runner.embedding import NO_ROOM, TOO_LONG
from server.runner.marking import MARK
from server.runner.spelling import Spellings

_PLACES = re.compile(r"\{(query|document)\}")

Tokenize = Callable[[str], tuple[int, ...]]


def ranked_text(
    template: str,
    query: str,
    document: str,
    *,
    tokenize: Tokenize,
    spellings: Spellings,
    limit: int,
    truncate: bool,
) -> tuple[int, ...]:
    """The tokens of one pair, at most ``limit``.

    Args:
        template: the model's text.
        query: what the document is compared with.
        document: what is ranked.
        tokenize: of a prompt in which marks stand where no control token may be.
        spellings: texts of control tokens.
        limit: most tokens.
        truncate: cut the document instead of refusing it.

    Raises:
        EngineRefusedError: it is too long and may not be cut, or the query leaves no room.
    """

    def tokens(kept: str) -> tuple[int, ...]:
        words = {"query": guarded(query, spellings), "document": guarded(kept, spellings)}
        return tokenize(_PLACES.sub(lambda place: words[place[1]], template))

    whole = tokens(document)
    if len(whole) <= limit:
        return whole
    if not truncate:
        raise EngineRefusedError(TOO_LONG)
    if len(tokens("")) > limit:
        raise EngineRefusedError(NO_ROOM)
    fits, over = 0, len(document)  # the longest beginning of the document that fits
    while over - fits > 1:
        middle = (fits + over) // 2
        if len(tokens(document[:middle])) <= limit:
            fits = middle
        else:
            over = middle
    return tokens(document[:fits])


def guarded(text: str, spellings: Spellings) -> str:
    """The text with a mark inside each text of a control token, see `marking`."""
    parts: list[str] = []
    done = 0
    own = (at for at, character in enumerate(text) if character == MARK)
    for at in sorted({*spellings.ends(text, 0), *own}):
        parts += text[done:at], MARK
        done = at
    return "".join([*parts, text[done:]])
