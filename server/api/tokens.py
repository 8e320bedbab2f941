"""llama-server's ``/tokenize``, ``/detokenize`` and ``/apply-template``, and Ollama's proposals.

Ollama has neither call; ``/api/tokenize`` and ``/api/detokenize`` follow the pull requests for it.
"""

from __future__ import annotations

from typing import Any

import falcon

from server.answer import Answerer
from server.api.body import Fields, read_object
from server.api.delivery import client_gone
from server.api.framing import JSON_TYPE, json_bytes, nanoseconds
from server.api.guard import asked_by
from server.api.keep_alive import parse_keep_alive
from server.api.openai_parse import parse_chat_completion
from server.api.request_body import read_body
from server.errors import BadRequestError
from server.tokenizing import DetokenizeRequest, Lexed, TokenizeRequest, Tokenizing


class Tokenize:
    """``/tokenize``, and ``/api/tokenize`` with Ollama's durations."""

    def __init__(self, *, tokenizing: Tokenizing, max_body_bytes: int, durations: bool) -> None:
        self._tokenizing = tokenizing
        self._max_body_bytes = max_body_bytes
        self._durations = durations

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Turn text into tokens."""
        fields = read_object(read_body(req, self._max_body_bytes))
        request = parse_tokenize(fields)
        with_pieces = fields.boolean("with_pieces", default=False)
        done = self._tokenizing.tokenize(request, client_gone(req))
        answer: dict[str, Any] = {"tokens": list(done.tokens)}
        if with_pieces:
            pairs = zip(done.tokens, done.pieces, strict=True)
            answer = {"tokens": [{"id": token, "piece": readable(raw)} for token, raw in pairs]}
        if self._durations:
            answer = {"model": request.model, **answer, **_durations(done)}
        resp.content_type = JSON_TYPE
        resp.data = json_bytes(answer)


class Detokenize:
    """``/detokenize``, and ``/api/detokenize`` with Ollama's durations."""

    def __init__(self, *, tokenizing: Tokenizing, max_body_bytes: int, durations: bool) -> None:
        self._tokenizing = tokenizing
        self._max_body_bytes = max_body_bytes
        self._durations = durations

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Turn tokens into text."""
        request = parse_detokenize(read_object(read_body(req, self._max_body_bytes)))
        done = self._tokenizing.detokenize(request, client_gone(req))
        answer: dict[str, Any] = {"content": done.text}
        if self._durations:
            answer = {"model": request.model, **answer, **_durations(done)}
        resp.content_type = JSON_TYPE
        resp.data = json_bytes(answer)


class ApplyTemplate:
    """``/apply-template``: the prompt a conversation comes to."""

    def __init__(self, *, answerer: Answerer, max_body_bytes: int) -> None:
        self._answerer = answerer
        self._max_body_bytes = max_body_bytes

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Render messages; the body is that of ``/v1/chat/completions``."""
        fields = read_object(read_body(req, self._max_body_bytes))
        request = asked_by(req, parse_chat_completion(fields).request)
        prompt = self._answerer.render_chat(request, client_gone(req)).text
        resp.content_type = JSON_TYPE
        resp.data = json_bytes({"prompt": prompt})


def parse_tokenize(fields: Fields) -> TokenizeRequest:
    """The body of both calls to tokenize.

    Raises:
        BadRequestError: a field has the wrong type, or there is no text.
    """
    name = "content" if fields.has("content") else "text"
    if not fields.has(name):
        raise BadRequestError("content: expected string, found nothing")
    return TokenizeRequest(
        model=fields.string("model"),
        text=fields.string(name),
        add_special=fields.boolean("add_special", default=False),
        parse_special=fields.boolean("parse_special", default=True),
        options=fields.object("options").values,
        keep_alive_s=parse_keep_alive(fields.values.get("keep_alive")),
    )


def parse_detokenize(fields: Fields) -> DetokenizeRequest:
    """The body of both calls to detokenize.

    Raises:
        BadRequestError: a field has the wrong type.
    """
    tokens = fields.array("tokens")
    for index, token in enumerate(tokens):
        if isinstance(token, bool) or not isinstance(token, int) or token < 0:
            raise BadRequestError(f"tokens[{index}]: expected token id, found {token!r:.40}")
    return DetokenizeRequest(
        model=fields.string("model"),
        tokens=tokens,
        options=fields.object("options").values,
        keep_alive_s=parse_keep_alive(fields.values.get("keep_alive")),
    )


def readable(raw: bytes) -> str | list[int]:
    """The text of a token, or its bytes where they are no whole characters."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return list(raw)


def _durations(done: Lexed) -> dict[str, int]:
    return {
        "total_duration": nanoseconds(done.total_s),
        "load_duration": nanoseconds(done.load_s),
    }
