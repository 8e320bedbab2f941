"""Long work on the store in a process of its own: what the server asks for, and what it hears.

The server starts ``python -P -m appliance.job``, writes one request to its standard input, and
reads one JSON object per line from its standard output: steps in Ollama's words, and last either
``{"status": "success"}`` or ``{"error": text, "status": HTTP status}``. A file that crashes a
parser, or a disk that stands still, costs this process only. It dies with the server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from appliance.errors import (
    AppError,
    ConfigError,
    ImportRefusedError,
    ModelMissingError,
    NoSpaceError,
    PolicyError,
    RequestError,
    StoreBusyError,
)
from bundler.format.errors import NoSpaceError as MediumFullError

Verb = Literal["create", "pull", "push"]

MODULE = "appliance.job"
_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (ConfigError, 500),
    (RequestError, 400),
    (ImportRefusedError, 400),
    (ModelMissingError, 404),
    (PolicyError, 403),
    (StoreBusyError, 503),
    (NoSpaceError, 507),
    (MediumFullError, 507),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """What is to be done, and with which configuration.

    Attributes:
        verb: what.
        body: its own fields.
        config_file: the configuration file the server was started with, or ``None``.
        flags: settings that the server's command line gave, by name.
    """

    verb: Verb
    body: Mapping[str, Any]
    config_file: str | None
    flags: Mapping[str, Any]


def status_of(error: Exception) -> int:
    """The HTTP status of what went wrong."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def failure(error: Exception) -> dict[str, Any]:
    """The last line of a job that failed."""
    text = str(error) if isinstance(error, AppError) or str(error) else type(error).__name__
    return {"error": text, "status": status_of(error)}
