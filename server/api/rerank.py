"""``/v1/rerank`` and ``/rerank``: documents by their relevance to a query, as Jina has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import falcon

from server.api.body import read_object
from server.api.delivery import client_gone
from server.api.embed_parse import parse_rerank
from server.api.framing import JSON_TYPE, json_bytes
from server.api.request_body import read_body
from server.embedder import Embedder


class Rerank:
    """Both paths."""

    def __init__(self, *, embedder: Embedder, max_body_bytes: int) -> None:
        self._embedder = embedder
        self._max_body_bytes = max_body_bytes

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Score the documents and answer with the best."""
        body = read_object(read_body(req, self._max_body_bytes))
        request, most, with_texts = parse_rerank(body)
        done = self._embedder.rerank(replace(request, tenant=req.context.tenant), client_gone(req))
        texts = request.documents if with_texts else ()
        resp.content_type = JSON_TYPE
        resp.data = json_bytes(
            {
                "model": request.model,
                "object": "list",
                "usage": {"prompt_tokens": done.prompt_tokens, "total_tokens": done.prompt_tokens},
                "results": ranking(done.scores, most=most, texts=texts),
            }
        )


def ranking(scores: Sequence[float], *, most: int, texts: Sequence[str]) -> list[dict[str, Any]]:
    """The results, the most relevant first; equal scores keep the order of the documents.

    Args:
        scores: by document.
        most: how many results.
        texts: the documents, to be told with the results; or none.
    """
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[:most]
    results = []
    for index in order:
        result: dict[str, Any] = {"index": index, "relevance_score": scores[index]}
        if texts:
            result["document"] = {"text": texts[index]}
        results.append(result)
    return results
