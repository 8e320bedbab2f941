"""Measure what this machine does with two made-up models, and keep it."""

from __future__ import annotations

import contextlib
import json
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Final

from hwprobe.canary import CONTEXT_TOKENS, Shape, model_pieces
from hwprobe.decoding import decoded, parsed
from hwprobe.engine import engine_build_id, timed
from hwprobe.errors import EngineCheckError, ProbeError
from hwprobe.gguf import model_profile, read_header
from hwprobe.machine import Machine
from hwprobe.settings import EngineSettings
from hwprobe.speed import (
    Calibration,
    MeasuredSpeed,
    Timing,
    calibration_of,
    decode_bytes,
    speed_key,
    with_measured,
)

CALIBRATION_FILE: Final = "calibration.json"
_MAX_FILE_BYTES: Final = 1 << 20
THIN: Final = Shape(
    embedding=256, feed_forward=512, heads=4, vocabulary=320, quantizations=("Q4_K",) * 48
)
"""17 MB: its time is mostly the fixed time per block."""
_WIDE_BLOCK_BYTES: Final = 29 << 20
_WIDE_LEAST_BYTES, _WIDE_MOST_BYTES = 174 << 20, 1 << 30
"""Why: beyond the caches of common processors, and still quick to write on a card."""


def wide_shape(cache_bytes: int) -> Shape:
    """A model that no cache holds: twice the last-level caches, within bounds."""
    size = min(max(2 * cache_bytes, _WIDE_LEAST_BYTES), _WIDE_MOST_BYTES)
    return Shape(
        embedding=2048,
        feed_forward=5632,
        heads=32,
        vocabulary=320,
        quantizations=("Q4_K",) * (size // _WIDE_BLOCK_BYTES),
    )


def machine_identity(machine: Machine) -> str:
    """What a calibration holds for: the engine's build, the processor, how much of it."""
    cpu = machine.cpu
    return f"{engine_build_id()} {cpu.architecture} {cpu.model} {cpu.usable}"


def calibrate(
    machine: Machine,
    directory: Path,
    *,
    wide: Shape | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Calibration:
    """Measure; about half a minute on a small board.

    Args:
        machine: where this runs.
        directory: where the two models are written and removed again.
        wide: another wide model, for machines with little room.
        tell: gets a line per step.

    Raises:
        EngineCheckError: the engine does not run them.
        OSError: they cannot be written.
    """
    threads = machine.cpu.decode_threads
    timings = []
    for name, shape in (("thin", THIN), ("wide", wide or wide_shape(machine.cpu.cache_bytes))):
        with tempfile.NamedTemporaryFile(dir=directory, suffix=".gguf") as file:
            for piece in model_pieces(shape):
                file.write(piece)
            file.flush()
            timing = _timing(Path(file.name), threads)
        tell(f"{name}: {timing.token_s * 1000:.3g} ms per token")
        timings.append(timing)
    return calibration_of(*timings, identity=machine_identity(machine), threads=threads)


def learn_from(path: Path, settings: EngineSettings, calibration: Calibration) -> Calibration:
    """Time a real model with the settings it would be served with.

    Raises:
        EngineCheckError: the engine does not run it.
    """
    profile = model_profile(read_header(path))
    prompt_s, singles = timed(path, settings)
    return with_measured(
        calibration,
        speed_key(profile, settings),
        decode=1 / statistics.median(singles),
        prompt=settings.num_batch / prompt_s,
    )


def _timing(path: Path, threads: int) -> Timing:
    profile = model_profile(read_header(path))
    settings = EngineSettings(
        num_ctx=CONTEXT_TOKENS, num_batch=CONTEXT_TOKENS, num_ubatch=CONTEXT_TOKENS, threads=threads
    )
    try:
        prompt_s, singles = timed(path, settings)
    except EngineCheckError:  # repacked layouts crash on some builds; plain ones are the fallback
        prompt_s, singles = timed(path, replace(settings, repack=False))
    size = decode_bytes(profile)
    return Timing(
        decode_bytes=size,
        blocks=profile.block_count,
        parameters=round(size * profile.parameter_count / profile.weights_bytes),
        token_s=statistics.median(singles),
        prompt_tokens=CONTEXT_TOKENS,
        prompt_s=prompt_s,
    )


def keep_calibration(directory: Path, calibration: Calibration) -> Path:
    """Write it into a directory, whole or not at all; the file.

    Raises:
        OSError: it cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / CALIBRATION_FILE
    with tempfile.NamedTemporaryFile(dir=directory, delete=False) as file:
        temporary = Path(file.name)
        file.write(json.dumps(asdict(calibration), indent=1).encode())
    try:
        temporary.replace(target)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return target


def read_calibration(directory: Path, identity: str) -> Calibration | None:
    """The calibration kept for this engine and processor; damage reads as absence."""
    try:
        with (directory / CALIBRATION_FILE).open("rb") as file:
            record = parsed(file.read(_MAX_FILE_BYTES), CALIBRATION_FILE)
        return _calibration(record, identity)
    except (OSError, ProbeError):
        return None


def _calibration(record: object, identity: str) -> Calibration | None:
    if not isinstance(record, dict) or not isinstance(record.get("measured"), dict):
        return None
    measured = {
        str(key): decoded(MeasuredSpeed, value, "measured")
        for key, value in record["measured"].items()
    }
    numbers = {
        one.name: decoded(type_, record.get(one.name), one.name)
        for one, type_ in zip(fields(Calibration), (str, int, float, float, float), strict=False)
    }
    kept = Calibration(**{**numbers, "measured": measured})  # type: ignore[arg-type]  # decoded
    positive = (kept.threads, kept.bandwidth_bytes_per_s, kept.operations_per_s)
    sound = all(number > 0 for number in positive) and kept.block_s >= 0
    sound = sound and all(one.decode > 0 and one.prompt > 0 for one in kept.measured.values())
    return kept if sound and kept.identity == identity else None
