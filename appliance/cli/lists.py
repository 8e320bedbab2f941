"""Tables of models, from the store or from a server's answer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from appliance import human

HEADER = ("NAME", "ID", "SIZE", "MODIFIED")


def model_table(tags: Mapping[str, Any], prefix: str) -> str:
    """The table of ``/api/tags``, of the names that begin like this."""
    now_s = time.time()
    listed = tags.get("models")
    rows = [
        (
            human.printable(str(model.get("name", ""))),
            human.printable(str(model.get("digest", ""))).removeprefix("sha256:")[:12],
            human.size(count(model, "size")),
            human.moment(seconds(str(model.get("modified_at", ""))), now_s=now_s),
        )
        for model in (listed if isinstance(listed, list) else ())
        if isinstance(model, dict)
        and str(model.get("name", "")).lower().startswith(prefix.strip().lower())
    ]
    return human.table(HEADER, rows)


def count(model: Mapping[str, Any], name: str) -> int:
    """A whole number of an answer, 0 if it is none."""
    value = model.get(name)
    return value if isinstance(value, int) else 0


def seconds(text: str) -> float | None:
    """Seconds since the epoch of an RFC 3339 time with up to nine digits of a second."""
    head, dot, rest = text.partition(".")
    if dot:
        digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
        text = f"{head}.{digits[:6]}{rest[len(digits) :]}"
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment.timestamp() if moment.year > 1 else None
