"""The bytes of a request's body, within the limit."""

from __future__ import annotations

import falcon

from server.errors import BodyTooLargeError


def read_body(req: falcon.Request, max_bytes: int) -> bytes:
    """The whole body; the listener refuses what is larger before it is read.

    Raises:
        BodyTooLargeError: it is over the limit.
    """
    if (req.content_length or 0) > max_bytes:
        raise BodyTooLargeError(f"request body: expected at most {max_bytes} bytes")
    body: bytes = req.bounded_stream.read(max_bytes + 1)
    if len(body) > max_bytes:
        raise BodyTooLargeError(f"request body: expected at most {max_bytes} bytes")
    return body
