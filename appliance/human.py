"""Sizes, ages, tables and processor shares in Ollama's words. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

_DECIMAL = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("KB", 10**3))
_COUNT = (("B", 10**9, 1), ("M", 10**6, 2), ("K", 10**3, 0))
_MINUTE_S = 60
_HOUR_S = 3600
_DAY_H = 24
_YEAR_H = 365 * _DAY_H
_FOREVER_YEARS = 20
"""Ollama writes ``Forever`` for expiries more than this many years ahead."""

COLUMN_GAP = " " * 4
_NARROWEST_GAP = 2
TERMINAL_COLUMNS = 80
"""Width that tables are squeezed into where they can be."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """The text without control characters but tabs and line breaks: it must not steer a terminal.

    What models say and what bundles carry is data from elsewhere.
    """
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))


def size(size_bytes: int) -> str:
    """Decimal size: ``1.3 GB``, ``46 MB``, ``512 B``; whole numbers from ten up."""
    for unit, step in _DECIMAL:
        if size_bytes >= step:
            value = size_bytes / step
            whole = int(value)
            return f"{whole} {unit}" if value >= 10 or value == whole else f"{value:.1f} {unit}"  # noqa: PLR2004
    return f"{size_bytes} B"


def count(number: int) -> str:
    """Parameter count: ``8B``, ``1.2B``, ``22.70M``, ``815K``."""
    for unit, step, digits in _COUNT:
        if number >= step:
            return f"{number / step:.{0 if number % step == 0 else digits}f}{unit}"
    return str(number)


def span(seconds: float) -> str:  # noqa: PLR0911 - one return per unit is the clearest table
    """A length of time in words: ``About a minute``, ``3 weeks``; the sign is ignored."""
    whole = int(abs(seconds))
    minutes = whole // _MINUTE_S
    hours = int(abs(seconds) / _HOUR_S + 0.5)
    if whole < 1:
        return "Less than a second"
    if whole < _MINUTE_S:
        return "1 second" if whole == 1 else f"{whole} seconds"
    if minutes < 60:  # noqa: PLR2004 - an hour
        return "About a minute" if minutes == 1 else f"{minutes} minutes"
    if hours < 2 * _DAY_H:
        return "About an hour" if hours == 1 else f"{hours} hours"
    if hours < 14 * _DAY_H:
        return f"{hours // _DAY_H} days"
    if hours < 60 * _DAY_H:
        return f"{hours // (7 * _DAY_H)} weeks"
    if hours < 2 * _YEAR_H:
        return f"{hours // (30 * _DAY_H)} months"
    return f"{hours // _YEAR_H} years"


def moment(at_s: float | None, *, now_s: float) -> str:
    """A wall-clock time relative to now: ``2 days ago``, ``4 minutes from now``, ``Forever``.

    Args:
        at_s: seconds since the epoch; ``None`` is ``Never``.
        now_s: the present, likewise.
    """
    if at_s is None:
        return "Never"
    ahead_s = at_s - now_s
    if ahead_s > 0:
        if int(ahead_s / _HOUR_S) // _YEAR_H > _FOREVER_YEARS:
            return "Forever"
        return f"{span(ahead_s)} from now"
    return f"{span(ahead_s)} ago"


def processor(size_bytes: int, vram_bytes: int) -> str:
    """Where a loaded model lies: ``100% CPU``, ``100% GPU``, ``48%/52% CPU/GPU``."""
    if vram_bytes == 0:
        return "100% CPU"
    if vram_bytes == size_bytes:
        return "100% GPU"
    if vram_bytes > size_bytes or size_bytes == 0:
        return "Unknown"
    cpu_percent = int((size_bytes - vram_bytes) * 100 / size_bytes + 0.5)
    return f"{cpu_percent}%/{100 - cpu_percent}% CPU/GPU"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, width: int | None = None) -> str:
    """Left-aligned columns, every one padded and followed by a gap, one line per row.

    Args:
        header: names of the columns.
        rows: one text per column.
        width: columns of the screen; a wider table gets narrower gaps if it fits then.
    """
    lines = [tuple(header), *(tuple(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    between = max(1, len(widths) - 1)
    gap = len(COLUMN_GAP)
    if width is not None and sum(widths) + gap * len(widths) > width:
        fitting = (width - sum(widths)) // between
        gap = min(gap, fitting) if fitting >= _NARROWEST_GAP else gap
    return "\n".join(
        "".join(cell.ljust(size + gap) for cell, size in zip(line, widths, strict=True))[
            : sum(widths) + gap * between if gap < len(COLUMN_GAP) else None
        ]
        for line in lines
    )
