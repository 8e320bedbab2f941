"""Ollama's ``/api/generate`` and ``/api/chat``, and its liveness calls."""

from __future__ import annotations

from collections.abc import Callable

import falcon

from server.answer import Answerer
from server.api.body import read_object
from server.api.delivery import client_gone, deliver
from server.api.framing import JSON_TYPE, TEXT_TYPE, json_bytes
from server.api.guard import asked_by
from server.api.ollama_parse import parse_chat, parse_generate
from server.api.ollama_write import OllamaWriter
from server.api.request_body import read_body

Clock = Callable[[], int]
"""Wall time in nanoseconds since the epoch."""


class Heartbeat:
    """``/``: clients ask here whether anybody is at home."""

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        """The text every client knows."""
        resp.content_type = TEXT_TYPE
        resp.text = "Ollama is running"

    on_head = on_get


class Version:
    """``/api/version``: an Ollama release, because clients compare it with one."""

    def __init__(self, version: str) -> None:
        self._version = version

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        """The configured version."""
        resp.content_type = JSON_TYPE
        resp.data = json_bytes({"version": self._version})

    on_head = on_get


class Generate:
    """``/api/generate``."""

    def __init__(self, *, answerer: Answerer, now_ns: Clock, max_body_bytes: int) -> None:
        self._answerer = answerer
        self._now_ns = now_ns
        self._max_body_bytes = max_body_bytes

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Complete a prompt."""
        request = asked_by(req, parse_generate(read_object(read_body(req, self._max_body_bytes))))
        writer = OllamaWriter(call="generate", model=request.model, now_ns=self._now_ns)
        gone = client_gone(req)
        if request.debug_render_only:
            rendered = self._answerer.render_generate(request, gone)
            resp.content_type = JSON_TYPE
            resp.data = json_bytes(writer.rendered(rendered, len(request.images)))
            return
        deliver(resp, self._answerer.generate(request, gone), writer, stream=request.stream)


class Chat:
    """``/api/chat``."""

    def __init__(self, *, answerer: Answerer, now_ns: Clock, max_body_bytes: int) -> None:
        self._answerer = answerer
        self._now_ns = now_ns
        self._max_body_bytes = max_body_bytes

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Continue a conversation."""
        request = asked_by(req, parse_chat(read_object(read_body(req, self._max_body_bytes))))
        writer = OllamaWriter(call="chat", model=request.model, now_ns=self._now_ns)
        gone = client_gone(req)
        if request.debug_render_only:
            rendered = self._answerer.render_chat(request, gone)
            resp.content_type = JSON_TYPE
            images = sum(len(message.images) for message in request.messages)
            resp.data = json_bytes(writer.rendered(rendered, images))
            return
        deliver(resp, self._answerer.chat(request, gone), writer, stream=request.stream)
