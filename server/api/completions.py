"""OpenAI's legacy ``/v1/completions``."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable

import falcon

from server.answer import Answerer
from server.api.body import read_object
from server.api.choices import deliver_choices
from server.api.completions_parse import parse_completion
from server.api.completions_write import CompletionWriter
from server.api.delivery import client_gone
from server.api.framing import NS_PER_S
from server.api.guard import asked_by
from server.api.request_body import read_body

Clock = Callable[[], int]


class Completions:
    """``/v1/completions``."""

    def __init__(self, *, answerer: Answerer, now_ns: Clock, max_body_bytes: int) -> None:
        self._answerer = answerer
        self._now_ns = now_ns
        self._max_body_bytes = max_body_bytes

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Complete some prompts."""
        completion = parse_completion(read_object(read_body(req, self._max_body_bytes)))
        writer = CompletionWriter(
            completion,
            id=f"cmpl-{secrets.token_hex(12)}",
            created_s=self._now_ns() // NS_PER_S,
        )
        deliver_choices(
            resp,
            [
                functools.partial(self._answerer.generate, asked_by(req, one))
                for one in completion.requests
            ],
            writer,
            gone=client_gone(req),
            stream=completion.requests[0].stream,
        )
