"""``/openapi.json``: what this server answers, for programs."""

from __future__ import annotations

import falcon

from server.api.framing import JSON_TYPE, json_bytes
from server.api.openapi import document
from server.api.operations import OPERATIONS


class Describe:
    """``/openapi.json``."""

    def __init__(self, version: str) -> None:
        """Make the document once.

        Args:
            version: of this software.
        """
        self._document = json_bytes(document(OPERATIONS, version=version))

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        """The document."""
        resp.content_type = JSON_TYPE
        resp.data = self._document
