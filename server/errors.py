"""The errors of this package, and the one table that gives each its HTTP status.

ServerError
├── BadRequestError        400  a field is missing, of the wrong type, or out of range
├── ForbiddenError         403  refused by policy (cloud features, scopes)
├── UnauthorizedError      401  no key, or a wrong one
├── ModelNotFoundError     404  no such model
├── BodyTooLargeError      413  the request body is over the limit
├── EncodingError          415  the request body is packed in a way that is not known here
├── ClientGoneError        499  the client left before the answer began
├── RunnerCrashedError     500  the model's process died
├── LoadFailedError        500  the model could not be loaded
├── EngineRefusedError     500  the engine failed at this one request
├── BusyError              503  the queue is full, or the server is stopping
├── HeldBackError          503  it crashed the engine before, and is refused for a while
├── DeadlineError          504  its time was over before there was anything to answer
├── DoesNotFitError        507  the model does not fit this machine
└── NoRoomError            507  the store's file system is too full
"""

from __future__ import annotations


class ServerError(Exception):
    """Root: one lower-case line that names field, expectation and finding."""

    status = 500

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class BadRequestError(ServerError):
    """A field is missing, of the wrong type, or out of range."""

    status = 400


class UnauthorizedError(ServerError):
    """No key was sent, or one that is not known."""

    status = 401


class ForbiddenError(ServerError):
    """Refused by policy."""

    status = 403


class ModelNotFoundError(ServerError):
    """No model of that name is installed."""

    status = 404


class BodyTooLargeError(ServerError):
    """The request body is over the limit."""

    status = 413


class EncodingError(ServerError):
    """The request body is packed in a way that is not known here."""

    status = 415


class ClientGoneError(ServerError):
    """The client left before the answer began."""

    status = 499


class RunnerCrashedError(ServerError):
    """The model's process died; the message says how."""


class LoadFailedError(ServerError):
    """The model could not be loaded; the message holds the engine's last words."""


class EngineRefusedError(ServerError):
    """The engine failed at this one request (no usable probabilities, a grammar without end)."""


class BusyError(ServerError):
    """The queue is full, or the server is stopping."""

    status = 503


class HeldBackError(ServerError):
    """A request or a load that crashed the engine before; it is refused for a while.

    Attributes:
        retry_after_s: seconds until it will be tried again.
    """

    status = 503

    def __init__(self, message: str, *, hint: str = "", retry_after_s: float = 0.0) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class DeadlineError(ServerError):
    """The request's time was over before there was anything to answer."""

    status = 504


class DoesNotFitError(ServerError):
    """The model does not fit this machine, whatever is unloaded."""

    status = 507


class NoRoomError(ServerError):
    """The store's file system is too full."""

    status = 507
