"""Durations as Go writes them: ``5m``, ``1h30m``, ``300ms``, ``-1s``. Pure."""

from __future__ import annotations

import re

_UNIT_NS = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,  # micro sign
    "μs": 10**3,  # Greek mu; Go takes both
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_PART = re.compile(r"([0-9]*)(?:\.([0-9]*))?(ns|us|µs|μs|ms|s|m|h)")
_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?")
_MAX_NS = 2**63 - 1
"""Go keeps a duration in a signed 64-bit count of nanoseconds."""


def parse(text: str) -> float:
    """Read a Go duration; a unit is compulsory except for ``0``.

    Returns:
        Seconds; negative if the text is.

    Raises:
        ValueError: in Go's own words, which clients show.
    """
    sign, body = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    if body == "0":
        return 0.0
    total_ns, at = 0, 0
    while at < len(body):
        match = _PART.match(body, at)
        if match is None or not (match[1] or match[2]):
            problem = "missing unit in" if _NUMBER.fullmatch(body) else "invalid"
            raise ValueError(f'time: {problem} duration "{text}"')
        fraction = match[2] or ""
        digits = int((match[1] or "0") + fraction)
        total_ns += digits * _UNIT_NS[match[3]] // 10 ** len(fraction)
        at = match.end()
    if not body or total_ns > _MAX_NS:
        raise ValueError(f'time: invalid duration "{text}"')
    return sign * total_ns / 10**9


def parse_lenient(text: str) -> float:
    """Read a Go duration or a bare number of seconds, as Ollama's environment does.

    Raises:
        ValueError: it is neither.
    """
    stripped = text.strip()
    if _NUMBER.fullmatch(stripped) and abs(seconds := float(stripped)) <= _MAX_NS / 10**9:
        return seconds
    return parse(stripped)


def show(seconds: float) -> str:
    """Write a duration as Go prints it: ``1.5s``, ``4m0s``, ``17.25ms``; ``parse`` inverts it."""
    total_ns = round(abs(seconds) * 10**9)
    sign = "-" if seconds < 0 and total_ns else ""
    if total_ns == 0:
        return "0s"
    for unit, below in (("ns", 10**3), ("µs", 10**6), ("ms", 10**9)):
        if total_ns < below:
            return f"{sign}{_decimal(total_ns, _UNIT_NS[unit])}{unit}"
    hours, rest = divmod(total_ns, _UNIT_NS["h"])
    minutes, rest = divmod(rest, _UNIT_NS["m"])
    parts = [f"{hours}h"] if hours else []
    if hours or minutes:
        parts.append(f"{minutes}m")
    return f"{sign}{''.join(parts)}{_decimal(rest, _UNIT_NS['s'])}s"


def _decimal(amount: int, unit: int) -> str:
    """``amount / unit`` exactly, without trailing zeros; ``unit`` is a power of ten."""
    whole, rest = divmod(amount, unit)
    fraction = str(rest).zfill(len(str(unit)) - 1).rstrip("0") if rest else ""
    return f"{whole}.{fraction}" if fraction else str(whole)
