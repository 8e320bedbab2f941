"""Compare Satchel with llama-server and with the engine's own programs, in one run.

    .venv/bin/python -m bench.run --quick --llama-bin DIRECTORY

DIRECTORY holds llama-server, llama-bench and llama-batched-bench, built from the same commit and
with the same flags as the installed engine. They are run with the installed engine's libraries.
Without it only our side is measured. bench/README.md tells what the figures mean.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import facts, measure, models, registry, report
from bench.bound import Engine
from bench.play import Field, Result, tell
from bench.server import SAMPLING, Side
from bench.sides import Ours, Peer
from bench.stage import Case

FOLDER = models.ROOT / "build" / "bench"
PROGRAMS = ("llama-server", "llama-bench", "llama-batched-bench")
QUICK_S = 300.0
FULL_S = 3 * 3600.0
QUIET_WAIT_S = 30.0


def main() -> int:
    """Measure, print the table, keep the samples; 0 unless nothing could be measured."""
    arguments = _arguments()
    # A plain kill must end the servers too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    state = measure.wait_for_quiet(0.0 if arguments.allow_noise else QUIET_WAIT_S)
    if state.complaint and not arguments.allow_noise:
        sys.stderr.write(
            f"bench: error: the machine is busy: {state.complaint}\n"
            "bench: hint: wait, or pass --allow-noise for figures that are not to be kept\n"
        )
        return 1
    cases = _cases(arguments)
    for name in dict.fromkeys(case.settings.model for case in cases):
        tell(f"model {name}: {models.ensure(name).name}")
    begin_s = time.monotonic()
    limit_s = 60 * arguments.minutes if arguments.minutes else QUICK_S
    if arguments.full and not arguments.minutes:
        limit_s = FULL_S
    players = _players(arguments, deadline_s=begin_s + limit_s)
    results: list[Result] = []
    try:
        for case in cases:
            results.append(players.play(case))  # noqa: PERF401 - what is there is told if it breaks off
    except KeyboardInterrupt:
        tell("interrupted; what follows is what there was")
    environment = _environment(arguments, cases, state)
    environment["run"]["wall"] = f"{time.monotonic() - begin_s:.0f} s"
    _publish(arguments.out, environment, results)
    return 0 if any(result.samples for result in results) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__.splitlines()[0])
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--quick", action="store_true", help="about five minutes (the default)")
    length.add_argument("--full", action="store_true", help="all cases, up to three hours")
    parser.add_argument("--only", default="", metavar="W1,W3", help="only these workloads")
    parser.add_argument("--llama-bin", type=Path, metavar="DIR", help="where the peers are")
    parser.add_argument("--engine-lib", type=Path, metavar="DIR", help="libraries for the peers")
    parser.add_argument(
        "--threads",
        type=int,
        default=max(1, len(os.sched_getaffinity(0)) - 1),
        help="engine threads of every side (default: one CPU is left to servers and client)",
    )
    parser.add_argument(
        "--peer-env", action="append", default=[], metavar="NAME=VALUE", help="for the peers"
    )
    parser.add_argument("--minutes", type=float, default=0.0, help="begin no round after this")
    parser.add_argument("--rounds", type=int, default=0, help="rounds of every case")
    parser.add_argument("--allow-noise", action="store_true", help="measure on a busy machine")
    parser.add_argument("--out", type=Path, default=FOLDER / "last.json", help="all samples")
    arguments = parser.parse_args()
    wanted = [name for name in arguments.only.split(",") if name]
    if unknown := [name for name in wanted if name not in registry.WORKLOADS]:
        parser.error(f"--only: expected {registry.WORKLOADS[0]} to W12, found {unknown[0]}")
    if missing := _missing(arguments.llama_bin):
        parser.error(f"--llama-bin: no program {missing} in {arguments.llama_bin}")
    if not all("=" in pair for pair in arguments.peer_env):
        parser.error("--peer-env: expected NAME=VALUE")
    arguments.only = tuple(wanted)
    arguments.engine_lib = arguments.engine_lib or facts.engine_folder()
    return arguments


def _missing(programs: Path | None) -> str:
    if programs is None:
        return ""
    return next((name for name in PROGRAMS if not os.access(programs / name, os.X_OK)), "")


def _cases(arguments: argparse.Namespace) -> tuple[Case, ...]:
    cases = registry.full() if arguments.full else registry.quick()
    wanted = [case for case in cases if not arguments.only or case.workload in arguments.only]
    if arguments.only and not arguments.full:
        present = {case.workload for case in wanted}
        wanted += [
            case
            for case in registry.full()
            if case.workload in arguments.only and case.workload not in present
        ]
    if arguments.rounds:
        wanted = [replace(case, rounds=arguments.rounds) for case in wanted]
    return tuple(wanted)


def _players(arguments: argparse.Namespace, *, deadline_s: float) -> Field:
    sides: list[Side] = [Ours(FOLDER)]
    engine = None
    if arguments.llama_bin:
        environment = dict(pair.split("=", 1) for pair in arguments.peer_env)
        where: Mapping[str, Any] = {
            "programs": arguments.llama_bin,
            "libraries": arguments.engine_lib,
            "environment": environment,
        }
        sides.append(Peer(FOLDER, **where))
        engine = Engine(**where)
    return Field(
        sides=tuple(sides), engine=engine, threads=arguments.threads, deadline_s=deadline_s
    )


def _environment(
    arguments: argparse.Namespace, cases: Sequence[Case], state: measure.Noise
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "machine": facts.machine(),
        "satchel": facts.ours(),
        "run": {
            "kind": "full" if arguments.full else "quick",
            "threads": arguments.threads,
            "noise before": state.complaint or "none",
        },
        "sampling": dict(SAMPLING),
    }
    if arguments.llama_bin:
        found["llama-server"] = facts.peer(arguments.llama_bin, arguments.engine_lib)
        found["llama-server"]["environment"] = " ".join(arguments.peer_env) or "as it comes"
    for name in dict.fromkeys(case.settings.model for case in cases):
        found[f"model {name}"] = facts.model(name)
    return found


def _publish(out: Path, environment: Mapping[str, Any], results: Sequence[Result]) -> None:
    for line in report.environment_lines(environment):
        print(line)
    libraries = next((result.libraries for result in results if result.libraries), {})
    for side, found in libraries.items():
        for name, digest in found.items():
            print(f"engine of {side}: {name} sha256 {digest[:16]}")
    print()
    for line in report.lines(results):
        print(line)
    out.parent.mkdir(parents=True, exist_ok=True)
    kept = {"environment": environment, "results": report.data(results)}
    out.write_text(json.dumps(kept, indent=1))
    print(f"all samples: {out}")


if __name__ == "__main__":
    sys.exit(main())
