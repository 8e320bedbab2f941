"""The renderer for a model file: its template, its tokens, its guard, all from the header."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hwprobe.gguf import GgufHeader
from server.prompt.guard import Guard
from server.prompt.jinja import JinjaTemplate
from server.prompt.render import Renderer

_TOKENS = "tokenizer.ggml.tokens"
_TYPES = "tokenizer.ggml.token_type"
_BOS = "tokenizer.ggml.bos_token_id"
_EOS = "tokenizer.ggml.eos_token_id"
_TEMPLATE = "tokenizer.chat_template"


def renderer_of(header: GgufHeader, *, template: str | None = None) -> Renderer:
    """The renderer of a model; reads its vocabulary once, so keep the result.

    Args:
        header: of the model's file.
        template: Jinja source to use instead of the file's own.

    Raises:
        TemplateBrokenError: the template is none.
        GgufError: the file has changed since its header was read.
        OSError: the file cannot be read.
    """
    texts = tuple(_texts(header.metadata.get(_TOKENS)))
    types = _integers(header.metadata.get(_TYPES))
    source = template or header.metadata.get(_TEMPLATE)
    compiled = None
    if isinstance(source, str) and source.strip():
        compiled = JinjaTemplate(
            source,
            bos_token=_token(header, texts, _BOS),
            eos_token=_token(header, texts, _EOS),
        )
    return Renderer(compiled, Guard.of_vocabulary(texts, types))


def _token(header: GgufHeader, texts: tuple[str, ...], key: str) -> str:
    number = header.metadata.get(key)
    if not isinstance(number, int) or not 0 <= number < len(texts):
        return ""
    return texts[number]


def _texts(values: Any) -> Iterator[str]:
    for value in values or ():
        yield value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _integers(values: Any) -> Iterator[int]:
    for value in values or ():
        yield int(value)
