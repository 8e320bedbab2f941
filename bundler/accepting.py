"""Make acceptance checks where a model is packed: the real engine, in a child process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bundler.errors import PackError
from bundler.format.acceptance import (
    BUILT_IN,
    BUILT_IN_VECTORS,
    Check,
    Wanted,
    encode_checks,
)
from hwprobe.errors import EngineCheckError
from hwprobe.gguf import ModelProfile
from hwprobe.settings import EngineSettings
from hwprobe.trial import run_trials

_CONTEXT: Final = 1024
_BATCH: Final = 512


def make_checks(
    path: Path, profile: ModelProfile, wanted: Sequence[Wanted], *, threads: int
) -> bytes:
    """The blob of one variant's checks, measured with the file that is packed.

    Args:
        path: its weights.
        profile: what its header says.
        wanted: what to measure; empty takes what is built in for its kind of model.
        threads: CPU threads.

    Raises:
        PackError: the engine cannot run it, or nothing could be said of it.
        AcceptanceError: it fails a check at once.
    """
    pooled = profile.pooling is not None
    chosen = tuple(wanted) or (BUILT_IN_VECTORS if pooled else BUILT_IN)
    settings = EngineSettings(
        num_ctx=_CONTEXT,
        threads=threads,
        num_batch=_BATCH,
        num_ubatch=_BATCH,
        pooled=pooled,
    )
    try:
        outcomes = run_trials(path, settings, [one.trial() for one in chosen])
    except EngineCheckError as error:
        raise PackError(
            f"acceptance: {error}", hint="pack without --accept if this computer cannot run it"
        ) from error
    made = [one.check(outcome) for one, outcome in zip(chosen, outcomes, strict=True)]
    checks: list[Check] = [one for one in made if one is not None]
    if not checks:
        raise PackError(
            "acceptance: expected a check that says something, found none",
            hint="give texts of the model's own kind: --accept-file",
        )
    return encode_checks(checks)
