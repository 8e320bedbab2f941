"""How long a model stays after a request: ``keep_alive`` in every form Ollama takes. Pure."""

from __future__ import annotations

from typing import Any

from appliance import duration
from server.errors import BadRequestError

FOR_EVER_S = -1.0
"""Any negative keep-alive means this."""

LONGEST_S = float((1 << 63) // 1_000_000_000)
"""The largest Go duration, about 292 years; what is longer means for ever."""

_GO_TYPES = {bool: "bool", list: "[]interface {}", dict: "map[string]interface {}"}


def parse_keep_alive(value: Any) -> float | None:
    """Seconds; negative for ever; ``None`` where the client left it to the server.

    Raises:
        BadRequestError: it is neither a number nor a duration such as ``5m``; the words are Go's.
    """
    if value is None:
        return None
    if type(value) in _GO_TYPES:
        raise BadRequestError(f"Unsupported type: '{_GO_TYPES[type(value)]}'")
    if isinstance(value, str):
        try:
            value = duration.parse(value)
        except ValueError as error:
            raise BadRequestError(str(error)) from error
    return FOR_EVER_S if value < 0 or value >= LONGEST_S else float(value)
