"""Run a bundle's acceptance checks on this machine, before a model gets its name.

Rules:
 * the checks are those that were signed with the weights; the engine runs in a sandboxed child
   process, with the settings the model will be served with, in a small context;
 * a model that fails, crashes or hangs gets no name: what the name stands for goes on answering,
   and the new files stay staged;
 * only the operator at the machine may do without (``--skip-acceptance``), and the receipt says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from appliance.errors import NotAcceptedError
from appliance.intake import Arrival, Intake
from appliance.site import Observer, Request, Site
from bundler.format.acceptance import Result
from hwprobe.errors import EngineCheckError
from hwprobe.settings import EngineSettings
from hwprobe.trial import run_trials

CONTEXT_TOKENS = 1024
"""A text is at most half of it; the answer takes the other."""
_BATCH_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """What acceptance came to.

    Attributes:
        results: checks that were run, by the name of the model.
        warnings: models whose checks were not run, and why.
    """

    results: tuple[tuple[str, Result], ...] = ()
    warnings: tuple[str, ...] = ()


def accept(plan: Intake, request: Request, site: Site, observer: Observer) -> Accepted:
    """Try every model that carries checks.

    Raises:
        NotAcceptedError: one fails, or the engine cannot run it; all its results are told.
    """
    results: list[tuple[str, Result]] = []
    warnings: list[str] = []
    staged = {source.artifact.digest for source in plan.missing}
    for arrival in plan.names:
        name = arrival.name.short()
        if not arrival.checks:
            continue
        if request.skip_acceptance:
            warnings.append(f"{name}: acceptance checks were skipped")
            continue
        if arrival.settings is None:
            warnings.append(f"{name}: not tried: it has no place on this machine")
            continue
        digest = arrival.artifact.digest
        paths = site.store.paths
        path = paths.staged(digest) if digest in staged else paths.blob(digest)
        observer.begins(f"trying {name}", 0)
        results += [(name, one) for one in _tried(path, arrival, arrival.settings)]
    _judge(results)
    return Accepted(results=tuple(results), warnings=tuple(warnings))


def _tried(path: Path, arrival: Arrival, settings: EngineSettings) -> tuple[Result, ...]:
    """Measure, and judge what was measured."""
    small = trial_settings(settings)
    try:
        outcomes = run_trials(path, small, [check.trial() for check in arrival.checks])
    except EngineCheckError as error:
        raise NotAcceptedError(
            f"{arrival.name.short()}: {error}",
            hint="the engine of this machine cannot run it: what is installed goes on answering",
        ) from error
    return tuple(
        check.judge(outcome) for check, outcome in zip(arrival.checks, outcomes, strict=True)
    )


def trial_settings(settings: EngineSettings) -> EngineSettings:
    """The settings a model will be served with, for one text at a time."""
    return replace(
        settings,
        num_ctx=CONTEXT_TOKENS,
        slots=1,
        spare_sequences=0,
        num_batch=_BATCH_TOKENS,
        num_ubatch=_BATCH_TOKENS if settings.pooled else min(settings.num_ubatch, _BATCH_TOKENS),
        saved_bytes=0,
    )


def _judge(results: list[tuple[str, Result]]) -> None:
    failed = [(name, one) for name, one in results if not one.passed]
    if not failed:
        return
    name, first = failed[0]
    raise NotAcceptedError(
        f"{name}: {first.id}: expected {first.expected}, found {first.found}"
        + (f"; {len(failed)} of {len(results)} checks fail" if len(failed) > 1 else ""),
        hint="what is installed goes on answering, and the new files stay staged (satchel staging);"
        " ask the packer, or insist with: --skip-acceptance",
    )
