"""``/api/pull`` and ``/api/push`` where nothing reaches a network."""

from __future__ import annotations

from typing import Literal

import falcon

from server.api.body import read_object
from server.api.progress import deliver_job
from server.api.request_body import read_body
from server.catalogue import read_reference
from server.errors import BadRequestError, ForbiddenError
from server.jobs import Jobs


class Exchange:
    """One of the two calls."""

    def __init__(
        self,
        verb: Literal["pull", "push"],
        *,
        jobs: Jobs,
        allowed: bool,
        max_body_bytes: int,
    ) -> None:
        self._verb: Literal["pull", "push"] = verb
        self._jobs = jobs
        self._allowed = allowed
        self._max_body_bytes = max_body_bytes

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Do it in a process of its own."""
        fields = read_object(read_body(req, self._max_body_bytes))
        stream = fields.boolean("stream", default=True)
        name = fields.string("model") or fields.string("name")
        if not name:
            raise BadRequestError("model is required")
        if read_reference(name) is None:
            raise BadRequestError("invalid model name")
        if not self._allowed:
            raise ForbiddenError(f"{self._verb} is switched off on this server")
        deliver_job(resp, self._jobs.start(self._verb, {"model": name}), stream=stream)
