"""Processors: how many this process may use, which of them are big, what they can do."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Final

import psutil

from hwprobe.inventory.files import integer, read_integer, read_line, read_text
from hwprobe.machine import Cpu

MAX_PROCESSORS: Final = 8192
"""Source: NR_CPUS of the largest kernel configurations (x86 MAXSMP)."""
BIG_CORE_SHARE: Final = 0.6
"""A core is big when its capacity or clock is above this share of the best one's.

Why: efficiency cores stand at 0.25 to 0.55 (A55 beside A76, E beside P cores), while boost clocks
of equal cores differ by a few percent.
"""
_FEATURES = frozenset(
    (
        *("avx", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni"),
        *("avx512_bf16", "amx_int8", "amx_tile", "amx_bf16", "bmi2", "f16c", "fma", "ssse3"),
        *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"),
    )
)
"""Instruction sets that ggml's CPU backend has kernels for. Source: ggml-cpu.c, ggml_cpu_has_*."""


def read_cpu(root: Path, *, quota: float | None) -> Cpu:
    """The processors of the machine at ``root``, under the given control-group quota."""
    info = _cpuinfo(root)
    online = _processor_list(read_line(root, "/sys/devices/system/cpu/online"))
    if not online:
        online = tuple(range(max(1, info.count("processor"))))
    allowed = _allowed(root, online)
    features = info.get("flags") or info.get("Features")
    cores = {_core(root, number): number for number in reversed(allowed)}
    return Cpu(
        model=info.get("model name") or info.get("Model") or info.get("Hardware") or "",
        architecture=platform.machine(),
        online=len(online),
        allowed=len(allowed),
        allowed_cores=_physical(root, len(cores), allowed, online),
        big_cores=_big(root, tuple(cores.values())),
        quota=quota,
        features=tuple(sorted(_FEATURES & set(features.split()))),
    )


class _CpuInfo:
    """First value per name in /proc/cpuinfo, and how often each name occurs."""

    def __init__(self, text: str) -> None:
        self._values: dict[str, str] = {}
        self._counts: dict[str, int] = {}
        for line in text.splitlines():
            name, _, value = line.partition(":")
            self._values.setdefault(name.strip(), value.strip())
            self._counts[name.strip()] = self._counts.get(name.strip(), 0) + 1

    def get(self, name: str) -> str:
        return self._values.get(name, "")

    def count(self, name: str) -> int:
        return self._counts.get(name, 0)


def _cpuinfo(root: Path) -> _CpuInfo:
    return _CpuInfo(read_text(root, "/proc/cpuinfo"))


def _allowed(root: Path, online: tuple[int, ...]) -> tuple[int, ...]:
    for line in read_text(root, "/proc/self/status").splitlines():
        if line.startswith("Cpus_allowed_list:"):
            allowed = set(_processor_list(line.partition(":")[2])) & set(online)
            return tuple(sorted(allowed)) or online
    return online


def _processor_list(text: str) -> tuple[int, ...]:
    """Read the kernel's list form, such as ``0-3,8``; nothing when it is not one."""
    numbers: set[int] = set()
    for part in text.strip().split(",") if text.strip() else ():
        first, _, last = part.partition("-")
        low, high = integer(first), integer(last or first)
        if low is None or high is None or not 0 <= low <= high < MAX_PROCESSORS:
            return ()
        numbers.update(range(low, high + 1))
    return tuple(sorted(numbers))


def _core(root: Path, number: int) -> tuple[str, str]:
    """What identifies the core of a logical processor; itself when the topology is unknown."""
    topology = f"/sys/devices/system/cpu/cpu{number}/topology"
    siblings = read_line(root, f"{topology}/thread_siblings_list")
    if siblings:
        return ("siblings", siblings)
    return ("processor", str(number))


def _physical(root: Path, counted: int, allowed: tuple[int, ...], online: tuple[int, ...]) -> int:
    """Cores among the allowed processors; the machine's own count when no topology is shown."""
    shown = read_line(root, f"/sys/devices/system/cpu/cpu{allowed[0]}/topology/core_id")
    if shown or root != Path(os.sep) or len(allowed) != len(online):
        return counted
    return min(counted, psutil.cpu_count(logical=False) or counted)


def _big(root: Path, representatives: tuple[int, ...]) -> int:
    speeds = [
        read_integer(root, f"/sys/devices/system/cpu/cpu{number}/cpu_capacity")
        or read_integer(root, f"/sys/devices/system/cpu/cpu{number}/cpufreq/cpuinfo_max_freq")
        for number in representatives
    ]
    known = [speed for speed in speeds if speed is not None and speed > 0]
    if len(known) < len(speeds):
        return len(representatives)
    return sum(speed >= BIG_CORE_SHARE * max(known) for speed in known)
