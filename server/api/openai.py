"""OpenAI's ``/v1/chat/completions`` and ``/v1/models``."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable
from typing import Any

import falcon

from server.answer import Answerer
from server.api.body import read_object
from server.api.choices import deliver_choices
from server.api.delivery import client_gone
from server.api.framing import JSON_TYPE, NS_PER_S, json_bytes
from server.api.guard import asked_by
from server.api.openai_parse import parse_chat_completion
from server.api.openai_write import OpenAiWriter
from server.api.request_body import read_body
from server.catalogue import Catalogue, ServedModel, read_reference
from server.errors import ModelNotFoundError

Clock = Callable[[], int]


class ChatCompletions:
    """``/v1/chat/completions``."""

    def __init__(self, *, answerer: Answerer, now_ns: Clock, max_body_bytes: int) -> None:
        self._answerer = answerer
        self._now_ns = now_ns
        self._max_body_bytes = max_body_bytes

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Continue a conversation."""
        parsed = parse_chat_completion(read_object(read_body(req, self._max_body_bytes)))
        writer = OpenAiWriter(
            id=f"chatcmpl-{secrets.token_hex(12)}",
            model=parsed.request.model,
            created_s=self._now_ns() // NS_PER_S,
            n=len(parsed.requests),
            include_usage=parsed.include_usage,
        )
        deliver_choices(
            resp,
            [functools.partial(self._answerer.chat, asked_by(req, one)) for one in parsed.requests],
            writer,
            gone=client_gone(req),
            stream=parsed.request.stream,
        )


class Models:
    """``/v1/models``."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        """All models, newest first; an empty list when there are none."""
        data = [_model(model) for model in self._catalogue.all()]
        resp.content_type = JSON_TYPE
        resp.data = json_bytes({"object": "list", "data": data})


class Model:
    """``/v1/models/{model}``; the name may hold slashes."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def on_get(self, _req: falcon.Request, resp: falcon.Response, model: str) -> None:
        """One model."""
        name = read_reference(model)
        found = self._catalogue.find(name) if name is not None else None
        if found is None:
            raise ModelNotFoundError(f"model '{model}' not found")
        resp.content_type = JSON_TYPE
        resp.data = json_bytes(_model(found))


def _model(model: ServedModel) -> dict[str, Any]:
    installed = model.installed
    return {
        "id": installed.name.short(),
        "object": "model",
        "created": int(installed.modified_at_s),
        "owned_by": installed.name.namespace,
    }
