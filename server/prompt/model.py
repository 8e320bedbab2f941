"""What a model file's header gives to prompts: the guard of its vocabulary, the Jinja renderer."""

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


def guard_of(header: GgufHeader) -> Guard:
    """The guard of a model's vocabulary; reads all of it, so keep the result.

    Raises:
        GgufError: the file has changed since its header was read.
        OSError: the file cannot be read.
    """
    types = _integers(header.metadata.get(_TYPES))
    return Guard.of_vocabulary(_texts(header.metadata.get(_TOKENS)), types)


def renderer_of(header: GgufHeader, template: str) -> Renderer:
    """The renderer of a model; reads its vocabulary once, so keep the result.

    Args:
        header: of the model's file.
        template: Jinja source, as a rule the file's own.

    Raises:
        TemplateBrokenError: the template is none.
        GgufError: the file has changed since its header was read.
        OSError: the file cannot be read.
    """
    texts = tuple(_texts(header.metadata.get(_TOKENS)))
    types = _integers(header.metadata.get(_TYPES))
    compiled = JinjaTemplate(
        template,
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
