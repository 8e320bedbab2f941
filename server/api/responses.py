"""OpenAI's ``/v1/responses``, stateless."""

from __future__ import annotations

from collections.abc import Callable

import falcon

from server.answer import Answerer
from server.api.body import read_object
from server.api.delivery import client_gone, deliver
from server.api.framing import NS_PER_S
from server.api.guard import asked_by
from server.api.request_body import read_body
from server.api.responses_parse import parse_response
from server.api.responses_write import ResponsesWriter

Clock = Callable[[], int]


class Responses:
    """``/v1/responses``."""

    def __init__(self, *, answerer: Answerer, now_ns: Clock, max_body_bytes: int) -> None:
        self._answerer = answerer
        self._now_ns = now_ns
        self._max_body_bytes = max_body_bytes

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer; nothing is kept."""
        call = parse_response(read_object(read_body(req, self._max_body_bytes)))
        writer = ResponsesWriter(
            model=call.request.model,
            echo=call.echo,
            now_s=lambda: self._now_ns() // NS_PER_S,
        )
        chunks = self._answerer.chat(asked_by(req, call.request), client_gone(req))
        deliver(resp, chunks, writer, stream=call.request.stream)
