"""Values of settings: raw TOML values, and texts of the environment, to what they mean. Pure.

Each reader raises `ValueError` with what it expected and what it found.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from appliance import duration
from hwprobe.errors import QuantityError, WorkerError
from hwprobe.quantity import Bytes
from hwprobe.remote.terms import WorkerAddress

_TRUE = {"1", "t", "true", "yes", "on"}
_FALSE = {"0", "f", "false", "no", "off", ""}
_REGISTRY = re.compile(
    r"https?://[A-Za-z0-9.-]+(?::[0-9]{1,5})?(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*"
)
"""Address, and repositories' common beginning as the OCI distribution specification spells it."""


def integer(*, low: int, high: int) -> Callable[[Any], int]:
    """A whole number within these bounds."""

    def read(value: Any) -> int:
        number = int(value) if isinstance(value, str) and value.strip().isdecimal() else value
        if isinstance(number, bool) or not isinstance(number, int) or not low <= number <= high:
            raise ValueError(f"expected a whole number from {low} to {high}, found {value!r}")
        return number

    return read


def boolean(value: Any) -> bool:
    """A truth value, also as a text of the environment."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in _TRUE | _FALSE:
        return value.strip().lower() in _TRUE
    raise ValueError(f"expected true or false, found {value!r}")


def switch(value: Any) -> str:
    """``auto``, or ``on`` and ``off`` in any spelling of true and false."""
    if isinstance(value, str) and value.strip().lower() in {"", "auto"}:
        return "auto"
    return "on" if boolean(value) else "off"


def text(value: Any) -> str:
    """A text, without the blanks around it."""
    if not isinstance(value, str):
        raise ValueError(f"expected a text, found {value!r}")  # noqa: TRY004 - one type for readers
    return value.strip()


def host(value: Any) -> str:
    """A name or an address to listen on."""
    name = text(value).strip("[]")
    if not name or "/" in name or " " in name:
        raise ValueError(f"expected a host name or address, found {value!r}")
    return name


def path(value: Any) -> Path:
    """A path; `anchored` has made it absolute."""
    written = text(value)
    if not written.startswith("/"):
        raise ValueError(f"expected a path, found {value!r}")
    return Path(written)


def anchored(value: Any, below: Path) -> Any:
    """A value for `path`, `optional_path` or `paths`, with relative paths made absolute.

    ``~`` means somebody's home to a shell, and nothing here: it is left, and so refused.

    Args:
        value: a text or a list of texts; anything else is left as it is.
        below: where relative paths begin.
    """
    if isinstance(value, list | tuple):
        return [anchored(part, below) for part in value]
    if not isinstance(value, str) or not value.strip() or value.strip().startswith(("/", "~")):
        return value
    return str(below / value.strip())


def optional_path(value: Any) -> Path | None:
    """A path; empty for none."""
    return None if value == "" else path(value)


def registry(value: Any) -> str:
    """The address of a registry, without a slash at its end; empty for none."""
    written = text(value).rstrip("/")
    if written and _REGISTRY.fullmatch(written) is None:
        raise ValueError(f"expected https://HOST[:PORT][/PREFIX], found {value!r}")
    return written


def seconds(value: Any) -> float:
    """A span: a number of seconds or a duration such as ``5m``."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    return duration.parse_lenient(text(value))


def positive_seconds(value: Any) -> float:
    """Seconds for a deadline; zero and less mean that there is none."""
    return max(0.0, seconds(value))


def size(value: Any) -> int:
    """Bytes, as a number or with a unit."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    try:
        return int(Bytes.parse(text(value)))
    except QuantityError as error:
        raise ValueError(str(error)) from error


def texts(value: Any) -> tuple[str, ...]:
    """A list of texts, also as one text with commas."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)) or not all(isinstance(part, str) for part in parts):
        raise ValueError(f"expected a list of texts, found {value!r}")
    return tuple(part.strip() for part in parts if part.strip())


def paths(value: Any) -> tuple[Path, ...]:
    """A list of paths, likewise."""
    return tuple(path(part) for part in texts(value))


def workers(value: Any) -> tuple[WorkerAddress, ...]:
    """A list of addresses of workers."""
    try:
        return tuple(WorkerAddress.parse(part) for part in texts(value))
    except WorkerError as error:
        raise ValueError(str(error)) from error


def one_of(*allowed: str) -> Callable[[Any], str]:
    """One of these texts."""

    def read(value: Any) -> str:
        if value not in allowed:
            names = ", ".join(repr(name) for name in allowed)
            raise ValueError(f"expected one of {names}, found {value!r}")
        return str(value)

    return read
