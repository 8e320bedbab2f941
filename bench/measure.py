"""Measure processes and the machine from /proc, and compare two series of samples.

Rules:
 * CPU time is the scheduler's own count for whole processes (nanoseconds, ended threads included),
   over a process and everything it started;
 * what others used meanwhile is measured too: a round beside a busy neighbour is told as such;
 * two sides are compared by the ratio of their medians over interleaved rounds; its interval
   comes from resampling whole rounds, because the two halves of a round share the machine's mood.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

PROC = Path("/proc")
MAX_RUNNABLE = 1
"""Tasks ready to run, this process among them, on a machine that is quiet."""
MAX_PRESSURE_PERCENT = 1.0
"""Share of the last ten seconds in which something waited for a CPU, on a quiet machine."""
MAX_FOREIGN_PERCENT = 5.0
"""CPU time others may use during a round, as a share of one CPU, before it is called noisy."""

BOOTSTRAP_DRAWS = 2000
CONFIDENCE = 0.95


class GoneError(Exception):
    """A process that was to be measured has ended."""


def tree(pid: int) -> tuple[int, ...]:
    """A process and all its living descendants."""
    found = [pid]
    for parent in found:
        for task in _listdir(PROC / str(parent) / "task"):
            found += [int(child) for child in _read(task / "children").split()]
    return tuple(found)


def cpu_s(pid: int) -> float:
    """CPU seconds a process has used so far, its ended threads included.

    Raises:
        GoneError: it has ended.
    """
    try:
        return time.clock_gettime(_process_clock(pid))
    except OSError as error:
        raise GoneError(f"process {pid} has ended") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Memory of a process tree in bytes; shared pages are counted in parts (Pss)."""

    pss_bytes: int = 0
    anonymous_bytes: int = 0
    file_bytes: int = 0


def memory(pids: Iterable[int]) -> Memory:
    """Proportional memory of these processes.

    Raises:
        GoneError: one of them has ended.
    """
    names = {"Pss": "pss_bytes", "Pss_Anon": "anonymous_bytes", "Pss_File": "file_bytes"}
    sums = {field.name: 0 for field in fields(Memory)}
    for pid in pids:
        text = _read(PROC / str(pid) / "smaps_rollup")
        if not text:
            raise GoneError(f"process {pid} has ended")
        for line in text.splitlines():
            name, _, rest = line.partition(":")
            if name in names:
                sums[names[name]] += int(rest.split()[0]) * 1024
    return Memory(**sums)


def mapped_files(pids: Iterable[int], needle: str) -> tuple[Path, ...]:
    """Files whose name holds ``needle`` that these processes have mapped."""
    found = set()
    for pid in pids:
        for line in _read(PROC / str(pid) / "maps").splitlines():
            path = Path(line.partition("/")[1] + line.partition("/")[2])
            if needle in path.name:
                found.add(path)
    return tuple(sorted(found))


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """How busy the machine is before anything of ours runs."""

    runnable: int
    pressure_percent: float

    @property
    def complaint(self) -> str:
        """Why figures taken now would be doubtful; empty on a quiet machine."""
        found = []
        if self.runnable > MAX_RUNNABLE:
            found.append(f"{self.runnable} tasks are ready to run")
        if self.pressure_percent > MAX_PRESSURE_PERCENT:
            found.append(f"CPU pressure is {self.pressure_percent:.1f} %")
        return ", ".join(found)


def noise() -> Noise:
    """The state of the machine now; a kernel without pressure information counts as quiet."""
    runnable = int(_read(PROC / "loadavg").split()[3].partition("/")[0])
    some = _read(PROC / "pressure" / "cpu").partition("avg10=")[2]
    return Noise(runnable=runnable, pressure_percent=float(some.split()[0]) if some else 0.0)


def wait_for_quiet(limit_s: float) -> Noise:
    """Wait until the machine is quiet, at most ``limit_s``; the last state seen."""
    deadline_s = time.monotonic() + limit_s
    while (state := noise()).complaint and time.monotonic() < deadline_s:
        time.sleep(1)
    return state


def machine_cpu_s() -> float:
    """CPU seconds all processes, the kernel and the hypervisor's other guests have used so far."""
    names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
    values = dict(zip(names, map(int, _read(PROC / "stat").split()[1:9]), strict=True))
    busy = sum(value for name, value in values.items() if name not in {"idle", "iowait"})
    return busy / os.sysconf("SC_CLK_TCK")


class Meter:
    """CPU time of a process tree, and of everything else, since it was made."""

    def __init__(self, root: int) -> None:
        """Start counting.

        Args:
            root: id of the process at the top.

        Raises:
            GoneError: it has ended.
        """
        self._root = root
        self._begin_s = _tree_cpu_s(root)
        self._machine_begin_s = machine_cpu_s()
        self._own_begin_s = _own_cpu_s()
        self._wall_begin_s = time.monotonic()

    def read(self) -> tuple[float, float]:
        """CPU seconds of the tree, and the share others took of one CPU, in percent.

        Others are all but the tree, this process, and the children it has waited for.

        Raises:
            GoneError: the process at the top has ended.
        """
        used_s = _tree_cpu_s(self._root) - self._begin_s
        ours_s = used_s + _own_cpu_s() - self._own_begin_s
        others_s = machine_cpu_s() - self._machine_begin_s - ours_s
        wall_s = max(time.monotonic() - self._wall_begin_s, 1e-9)
        return used_s, max(0.0, 100 * others_s / wall_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Ours over theirs: of the medians, with the bounds of its interval."""

    value: float
    low: float
    high: float


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio | None:
    """Compare two series whose entries belong to the same rounds.

    Returns:
        ``None`` when there is nothing to compare, or a median is not positive: differences
        within the noise have no ratio. With fewer than three rounds the interval is what was
        seen, not an estimate.
    """
    pairs = list(zip(ours, theirs, strict=True))
    if not pairs or statistics.median(theirs) <= 0 or statistics.median(ours) < 0:
        return None
    drawn = sorted(_resampled(pairs))
    edge = int(len(drawn) * (1 - CONFIDENCE) / 2)
    value = statistics.median(ours) / statistics.median(theirs)
    return Ratio(value=value, low=drawn[edge], high=drawn[-1 - edge])


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that ``percent`` of the values do not exceed.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("percentile: expected at least one value")
    rank = max(0, -(-len(values) * percent // 100) - 1)
    return sorted(values)[int(rank)]


def jain(values: Sequence[float]) -> float:
    """Jain's fairness index: 1 when all are equal, 1/n when one has everything."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 0.0


def _resampled(pairs: Sequence[tuple[float, float]]) -> Iterable[float]:
    rng = random.Random(0)  # noqa: S311 - a fixed seed: the same samples give the same interval
    for _ in range(BOOTSTRAP_DRAWS):
        draw = rng.choices(pairs, k=len(pairs))
        below = statistics.median(theirs for _, theirs in draw)
        if below > 0:
            yield statistics.median(ours for ours, _ in draw) / below


def _tree_cpu_s(root: int) -> float:
    """CPU seconds of a tree's processes, and of the children they have waited for."""
    total = cpu_s(root)
    for pid in tree(root):
        fields = _read(PROC / str(pid) / "stat").rpartition(")")[2].split()
        if fields:
            total += sum(map(int, fields[13:15])) / os.sysconf("SC_CLK_TCK")
        if pid != root:
            with contextlib.suppress(GoneError):
                total += cpu_s(pid)
    return total


def _own_cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in used)


def _process_clock(pid: int) -> int:
    """The clock id of a process's CPU time. Source: Linux, CPUCLOCK_SCHED in posix-timers."""
    return (~pid << 3) | 2


def _read(path: Path) -> str:
    """A file of /proc; empty if its process has ended, or the kernel has no such file."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _listdir(path: Path) -> tuple[Path, ...]:
    try:
        return tuple(path.iterdir())
    except OSError:
        return ()
