r"""How JSON travels: a line of NDJSON, an event of SSE, and the timestamps inside. Pure.

Rules:
 * an NDJSON record is one object and ``\n``; nothing marks the end of the stream;
 * an SSE record is ``data: `` and one object and a blank line; in OpenAI's chat and completions
   ``data: [DONE]`` ends the stream, elsewhere each record has a name and the last one tells;
 * text goes out as UTF-8, not as ``\u`` escapes; no record holds a raw line break.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

JSON_TYPE = "application/json; charset=utf-8"
NDJSON_TYPE = "application/x-ndjson"
SSE_TYPE = "text/event-stream"
TEXT_TYPE = "text/plain; charset=utf-8"

SSE_DONE = b"data: [DONE]\n\n"
"""The last event of every OpenAI stream, also after an error."""

NS_PER_S = 1_000_000_000
LONGEST_DURATION_NS = (1 << 63) - 1
"""What "for ever" is in Ollama's answers: the largest Go duration, about 292 years."""


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """One JSON object without line breaks, as UTF-8; key order is kept.

    What JSON cannot carry, ``null`` and U+FFFD stand for: numbers that are none, half surrogates.
    """
    try:
        return _dump(value)
    except ValueError:
        return _dump(_sayable(value))


def _dump(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _sayable(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case str():
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        case list() | tuple():
            return [_sayable(item) for item in value]
        case Mapping():
            return {_sayable(key): _sayable(item) for key, item in value.items()}
        case _:
            return value


def ndjson_line(value: Mapping[str, Any]) -> bytes:
    """One NDJSON record."""
    return json_bytes(value) + b"\n"


def sse_event(value: Mapping[str, Any]) -> bytes:
    """One unnamed server-sent event."""
    return b"data: " + json_bytes(value) + b"\n\n"


def named_event(name: str, value: Mapping[str, Any]) -> bytes:
    """One server-sent event with its name."""
    return b"event: " + name.encode() + b"\ndata: " + json_bytes(value) + b"\n\n"


def utc_timestamp(wall_ns: int) -> str:
    """RFC 3339 with nine digits and ``Z``, from nanoseconds since the epoch."""
    seconds, nanoseconds = divmod(wall_ns, NS_PER_S)
    moment = datetime.fromtimestamp(seconds, tz=UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"


def local_timestamp(wall_ns: int) -> str:
    """RFC 3339 with nine digits and this machine's offset, from nanoseconds since the epoch."""
    seconds, nanoseconds = divmod(wall_ns, NS_PER_S)
    moment = datetime.fromtimestamp(seconds, tz=UTC).astimezone()
    offset = moment.isoformat()[-6:]
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}{offset}"


def nanoseconds(seconds: float) -> int:
    """Seconds as the whole nanoseconds Ollama reports."""
    return round(seconds * NS_PER_S)
