"""Bodies that ask for embeddings or a ranking, to our vocabulary. Pure.

What ``input`` may be is looked at before the model is, as Ollama does.
"""

from __future__ import annotations

from typing import Any

from server.api.body import Fields, type_name, whole_number
from server.api.keep_alive import parse_keep_alive
from server.embedder import EmbedRequest, RerankRequest
from server.errors import BadRequestError
from server.runner.protocol import VectorForm

INVALID_TYPE = "invalid input type"
INVALID_INPUT = "invalid input"
_FORMATS: dict[str, VectorForm] = {"": "float32", "float": "float32", "base64": "base64"}


def parse_embed(fields: Fields) -> EmbedRequest:
    """The body of ``/api/embed``.

    Raises:
        BadRequestError: a field has the wrong type.
    """
    return EmbedRequest(
        **_shared(fields),
        texts=_texts(fields.values.get("input")),
        truncate=fields.boolean("truncate", default=True),
        dimensions=fields.integer("dimensions"),
    )


def parse_embeddings(fields: Fields) -> EmbedRequest:
    """The body of ``/api/embeddings``.

    Raises:
        BadRequestError: a field has the wrong type.
    """
    prompt = fields.string("prompt")
    return EmbedRequest(
        **_shared(fields), texts=(prompt,) if prompt else (), normalize=None, form="float64"
    )


def parse_openai(fields: Fields) -> EmbedRequest:
    """The body of ``/v1/embeddings``.

    Raises:
        BadRequestError: a field has the wrong type or an impossible value.
    """
    shared = _shared(fields)
    dimensions = fields.integer("dimensions")
    wanted = fields.string("encoding_format")
    if wanted not in _FORMATS:
        raise BadRequestError(
            f"Invalid value for 'encoding_format' = {wanted}. "
            "Supported values: ['float', 'base64']."
        )
    value = fields.values.get("input")
    if value is None or value == []:
        raise BadRequestError(INVALID_INPUT)
    texts: tuple[str, ...] = ()
    tokens: tuple[tuple[int, ...], ...] = ()
    if isinstance(value, list) and not isinstance(value[0], str):
        tokens = _token_lists(value)
    else:
        texts = (value,) if value == "" else _texts(value)
    return EmbedRequest(
        **shared, texts=texts, tokens=tokens, dimensions=dimensions, form=_FORMATS[wanted]
    )


def parse_rerank(fields: Fields) -> tuple[RerankRequest, int, bool]:
    """The body of ``/v1/rerank``: the request, how many results, and whether with their texts.

    Raises:
        BadRequestError: a field has the wrong type or is missing.
    """
    if not fields.has("query"):
        raise BadRequestError("query: expected string, found nothing")
    documents = tuple(
        _document(value, at=f"{fields.path('documents')}[{index}]")
        for index, value in enumerate(fields.array("documents"))
    )
    if not documents:
        raise BadRequestError("documents: expected at least one, found none")
    request = RerankRequest(
        **_shared(fields),
        query=fields.string("query"),
        documents=documents,
        truncate=fields.boolean("truncate", default=True),
    )
    most = len(documents)
    if fields.has("top_n"):
        most = fields.integer("top_n")
        if most < 1:
            raise BadRequestError(f"top_n: expected at least 1, found {most}")
    return request, most, fields.boolean("return_documents", default=False)


def _shared(fields: Fields) -> dict[str, Any]:
    return {
        "model": fields.string("model"),
        "options": fields.object("options").values,
        "keep_alive_s": parse_keep_alive(fields.values.get("keep_alive")),
    }


def _texts(value: Any) -> tuple[str, ...]:
    """A text or a list of texts; a single empty one counts as none, one in a list does not."""
    match value:
        case None | "":
            return ()
        case str():
            return (value,)
        case list() if all(isinstance(item, str) for item in value):
            return tuple(value)
        case _:
            raise BadRequestError(INVALID_TYPE)


def _token_lists(value: list[Any]) -> tuple[tuple[int, ...], ...]:
    """One list of token ids, or several."""
    lists = value if isinstance(value[0], list) else [value]
    found = []
    for ids in lists:
        if not isinstance(ids, list):
            raise BadRequestError(INVALID_TYPE)
        whole = [whole_number(token) for token in ids]
        if any(token is None for token in whole):
            raise BadRequestError(INVALID_TYPE)
        found.append(tuple(token for token in whole if token is not None))
    return tuple(found)


def _document(value: Any, *, at: str) -> str:
    """A text, or an object that holds one."""
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str):
        where = f"{at}.text" if isinstance(value, dict) else at
        found = "nothing" if text is None else type_name(text)
        raise BadRequestError(f"{where}: expected string, found {found}")
    return text
