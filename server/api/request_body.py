"""The bytes of a request's body, within the limit, unpacked where the client has packed them."""

from __future__ import annotations

import io

import falcon
import zstandard

from server.errors import BadRequestError, BodyTooLargeError, EncodingError

MOST_UNPACKED_BYTES = 20 << 20
"""Largest body that was sent compressed. Source: Ollama's limit for ``/v1/responses``."""

_MOST_WINDOW_BYTES = 8 << 20
"""What a decoder must be able to hold. Source: RFC 8878, section 3.1.1.1.2."""


def read_body(req: falcon.Request, max_bytes: int) -> bytes:
    """The whole body; the listener refuses what is larger before it is read.

    Raises:
        BodyTooLargeError: it is over the limit.
        EncodingError: it is packed in a way that is not known here.
        BadRequestError: it cannot be unpacked.
    """
    if (req.content_length or 0) > max_bytes:
        raise BodyTooLargeError(f"request body: expected at most {max_bytes} bytes")
    body: bytes = req.bounded_stream.read(max_bytes + 1)
    if len(body) > max_bytes:
        raise BodyTooLargeError(f"request body: expected at most {max_bytes} bytes")
    encoding = (req.get_header("Content-Encoding") or "identity").strip().lower()
    if encoding == "identity":
        return body
    if encoding != "zstd":
        raise EncodingError(f"Content-Encoding: expected zstd or none, found {encoding!r:.40}")
    return _unpacked(body, min(max_bytes, MOST_UNPACKED_BYTES))


def _unpacked(body: bytes, max_bytes: int) -> bytes:
    unpacker = zstandard.ZstdDecompressor(max_window_size=_MOST_WINDOW_BYTES)
    try:
        with unpacker.stream_reader(io.BytesIO(body), read_across_frames=True) as reader:
            plain = reader.read(max_bytes + 1)
    except zstandard.ZstdError as error:
        raise BadRequestError("request body: expected zstd, found other bytes") from error
    if len(plain) > max_bytes:
        raise BodyTooLargeError(f"request body: expected at most {max_bytes} bytes when unpacked")
    return plain
