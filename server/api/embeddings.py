"""Ollama's ``/api/embed`` and ``/api/embeddings``, and OpenAI's ``/v1/embeddings``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import falcon

from server.api.body import read_object
from server.api.delivery import client_gone
from server.api.embed_parse import parse_embed, parse_embeddings, parse_openai
from server.api.framing import JSON_TYPE, json_bytes, nanoseconds
from server.api.request_body import read_body
from server.embedder import Embedder, EmbedRequest


class Embed:
    """``/api/embed``."""

    def __init__(self, *, embedder: Embedder, max_body_bytes: int) -> None:
        self._embedder = embedder
        self._max_body_bytes = max_body_bytes

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Embed one text or many."""
        request = parse_embed(read_object(read_body(req, self._max_body_bytes)))
        done = self._embedder.embed(_asked_by(req, request), client_gone(req))
        metrics = {
            "total_duration": nanoseconds(done.total_s),
            "load_duration": nanoseconds(done.load_s),
            "prompt_eval_count": done.prompt_tokens,
        }
        resp.content_type = JSON_TYPE
        resp.data = with_vectors(
            {"model": request.model},
            "embeddings",
            done.vectors,
            {name: value for name, value in metrics.items() if value},
        )


class Embeddings:
    """``/api/embeddings``, which Ollama calls deprecated and much code still calls."""

    def __init__(self, *, embedder: Embedder, max_body_bytes: int) -> None:
        self._embedder = embedder
        self._max_body_bytes = max_body_bytes

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Embed one text."""
        request = parse_embeddings(read_object(read_body(req, self._max_body_bytes)))
        done = self._embedder.embed(_asked_by(req, request), client_gone(req))
        vector = done.vectors[0] if done.vectors else "[]"
        resp.content_type = JSON_TYPE
        resp.data = b'{"embedding":' + vector.encode() + b"}"


class OpenAiEmbeddings:
    """``/v1/embeddings``."""

    def __init__(self, *, embedder: Embedder, max_body_bytes: int) -> None:
        self._embedder = embedder
        self._max_body_bytes = max_body_bytes

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Embed texts or tokens."""
        request = parse_openai(read_object(read_body(req, self._max_body_bytes)))
        done = self._embedder.embed(_asked_by(req, request), client_gone(req))
        quoted = request.form == "base64"
        data = (
            f'{{"object":"embedding","embedding":{_value(vector, quoted=quoted)},"index":{index}}}'
            for index, vector in enumerate(done.vectors)
        )
        usage = {"prompt_tokens": done.prompt_tokens, "total_tokens": done.prompt_tokens}
        resp.content_type = JSON_TYPE
        resp.data = with_vectors(
            {"object": "list"}, "data", data, {"model": request.model, "usage": usage}
        )


def with_vectors(
    before: Mapping[str, Any], name: str, vectors: Iterable[str], after: Mapping[str, Any]
) -> bytes:
    """A JSON object with an array that is written already, between other fields.

    Vectors come as text from the runner; reading and writing their numbers here again would cost
    more than computing a short text.

    Args:
        before: fields in front; at least one.
        name: of the array.
        vectors: its items, as JSON.
        after: fields behind.
    """
    head = json_bytes(before)[:-1] + b"," + json_bytes({name: 0})[1:-2]
    tail = b"," + json_bytes(after)[1:] if after else b"}"
    return b"".join((head, b"[", ",".join(vectors).encode(), b"]", tail))


def _asked_by(req: falcon.Request, request: EmbedRequest) -> EmbedRequest:
    return replace(request, tenant=req.context.tenant)


def _value(vector: str, *, quoted: bool) -> str:
    return f'"{vector}"' if quoted else vector
