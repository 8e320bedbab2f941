"""W6 and W12: how long it takes to start, and how much memory it takes."""

from __future__ import annotations

import functools
import os
import time
from pathlib import Path
from typing import Literal

from bench import measure, models
from bench.server import Settings, Side
from bench.sides import Ours
from bench.stage import Case, Metric, Stage

Start = Literal["cold file", "warm file"]

IDLE_S = 2.0
"""How long W12 leaves a server alone before it is looked at again."""

RESTART_PROMPT = 1024


def start(*, files: Start, rounds: int) -> Case:
    """W6: from starting the server to the first token."""
    return Case(
        workload="W6",
        label=f"start to first token, {files}",
        settings=Settings(),
        metrics=(
            Metric(key="first_s", label="seconds", better="less"),
            Metric(key="load_s", label="load again after unloading, seconds", better="less"),
        ),
        play=functools.partial(_play_start, files=files),
        rounds=rounds,
        lifecycle=True,
    )


def _play_start(stage: Stage, *, files: Start) -> dict[str, float]:
    if files == "cold file":
        _forget(models.ensure(stage.settings.model))
    side = stage.side
    side.launch(stage.settings)
    try:
        side.wait_until_listening()
        talk = stage.talk([stage.ask("one", 16, 1)])
        found = {"first_s": talk.exchanges["one"].pieces_s[0] - side.process.started_s}
        if isinstance(side, Ours):
            side.unload()
            found["load_s"] = stage.talk([stage.ask("two", 16, 1)]).first_s()[0]
    finally:
        side.stop()
    return found


def restart(*, rounds: int) -> Case:
    """W6: the same long prompt before and after a restart."""
    return Case(
        workload="W6",
        label=f"restart, then a known prompt of {RESTART_PROMPT}",
        settings=Settings(),
        metrics=(Metric(key="first_ms", label="first token ms", better="less"),),
        play=_play_restart,
        rounds=rounds,
        lifecycle=True,
    )


def _play_restart(stage: Stage) -> dict[str, float]:
    known = stage.ask("known", RESTART_PROMPT, 1)
    found = {}
    for _ in range(2):
        stage.side.start(stage.settings)
        try:
            found["first_ms"] = 1e3 * stage.talk([known]).first_s()[0]
        finally:
            stage.side.stop()
    return found


def memory(*, words: int, rounds: int) -> Case:
    """W12: proportional memory (Pss) of all of a side's processes, the weights' file included."""
    streams = 16
    labels = {
        "loaded_mb": "loaded, MB",
        "loaded_own_mb": "loaded, without files, MB",
        "full_mb": f"after {streams} x {words} tokens, MB",
        "idle_mb": f"{IDLE_S:.0f} s later, MB",
        "unloaded_mb": f"{IDLE_S:.0f} s after unloading, MB",
    }
    return Case(
        workload="W12",
        label=f"memory with {streams} seats",
        settings=Settings(seats=streams, seat_tokens=2048 + 256),
        metrics=tuple(Metric(key=key, label=label, better="less") for key, label in labels.items()),
        play=functools.partial(_play_memory, streams=streams, words=words),
        rounds=rounds,
        lifecycle=True,
    )


def _play_memory(stage: Stage, *, streams: int, words: int) -> dict[str, float]:
    side = stage.side
    side.start(stage.settings)
    try:
        loaded = _memory(side)
        stage.talk([stage.ask(f"s{index}", words, 8) for index in range(streams)])
        full = _memory(side)
        time.sleep(IDLE_S)
        found = {
            "loaded_mb": loaded.pss_bytes / 1e6,
            "loaded_own_mb": loaded.anonymous_bytes / 1e6,
            "full_mb": full.pss_bytes / 1e6,
            "idle_mb": _memory(side).pss_bytes / 1e6,
        }
        if isinstance(side, Ours):
            side.unload()
            # `/api/ps` forgets a model when its runner is told to end; the process takes a moment.
            time.sleep(IDLE_S)
            found["unloaded_mb"] = _memory(side).pss_bytes / 1e6
    finally:
        side.stop()
    return found


def _memory(side: Side) -> measure.Memory:
    return measure.memory(measure.tree(side.process.popen.pid))


def _forget(path: Path) -> None:
    """Have the kernel drop its cached pages of a file nobody has mapped."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
