"""Ask the engine, in a child process, what a model takes and whether it works here.

The parent never loads the engine. A crash, a signal or a hang of the child is an answer: the
configuration does not work on this machine, and a safer one is tried.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

from hwprobe.child import Ended, asked_child
from hwprobe.errors import EngineCheckError
from hwprobe.estimate import (
    DRAFT,
    PROGRAM,
    MemoryEstimate,
    MemoryTerm,
    draft_settings,
    estimate,
    with_measured,
)
from hwprobe.profile import ModelProfile
from hwprobe.settings import EngineSettings
from hwprobe.verdicts import EngineRecords, EngineVerdict

MEASURE_TIMEOUT_S: Final = 60.0
"""Why: reading a tokenizer takes up to 1.3 s, a configuration 5 to 40 ms; slow media ten times."""
SELF_TEST_TIMEOUT_S: Final = 300.0
"""Why: a 40 GiB model read at 200 MB/s takes 200 s, then 66 tokens on a small board."""
SAFE_UBATCH_TOKENS: Final = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """The engine of this installation.

    Attributes:
        version: of its bindings.
        system_info: its own line about the build and the processor.
        gpu_offload: it has a GPU device on this machine.
        devices: name and description of each device.
    """

    version: str
    system_info: str
    gpu_offload: bool
    devices: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedSettings:
    """Settings the engine is known to work with here.

    Attributes:
        settings: the first that passed.
        verdict: of these settings.
        refused: one line per configuration that did not pass, for the operator.
    """

    settings: EngineSettings
    verdict: EngineVerdict
    refused: tuple[str, ...] = ()


def engine_info(*, timeout_s: float = MEASURE_TIMEOUT_S) -> EngineInfo:
    """Ask the engine about itself.

    Raises:
        EngineCheckError: it could not be loaded.
    """
    answer = _asked({"mode": "info"}, timeout_s)
    return EngineInfo(
        version=str(answer["version"]),
        system_info=str(answer["system_info"]),
        gpu_offload=bool(answer["gpu_offload"]),
        devices=tuple((str(name), str(text)) for name, text in answer["devices"]),
    )


def dry_run(
    model_path: Path,
    profile: ModelProfile,
    settings: EngineSettings,
    *,
    timeout_s: float = MEASURE_TIMEOUT_S,
) -> MemoryEstimate:
    """The memory the engine itself computes for a load, without loading the weights.

    Raises:
        EngineCheckError: the engine crashed, hung or refused the model or the settings.
    """
    (measured,) = dry_runs(model_path, profile, [settings], timeout_s=timeout_s)
    return measured


def dry_run_both(
    model_path: Path, draft_path: Path, profile: ModelProfile, settings: EngineSettings
) -> MemoryEstimate:
    """`dry_run` of a model and of the draft model that its profile has.

    Raises:
        EngineCheckError: as `dry_run`, for either of them.
    """
    whole = dry_run(model_path, profile, settings)
    if profile.draft is None:
        return whole
    small = dry_run(draft_path, profile.draft, draft_settings(settings, profile.draft))
    beside = [
        MemoryTerm(
            pool=pool,
            name=DRAFT,
            size_bytes=small.total_bytes(pool) - small.term_bytes(PROGRAM, pool),
        )
        for pool in small.pools
    ]
    kept = [term for term in whole.terms if term.name != DRAFT]
    return MemoryEstimate(terms=(*kept, *beside), measured=True)


def dry_runs(
    model_path: Path,
    profile: ModelProfile,
    settings: Sequence[EngineSettings],
    *,
    timeout_s: float = MEASURE_TIMEOUT_S,
) -> tuple[MemoryEstimate, ...]:
    """`dry_run` for several settings at the price of one start.

    Raises:
        EngineCheckError: as `dry_run`, for any of them.
    """
    answer = _asked(
        {
            "mode": "breakdown",
            "model_path": str(model_path),
            "settings": [asdict(one) for one in settings],
        },
        timeout_s,
    )
    estimates = []
    for one, result in zip(settings, answer["results"], strict=True):
        if not result["ok"]:
            raise EngineCheckError(str(result["message"]))
        estimates.append(with_measured(estimate(profile, one), result["buffers"]))
    return tuple(estimates)


def self_test(
    model_path: Path, settings: EngineSettings, *, timeout_s: float = SELF_TEST_TIMEOUT_S
) -> EngineVerdict:
    """Load the model for real in a child process and decode a few tokens.

    Never raises for what the engine does; a crash is a verdict.
    """
    ended = asked_child(
        {"mode": "self_test", "model_path": str(model_path), "settings": asdict(settings)},
        timeout_s,
    )
    if isinstance(ended, Ended):
        return EngineVerdict(ok=False, crashed_by=ended.crashed_by, message=ended.message)
    if not ended["ok"]:
        return EngineVerdict(ok=False, message=str(ended["message"]))
    memory = {
        str(name): int(buffer["weights"]) + int(buffer["context"]) + int(buffer["compute"])
        for name, buffer in ended["buffers"].items()
    }
    return EngineVerdict(ok=True, memory=memory)


def safe_settings(settings: EngineSettings) -> EngineSettings:
    """The settings least likely to hit a broken code path, for the same context and slots.

    No repacked layouts, no GPU, one thread, small batches unless texts are pooled, the file
    mapped; fused attention only where a quantized cache needs it.
    """
    return replace(
        settings,
        repack=False,
        use_mmap=True,
        threads=1,
        num_gpu=0,
        tensor_split=(),
        cpu_experts=0,
        unified=False,
        workers=(),
        num_ubatch=settings.num_ubatch
        if settings.pooled
        else min(settings.num_ubatch, SAFE_UBATCH_TOKENS),
        flash_attention=settings.kv_type != "f16",
    )


def fallbacks(settings: EngineSettings) -> tuple[EngineSettings, ...]:
    """``settings``, then ever safer ones, each different from the one before."""
    ladder = (settings, replace(settings, repack=False), safe_settings(settings))
    return tuple(dict.fromkeys(ladder))


def checked_settings(
    model_path: Path,
    profile: ModelProfile,
    settings: EngineSettings,
    *,
    records: EngineRecords | None = None,
    timeout_s: float = SELF_TEST_TIMEOUT_S,
) -> CheckedSettings:
    """Test ``settings`` before they are served; fall back to safer ones when they fail.

    Verdicts are taken from ``records`` and kept there.

    Raises:
        EngineCheckError: not even the safe settings work.
    """
    refused: list[str] = []
    for one in fallbacks(settings):
        verdict = records.get(profile, one) if records else None
        if verdict is None:
            verdict = self_test(model_path, one, timeout_s=timeout_s)
            if records:
                records.put(profile, one, verdict)
        if verdict.ok:
            return CheckedSettings(settings=one, verdict=verdict, refused=tuple(refused))
        refused.append(_refusal(one, verdict))
    raise EngineCheckError(
        f"the engine cannot run this model here: {refused[-1]}",
        hint="the file may be damaged or of a kind this engine does not know",
    )


@cache
def engine_build_id() -> str:
    """A digest of the engine's libraries, without loading them; empty when it is missing."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        return ""
    digest = hashlib.sha256()
    for library in sorted(Path(spec.submodule_search_locations[0]).glob("lib/lib*.so")):
        digest.update(library.name.encode())
        with library.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _refusal(settings: EngineSettings, verdict: EngineVerdict) -> str:
    how = "repacked weights" if settings.repack else "plain weights"
    where = f"{settings.num_gpu} GPU layers" if settings.num_gpu else "CPU"
    end = f" ({verdict.crashed_by})" if verdict.crashed_by else ""
    return f"{how}, {where}, {settings.threads} thread(s): {verdict.message}{end}"


def _asked(
    request: dict[str, Any], timeout_s: float, libraries: Path | None = None
) -> dict[str, Any]:
    ended = asked_child(request, timeout_s, libraries)
    if isinstance(ended, Ended):
        raise EngineCheckError(f"{ended.message} ({ended.crashed_by})")
    if not ended["ok"]:
        raise EngineCheckError(str(ended["message"]))
    return ended


def canary_logits(
    model_path: Path,
    settings: EngineSettings,
    *,
    libraries: Path | None = None,
    timeout_s: float = MEASURE_TIMEOUT_S,
) -> tuple[tuple[float, ...], ...]:
    """What the engine computes for `hwprobe.canary`, from a folder of libraries or its own.

    Raises:
        EngineCheckError: it crashed, hung, refused, or computed no numbers.
    """
    request = {"mode": "canary", "model_path": str(model_path), "settings": asdict(settings)}
    answer = _asked(request, timeout_s, libraries)
    return tuple(tuple(map(float, row)) for row in answer["logits"])


def timed(
    model_path: Path, settings: EngineSettings, *, timeout_s: float = SELF_TEST_TIMEOUT_S
) -> tuple[float, tuple[float, ...]]:
    """Seconds for a prompt of ``num_batch`` tokens, and for each of 16 single tokens.

    Raises:
        EngineCheckError: the engine crashed, hung or refused the model.
    """
    request = {"mode": "time", "model_path": str(model_path), "settings": asdict(settings)}
    answer = _asked(request, timeout_s)
    return float(answer["prompt_s"]), tuple(map(float, answer["token_s"]))
