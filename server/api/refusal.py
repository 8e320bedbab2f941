"""An error as the body that clients of a path expect. Pure."""

from __future__ import annotations

from typing import Any

from server.api import anthropic_write, openai_write

_ANTHROPIC = "/v1/messages"
_OPENAI = ("/v1/", "/infill")


def refusal(path: str, message: str, status: int) -> dict[str, Any]:
    """The error body of the dialect that is spoken below this path."""
    if path == _ANTHROPIC or path.startswith(_ANTHROPIC + "/"):
        return anthropic_write.error_body(message, status)
    if path.startswith(_OPENAI):
        return openai_write.error_body(message, status)
    return {"error": message}
