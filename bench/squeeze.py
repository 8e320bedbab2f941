"""Serve in a memory limit that is the plan and 3 %: full slots, no kill; at 0.9 of it, a refusal.

    .venv/bin/python -m bench.squeeze [--model FILE] [--ctx N] [--slots N]

A runner is started in a control group of its own whose limit is what the plan says it takes and
3 % more; every slot is filled to its context; the kernel must not have to kill. The weights are not
mapped, so nothing of it could be dropped and read again. Then a plan is made in a group limited to
0.9 of the need: it must be refused with what is missing (exit code 14), before anything is loaded.

Where no control group can be made, the peak of the process is compared with the limit instead, and
the output says so. Without ``--model`` a model of the shape of GPT-2 is made.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.architectures import write_sparse
from bench.memory import MIB, fill_slots
from hwprobe.estimate import HOST, estimate, repacked_types
from hwprobe.gguf import model_profile, read_header
from hwprobe.inventory import take_inventory
from hwprobe.settings import EngineSettings
from server.errors import ServerError
from server.runner import protocol
from server.runner.process import RUNNER_COMMAND, Runner

MORE_SHARE = 0.03
LESS_SHARE = 0.9
EXIT_DOES_NOT_FIT = 14
FIT_TIMEOUT_S = 120
_ROOTS = (
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.max_usage_in_bytes"),
    (Path("/sys/fs/cgroup"), "memory.max", "memory.peak"),
)
"""Version 1, then 2: where groups are, their limit, and the most they have used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Squeezed:
    """What came of it.

    Attributes:
        plan_bytes: what the plan says the model takes of the host.
        limit_bytes: what it was given.
        peak_bytes: what it used at most.
        method: how it was limited.
        tokens: that were computed within the limit.
        refusal: what a plan within 0.9 of the need said; empty where there was no group for it.
    """

    plan_bytes: int
    limit_bytes: int
    peak_bytes: int
    method: str
    tokens: int
    refusal: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A control group that limits memory."""

    path: Path
    limit_file: str
    peak_file: str

    def limit(self, size_bytes: int) -> None:
        """Set its limit."""
        (self.path / self.limit_file).write_text(str(size_bytes), encoding="ascii")

    @property
    def peak_bytes(self) -> int:
        """The most it has used."""
        return int((self.path / self.peak_file).read_text(encoding="ascii"))

    def command(self, command: Sequence[str]) -> tuple[str, ...]:
        """``command`` as a process that is in the group from its first instruction on."""
        enter = f'echo $$ > "{self.path}/cgroup.procs" && exec "$@"'
        return ("sh", "-c", enter, "sh", *command)


@contextlib.contextmanager
def group() -> Iterator[Group | None]:
    """A new control group, removed at the end; ``None`` where none can be made."""
    made = None
    for root, limit_file, peak_file in _ROOTS:
        path = root / f"satchel-squeeze-{os.getpid()}"
        with contextlib.suppress(OSError):
            path.mkdir()
            if (path / limit_file).exists() and (path / peak_file).exists():
                made = Group(path=path, limit_file=limit_file, peak_file=peak_file)
                break
            path.rmdir()
    try:
        yield made
    finally:
        if made is not None:
            made.path.rmdir()


def squeeze(model: Path, settings: EngineSettings) -> Squeezed:
    """Serve ``model`` within the plan and 3 %, then ask for a plan within 0.9 of the need.

    Raises:
        ServerError: the runner was killed, or could not answer.
    """
    profile = model_profile(read_header(model))
    repacked = repacked_types(take_inventory(ask_driver=False).cpu)
    plan_bytes = estimate(profile, settings, repacked=repacked).total_bytes(HOST)
    limit_bytes = int(plan_bytes * (1 + MORE_SHARE))
    load = protocol.Load(model_path=str(model), settings=settings)
    with group() as limited:
        command: Sequence[str] = RUNNER_COMMAND
        if limited is not None:
            limited.limit(limit_bytes)
            command = limited.command(RUNNER_COMMAND)
        runner = Runner.start(load, command=command)
        try:
            tokens = fill_slots(runner, settings)
            peak = limited.peak_bytes if limited is not None else _peak_bytes(runner.pid)
        finally:
            runner.stop(5.0)
    return Squeezed(
        plan_bytes=plan_bytes,
        limit_bytes=limit_bytes,
        peak_bytes=peak,
        method="a control group" if limited is not None else "nothing: its peak was compared",
        tokens=tokens,
        refusal=_refusal(model, settings, int(LESS_SHARE * plan_bytes)),
    )


def _refusal(model: Path, settings: EngineSettings, limit_bytes: int) -> str:
    """What planning says in a group that is too small; empty where no group can be made.

    Raises:
        ServerError: it was not a clean refusal.
    """
    with group() as limited:
        if limited is None:
            return ""
        limited.limit(limit_bytes)
        asked = (
            *("--ctx", str(settings.num_ctx), "--slots", str(settings.slots)),
            *("--kv", settings.kv_type),
        )
        start = "from hwprobe.cli import main; main()"
        command = (sys.executable, "-P", "-c", start, "fit", str(model), *asked)
        done = subprocess.run(
            limited.command(command),
            capture_output=True,
            text=True,
            check=False,
            timeout=FIT_TIMEOUT_S,
        )
    if done.returncode != EXIT_DOES_NOT_FIT:
        raise ServerError(f"expected a refusal, found exit code {done.returncode}: {done.stderr}")
    return done.stderr.strip().splitlines()[0]


def _peak_bytes(pid: int) -> int:
    """The most a process has had in memory, files that it maps included."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise ValueError("this kernel does not tell VmHWM")


def main() -> int:
    """Print what came of it; 1 when the limit was not enough."""
    parser = argparse.ArgumentParser(prog="bench.squeeze", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, metavar="FILE", help="a GGUF file")
    parser.add_argument("--ctx", type=int, default=1024)
    parser.add_argument("--slots", type=int, default=4)
    arguments = parser.parse_args()
    settings = EngineSettings(num_ctx=arguments.ctx, slots=arguments.slots, use_mmap=False)
    with tempfile.TemporaryDirectory(prefix="satchel-bench-") as scratch:
        model = arguments.model or write_sparse("gpt2", Path(scratch) / "m.gguf", tokenizer=True)
        try:
            found = squeeze(model, settings)
        except ServerError as error:
            print(f"failed: {error}")
            return 1
    print(
        f"{found.tokens} tokens in {settings.slots} slots of {settings.num_ctx}; plan "
        f"{found.plan_bytes / MIB:.1f} MiB, limit {found.limit_bytes / MIB:.1f}, peak "
        f"{found.peak_bytes / MIB:.1f}; limited by {found.method}\n"
        f"at {LESS_SHARE} of the need: {found.refusal or 'not tried without a control group'}"
    )
    return 0 if found.peak_bytes <= found.limit_bytes else 1


if __name__ == "__main__":
    sys.exit(main())
