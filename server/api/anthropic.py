"""Anthropic's ``/v1/messages`` and ``/v1/messages/count_tokens``."""

from __future__ import annotations

import secrets

import falcon

from server.answer import Answerer
from server.api.anthropic_parse import parse_count, parse_messages
from server.api.anthropic_write import AnthropicWriter
from server.api.body import read_object
from server.api.delivery import client_gone, deliver
from server.api.framing import JSON_TYPE, json_bytes
from server.api.guard import asked_by
from server.api.request_body import read_body


class Messages:
    """``/v1/messages``."""

    def __init__(self, *, answerer: Answerer, max_body_bytes: int) -> None:
        self._answerer = answerer
        self._max_body_bytes = max_body_bytes

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Continue a conversation."""
        request = parse_messages(read_object(read_body(req, self._max_body_bytes)))
        writer = AnthropicWriter(id=f"msg_{secrets.token_hex(12)}", model=request.model)
        chunks = self._answerer.chat(asked_by(req, request), client_gone(req))
        deliver(resp, chunks, writer, stream=request.stream)


class CountTokens:
    """``/v1/messages/count_tokens``: the length of the prompt a conversation comes to."""

    def __init__(self, *, answerer: Answerer, max_body_bytes: int) -> None:
        self._answerer = answerer
        self._max_body_bytes = max_body_bytes

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Count, with the model's own tokenizer; it is loaded for that."""
        request = parse_count(read_object(read_body(req, self._max_body_bytes)))
        count = self._answerer.count_chat(asked_by(req, request), client_gone(req))
        resp.content_type = JSON_TYPE
        resp.data = json_bytes({"input_tokens": count})
