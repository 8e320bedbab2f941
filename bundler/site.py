"""What of a bundle fits a site, told from its statement alone: no weights are read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bundler.errors import PackError
from bundler.format.errors import BundleError
from bundler.format.fsio import read_bounded
from bundler.format.manifest import Manifest
from bundler.signing import open_envelope
from hwprobe.errors import DoesNotFitError, ProbeError
from hwprobe.gguf import ModelProfile
from hwprobe.machine import Machine
from hwprobe.placement import place
from hwprobe.report import machine_from_json, placement_lines
from hwprobe.verdict import Candidate, Wish

_MAX_REPORT_BYTES: Final = 1 << 20


def fit_source(path: Path) -> tuple[Candidate, ...]:
    """Candidates of the bundle at a path, for ``satchel-probe fit``.

    Raises:
        ProbeError: there is no readable bundle. Its signatures are not looked at.
    """
    try:
        return candidates(open_envelope(path).manifest)
    except BundleError as error:
        raise ProbeError(str(error), hint=error.hint) from error


def candidates(manifest: Manifest) -> tuple[Candidate, ...]:
    """Every variant of every model, as placement wants them.

    Raises:
        GgufError: a profile is none.
    """
    several = len(manifest.models) > 1
    return tuple(
        Candidate(
            variant=f"{model.name.short()} {variant.id}" if several else variant.id,
            profile=ModelProfile.from_json(variant.profile),
            prefer=variant.prefer,
        )
        for model in manifest.models
        for variant in model.variants
    )


def read_site(path: Path) -> Machine:
    """The machine of a site report, as ``satchel-probe report --json`` wrote it.

    Raises:
        PackError: it is no site report.
        MediumError: it cannot be read.
    """
    data = read_bounded(path, max_bytes=_MAX_REPORT_BYTES)
    try:
        return machine_from_json(json.loads(data))
    except (ValueError, RecursionError, ProbeError) as error:
        raise PackError(
            f"{path}: expected a site report, found something else",
            hint="make one on the target: satchel-probe report --json",
        ) from error


def site_lines(manifest: Manifest, machine: Machine, label: str) -> tuple[str, ...]:
    """Which variant that machine would take, and why."""
    try:
        placement = place(machine, candidates(manifest), Wish())
    except DoesNotFitError as error:
        return (f"for {label}: {error}",)
    return (f"for {label}:", *(f"  {line}" for line in placement_lines(placement, machine)))


def advice_lines(
    choices: Sequence[Candidate], sites: Sequence[tuple[str, Machine]]
) -> tuple[str, ...]:
    """Which variants are worth carrying: a line each, with the sites that would take it.

    Args:
        choices: the variants of one model.
        sites: label and machine of each site.
    """
    takers: dict[str, list[str]] = {one.variant: [] for one in choices}
    left_out = []
    for label, machine in sites:
        try:
            takers[place(machine, choices, Wish()).variant].append(label)
        except DoesNotFitError:
            left_out.append(label)
    lines = [
        f"variant {variant}: "
        + (f"for {', '.join(labels)}" if labels else "no site takes it; it could stay here")
        for variant, labels in takers.items()
    ]
    lines += [f"no variant fits {label}; a smaller one would have to be made" for label in left_out]
    return tuple(lines)
