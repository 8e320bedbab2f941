"""The table, as text that is also Markdown, and the same as data."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from bench import facts, measure
from bench.play import Result, paired
from bench.sides import Ours, Peer
from bench.stage import Metric

ABSENT = "-"
HEADER = ("", "measure", "satchel", "llama-server", "ratio [95 %]", "aim", "engine alone", "of it")


def lines(results: Sequence[Result]) -> Iterator[str]:
    """The table, and below it what was not measured and what is doubtful."""
    rows = [HEADER, tuple("---" for _ in HEADER)]
    for result in results:
        rows += _rows(result)
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    for row in rows:
        padded = (text.ljust(width) for text, width in zip(row, widths, strict=True))
        yield "| " + " | ".join(padded) + " |"
    yield ""
    for result in results:
        for name, reason in result.reasons.items():
            yield f"not measured: {result.case.name}: {name}: {reason}"
        if result.foreign_percent > measure.MAX_FOREIGN_PERCENT:
            yield (
                f"noisy: {result.case.name}: other processes took up to"
                f" {result.foreign_percent:.0f} % of a CPU"
            )
        if differing := facts.differing(result.libraries):
            yield f"unequal engines: {result.case.name}: {', '.join(differing)}"


def data(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Every sample, for keeping."""
    return [
        {
            "case": result.case.name,
            "settings": asdict(result.case.settings),
            "peer_settings": asdict(result.case.peer_settings or result.case.settings),
            "samples": result.samples,
            "bound": result.bound,
            "not_measured": result.reasons,
            "foreign_percent": round(result.foreign_percent, 1),
            "libraries": result.libraries,
            "commands": result.commands,
        }
        for result in results
    ]


def _rows(result: Result) -> Iterator[tuple[str, ...]]:
    name = result.case.name
    for metric in result.case.metrics:
        ours, theirs = paired(result, metric.key, (Ours.name, Peer.name))
        all_ours = result.samples.get(Ours.name, {}).get(metric.key, [])
        all_theirs = result.samples.get(Peer.name, {}).get(metric.key, [])
        bound = result.bound.get(metric.key, [])
        if not (all_ours or all_theirs or bound):
            continue
        against = measure.ratio(ours, theirs)
        yield (
            name,
            metric.label,
            _value(all_ours),
            _value(all_theirs),
            _ratio(against, rounds=len(ours)),
            _verdict(metric, against, all_ours),
            _value(bound),
            _share(metric, all_ours, bound),
        )
        name = ""


def _value(samples: Sequence[float]) -> str:
    if not samples:
        return ABSENT
    value = statistics.median(samples)
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _ratio(found: measure.Ratio | None, *, rounds: int) -> str:
    if found is None:
        return ABSENT
    if rounds < 2:
        return f"{found.value:.2f}"
    return f"{found.value:.2f} [{found.low:.2f} {found.high:.2f}]"


def _verdict(metric: Metric, found: measure.Ratio | None, ours: Sequence[float]) -> str:
    """Against the peer, or against a limit of our own."""
    if metric.limit is not None:
        met = f" {_met(statistics.median(ours) <= metric.limit)}" if ours else ""
        return f"own ≤ {metric.limit:.0f}{met}"
    if metric.aim is None:
        return ""
    sign = "≥" if metric.better == "more" else "≤"
    met = f" {_met(_reaches(metric, found.value, metric.aim))}" if found else ""
    return f"{sign} {metric.aim:.2f}{met}"


def _share(metric: Metric, ours: Sequence[float], bound: Sequence[float]) -> str:
    if not ours or not bound:
        return ""
    share = statistics.median(ours) / statistics.median(bound)
    if metric.bound_aim is None:
        return f"{share:.2f}"
    met = _met(_reaches(metric, share, metric.bound_aim))
    return f"{share:.2f} (≥ {metric.bound_aim:.2f} {met})"


def _met(yes: bool) -> str:  # noqa: FBT001 - one word for one truth
    return "met" if yes else "missed"


def _reaches(metric: Metric, value: float, aim: float) -> bool:
    return value >= aim if metric.better == "more" else value <= aim


def environment_lines(environment: Mapping[str, Any]) -> Iterator[str]:
    """What the run was made with, one fact per line."""
    for topic, found in environment.items():
        if isinstance(found, Mapping):
            told = ", ".join(f"{name} {value}" for name, value in found.items())
            yield f"{topic}: {told}"
        else:
            yield f"{topic}: {found}"
