"""What real loads and answers teach: how much memory and how much time a model takes here.

Rules:
 * nothing here may stop a model from being served: what cannot be measured or kept is let be;
 * memory is compared twice, right after the load and right before the end, when the slots have
   been used; what the process holds for itself is compared with the part of the plan that it
   should hold for itself;
 * of speed only requests count that were alone on their runner from beginning to end;
 * records hold numbers and the model's name, never what was asked or answered.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from appliance.journal import timestamp
from hwprobe.calibrate import keep_calibration, read_calibration
from hwprobe.estimate import (
    COMPUTE,
    HOST,
    KV_CACHE,
    STATE,
    TIED_COPY,
    WEIGHTS,
    MemoryEstimate,
    estimate,
)
from hwprobe.loads import Loads
from hwprobe.margins import UNTRIED, Margin
from hwprobe.profile import ModelProfile
from hwprobe.quantity import Bytes
from hwprobe.settings import EngineSettings
from hwprobe.speed import speed_key, with_measured
from server.runner import protocol

LEAST_PROMPT_TOKENS: Final = 64
LEAST_ANSWER_TOKENS: Final = 16
"""Why: shorter ones measure the start and the end, not the middle."""
DIFFERENCE_SHARE: Final = 0.02
DIFFERENCE_BYTES: Final = 8 << 20
"""Formulas and engine may differ by the larger of the two without a word in the log."""

_LOG = logging.getLogger("satchel.server")


class Experience:
    """All methods may be called from any thread, and none raises."""

    def __init__(
        self,
        *,
        loads: Loads | None = None,
        calibration_folder: Path | None = None,
        identity: str = "",
        repacked: frozenset[str] = frozenset(),
        private_bytes: Callable[[int], int | None] | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Learn from now on.

        Args:
            loads: where margins and records are kept; without it nothing is learned of memory.
            calibration_folder: where ``satchel-probe calibrate`` keeps what it measured.
            identity: what a calibration must hold for, see `hwprobe.calibrate`.
            repacked: tensor types the engine's build repacks.
            private_bytes: what a process holds for itself alone.
            wall: seconds since 1970.
        """
        self._loads = loads
        self._folder = calibration_folder
        self._identity = identity
        self._repacked = repacked
        self._private_bytes = private_bytes or private_bytes_of
        self._wall = wall
        self._lock = threading.Lock()
        self._speeds: dict[str, tuple[float, float]] = {}

    def margin(self, profile: ModelProfile) -> Margin:
        """What loads of a model have taught so far."""
        return self._loads.margin(profile) if self._loads is not None else UNTRIED

    def loaded(
        self,
        *,
        name: str,
        profile: ModelProfile,
        planned: EngineSettings,
        settings: EngineSettings,
        steps: tuple[str, ...],
        buffers: Mapping[str, int],
        pid: int,
    ) -> None:
        """A model is ready: compare, learn, and keep a record of the load.

        Args:
            name: of the model, for a person.
            profile: of the model.
            planned: what placement decided.
            settings: what it was loaded with in the end.
            steps: what was given up on the way, in order.
            buffers: the engine's own figures, bytes per buffer type.
            pid: of its runner.
        """
        plan = estimate(profile, settings, repacked=self._repacked)
        if unlike := difference(plan, buffers, settings):
            _LOG.warning("%s: %s", name, unlike)
        expected = private_plan_bytes(plan, buffers, settings)
        found = self._private_bytes(pid)
        record: dict[str, Any] = {
            "time": timestamp(self._wall()),
            "model": name,
            "settings": asdict(settings),
            "steps": list(steps),
            "predicted": plan.to_json(),
            "engine_bytes": dict(buffers),
            "private_predicted_bytes": expected,
            "private_measured_bytes": found,
        }
        if settings != planned:
            record["planned"] = asdict(planned)
        if self._loads is not None:
            self._loads.keep(record)

    def leaves(
        self,
        *,
        name: str,
        profile: ModelProfile,
        settings: EngineSettings,
        buffers: Mapping[str, int],
        pid: int,
    ) -> None:
        """A model is about to end: what it came to hold while it served moves its margin."""
        self._keep_speeds()
        found = self._private_bytes(pid)
        if self._loads is None or found is None:
            return
        plan = estimate(profile, settings, repacked=self._repacked)
        expected = private_plan_bytes(plan, buffers, settings)
        margin = self._loads.learn(profile, predicted_bytes=expected, measured_bytes=found)
        if found > expected:
            _LOG.warning(
                "%s: held %s where %s were predicted; the margin grows by %.1f %%",
                name,
                Bytes(found),
                Bytes(expected),
                100 * margin.excess_share,
            )
        self._loads.keep(
            {
                "time": timestamp(self._wall()),
                "model": name,
                "ended": True,
                "settings": asdict(settings),
                "private_predicted_bytes": expected,
                "private_measured_bytes": found,
                "margin": asdict(margin),
            }
        )

    def answered(self, profile: ModelProfile, settings: EngineSettings, row: protocol.Row) -> None:
        """A request that had its runner to itself has ended with ``row``."""
        computed = row.prompt_tokens - row.cached_tokens
        long_enough = computed >= LEAST_PROMPT_TOKENS and (
            row.completion_tokens >= LEAST_ANSWER_TOKENS
        )
        if not long_enough or row.prompt_s <= 0 or row.eval_s <= 0 or row.done == "cancelled":
            return
        decode = (row.completion_tokens - 1) / row.eval_s
        with self._lock:
            self._speeds[speed_key(profile, settings)] = (decode, computed / row.prompt_s)

    def _keep_speeds(self) -> None:
        """Put what was measured into the calibration, if this machine was calibrated."""
        with self._lock:
            speeds, self._speeds = self._speeds, {}
            if not speeds or self._folder is None:
                return
            known = read_calibration(self._folder, self._identity)
            if known is None:
                return
            for key, (decode, prompt) in speeds.items():
                known = with_measured(known, key, decode=decode, prompt=prompt)
            try:
                keep_calibration(self._folder, known)
            except OSError as error:
                _LOG.warning("measured speeds cannot be kept: %s", error.strerror)


def private_plan_bytes(
    plan: MemoryEstimate, buffers: Mapping[str, int], settings: EngineSettings
) -> int:
    """Of a plan, what the process should hold for itself: all but weights that stay mapped."""
    total = plan.total_bytes(HOST)
    if not settings.use_mmap:
        return total
    weights = plan.term_bytes(WEIGHTS, HOST) + plan.term_bytes(TIED_COPY, HOST)
    return total - weights + min(weights, _own_layout_bytes(buffers))


def difference(plan: MemoryEstimate, buffers: Mapping[str, int], settings: EngineSettings) -> str:
    """How the formulas and the engine disagree about a load on the host; empty if they agree.

    Mapped weights are left out: the engine tells the span of the file that it maps.
    """
    if settings.num_gpu or not buffers:
        return ""
    engine = sum(size for name, size in buffers.items() if "Mapped" not in name)
    names = (KV_CACHE, STATE, COMPUTE)
    formula = sum(plan.term_bytes(name) for name in names)
    if settings.use_mmap:
        formula += _own_layout_bytes(buffers)
    else:
        formula += plan.term_bytes(WEIGHTS) + plan.term_bytes(TIED_COPY)
    if abs(formula - engine) <= max(DIFFERENCE_BYTES, DIFFERENCE_SHARE * engine):
        return ""
    terms = ", ".join(f"{name} {Bytes(plan.term_bytes(name))}" for name in names)
    told = ", ".join(f"{name} {Bytes(size)}" for name, size in sorted(buffers.items()))
    words = "more" if formula > engine else "less"
    return (
        f"memory by formula {Bytes(formula)} ({terms}) is {Bytes(abs(formula - engine))} {words} "
        f"than by the engine, {Bytes(engine)} ({told})"
    )


def private_bytes_of(pid: int) -> int | None:
    """What a process holds for itself alone, mapped files left out; ``None`` when unknown."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith("Pss_Anon:"):
            return int(line.split()[1]) << 10
    return None


def _own_layout_bytes(buffers: Mapping[str, int]) -> int:
    """Weights that the CPU backend keeps in a layout of its own."""
    return sum(size for name, size in buffers.items() if "REPACK" in name or "AMX" in name)
