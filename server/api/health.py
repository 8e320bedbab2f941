"""Liveness and readiness, for probes and service managers."""

from __future__ import annotations

from collections.abc import Callable

import falcon

from server.api.framing import JSON_TYPE, json_bytes

Readiness = Callable[[], tuple[str, ...]]
"""What stands in the way of answering, one line each; nothing when ready."""


class Healthz:
    """``/healthz``: the process answers."""

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        """Always the same, whatever the models do."""
        resp.content_type = JSON_TYPE
        resp.data = json_bytes({"status": "ok"})

    on_head = on_get


class Readyz:
    """``/readyz``: a request would be served."""

    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        """200, or 503 with the reasons."""
        reasons = self._readiness()
        resp.content_type = JSON_TYPE
        if reasons:
            resp.status = falcon.HTTP_503
            resp.data = json_bytes({"status": "not ready", "reasons": list(reasons)})
        else:
            resp.data = json_bytes({"status": "ready"})

    on_head = on_get
