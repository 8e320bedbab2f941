"""Ollama's blobs: files that a client brings before it makes a model of them."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from typing import Any, Literal

import falcon

from appliance.errors import AppError, BlobMismatchError, BlobTooLargeError, NoSpaceError
from appliance.store import Store
from appliance.uploads import UploadLimits, renew
from bundler.format.digest import Digest
from server.api.framing import JSON_TYPE
from server.arriving import BodyBrokenError
from server.errors import (
    BadRequestError,
    BodyTooLargeError,
    BusyError,
    ClientGoneError,
    ForbiddenError,
    ModelNotFoundError,
    NoRoomError,
    ServerError,
)

MAX_UPLOADS = 8
"""Uploads at the same time. Each has a thread and some megabytes; more only make all slower."""

_PIECE_BYTES = 1 << 20
_DIGEST = re.compile(r"sha256[:-]([0-9a-fA-F]{64})")


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatePolicy:
    """What clients may add to the store.

    Attributes:
        allowed: ``trust.create``: anything, models made from signed ones, or nothing.
        upload: limits of one blob.
        pull: ``exchange.pull``: whether they may pull.
    """

    allowed: Literal["any", "signed", "off"]
    upload: UploadLimits
    pull: bool = True

    def refuse_unless(self, *, files: bool) -> None:
        """Refuse what the site's policy does not allow.

        Args:
            files: weights that the client brought are part of it.

        Raises:
            ForbiddenError: it is switched off.
        """
        if self.allowed == "off":
            raise ForbiddenError("creating models is switched off on this server")
        if self.allowed == "signed" and files:
            raise ForbiddenError(
                "models are made on this server only from models that came in a signed bundle"
            )


def read_digest(text: str) -> Digest:
    """A digest as clients write it, ``sha256:`` or ``sha256-`` and 64 digits.

    Raises:
        BadRequestError: it is none.
    """
    match = _DIGEST.fullmatch(text)
    if match is None:
        raise BadRequestError("invalid digest format")
    return Digest(match[1].lower())


class Blob:
    """``/api/blobs/{digest}``."""

    def __init__(self, *, store: Store, policy: CreatePolicy) -> None:
        self._store = store
        self._policy = policy
        self._free = threading.BoundedSemaphore(MAX_UPLOADS)

    def on_head(self, _req: falcon.Request, resp: falcon.Response, digest: str) -> None:
        """Whether the blob is here; if so it is kept for another while."""
        wanted = read_digest(digest)
        if not renew(self._store.paths, wanted):
            raise ModelNotFoundError(f'blob "{wanted}" not found')
        resp.content_type = JSON_TYPE
        resp.data = b""

    def on_post(self, req: falcon.Request, resp: falcon.Response, digest: str) -> None:
        """Take a blob; one that is here is not read again."""
        wanted = read_digest(digest)
        self._policy.refuse_unless(files=True)
        resp.content_type = JSON_TYPE
        resp.data = b""
        if renew(self._store.paths, wanted):
            return
        if not self._free.acquire(blocking=False):
            raise BusyError(f"{MAX_UPLOADS} blobs are being sent already, please try again")
        try:
            self._receive(req, wanted)
        except AppError as error:
            raise _refusal(error) from error
        except BodyBrokenError as error:
            raise ClientGoneError("the body broke off") from error
        finally:
            self._free.release()
        resp.status = falcon.HTTP_201

    def _receive(self, req: falcon.Request, wanted: Digest) -> None:
        body: Any = req.env["wsgi.input"]
        with self._store.receiving(wanted, self._policy.upload) as upload:
            if req.content_length is not None:
                upload.reserve(req.content_length)
            while piece := body.read(_PIECE_BYTES):
                upload.write(piece)


def _refusal(error: AppError) -> ServerError:
    match error:
        case BlobMismatchError():
            return BadRequestError(str(error))
        case BlobTooLargeError():
            return BodyTooLargeError(str(error))
        case NoSpaceError():
            return NoRoomError(str(error), hint=error.hint)
        case _:
            return ServerError(str(error), hint=error.hint)
