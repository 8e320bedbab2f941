"""Time what planning costs, and how far predicted speeds are off.

    .venv/bin/python -m bench.planning [--no-speed]

CPU seconds of this process and its children, so that other work on the machine does not count;
the wall time beside it. Speeds are timed with the engine and are worth nothing on a busy machine.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from bench.architectures import write_sparse
from hwprobe.calibrate import calibrate, learn_from
from hwprobe.canary import Shape, model_pieces
from hwprobe.engine import dry_run, timed
from hwprobe.fit import candidates_at
from hwprobe.inventory import take_inventory
from hwprobe.machine import Machine
from hwprobe.placement import Wish, place
from hwprobe.settings import EngineSettings
from hwprobe.speed import predicted_speed

VARIANTS = 8
DEMO = Path(__file__).parents[1] / "tests" / "demo-model" / "demo-f16.gguf"
LARGER = Shape(
    embedding=1024, feed_forward=2816, heads=16, vocabulary=320, quantizations=("Q4_K",) * 24
)
"""24 blocks, 0.2 GB: neither of the two models that calibration uses."""
FIT = "from hwprobe.cli import main; main()"


def cost(work: Callable[[], object]) -> tuple[float, float]:
    """CPU seconds, children included, and seconds on the wall."""
    before, begin_s = _cpu_s(), time.perf_counter()
    work()
    return _cpu_s() - before, time.perf_counter() - begin_s


def planning_rows(folder: Path, machine: Machine) -> Iterator[str]:
    """What a fit by headers alone, and a plan with a dry run, cost."""
    for number in range(VARIANTS):
        write_sparse("llama-8b", folder / f"v{number}.gguf", tokenizer=True)
    one = folder / "v0.gguf"
    (candidate,) = candidates_at(one)

    def decided() -> None:
        place(machine, candidates_at(folder), Wish())

    def command() -> None:
        asked = [sys.executable, "-P", "-c", FIT, "fit", str(folder)]
        subprocess.run(asked, check=False, capture_output=True, timeout=120)

    def with_dry_run() -> None:
        plan = place(machine, candidates_at(one), Wish())
        dry_run(one, candidate.profile, plan.settings)

    yield _row(f"fit, {VARIANTS} variants by their headers, in this process", *cost(decided))
    yield _row("the same as a command, with its start", *cost(command))
    yield _row("plan and dry run, 32 layers, 128k tokens", *cost(with_dry_run))


def speed_rows(folder: Path, machine: Machine) -> Iterator[str]:
    """How far predictions are off, before and after a model was timed once."""
    known = calibrate(machine, folder)
    larger = folder / "larger.gguf"
    with larger.open("wb") as file:
        file.writelines(model_pieces(LARGER))
    for name, path in (("demo, F16", DEMO), ("24 blocks, Q4_K", larger)):
        (candidate,) = candidates_at(path)
        settings = replace(
            EngineSettings(num_ctx=256, num_batch=256, num_ubatch=256),
            threads=machine.cpu.decode_threads,
        )
        learned = learn_from(path, settings, known)
        prompt_s, singles = timed(path, settings)
        truth = len(singles) / sum(singles), settings.num_batch / prompt_s
        for when, calibration in (("predicted", known), ("after one timing", learned)):
            speed = predicted_speed(candidate.profile, settings, calibration)
            assert speed is not None
            yield (
                f"{name:18} {when:17} decode {speed.decode:8.1f} of {truth[0]:8.1f} tokens/s "
                f"({speed.decode / truth[0] - 1:+.0%}), prompt {speed.prompt:8.1f} of "
                f"{truth[1]:8.1f} ({speed.prompt / truth[1] - 1:+.0%})"
            )


def main() -> int:
    """Print the rows."""
    parser = argparse.ArgumentParser(prog="bench.planning", description=__doc__.splitlines()[0])
    parser.add_argument("--no-speed", action="store_true", help="only what planning costs")
    arguments = parser.parse_args()
    machine = take_inventory(ask_driver=False)
    with tempfile.TemporaryDirectory(prefix="satchel-bench-") as scratch:
        for row in planning_rows(Path(scratch), machine):
            print(row, flush=True)
    if not arguments.no_speed:
        with tempfile.TemporaryDirectory(prefix="satchel-bench-") as scratch:
            for row in speed_rows(Path(scratch), machine):
                print(row, flush=True)
    return 0


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _row(what: str, cpu_s: float, wall_s: float) -> str:
    return f"{what:52} {cpu_s:6.2f} s CPU, {wall_s:6.2f} s on the wall"


if __name__ == "__main__":
    sys.exit(main())
