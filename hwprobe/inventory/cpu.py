"""Processors: how many this process may use, which of them are big, what they can do."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import psutil

from hwprobe.errors import QuantityError
from hwprobe.inventory.cores import core_kinds, processor_list
from hwprobe.inventory.files import read_line, read_text
from hwprobe.machine import Cpu
from hwprobe.quantity import Bytes

_FEATURES = frozenset(
    (
        *("avx", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni"),
        *("avx512_bf16", "amx_int8", "amx_tile", "amx_bf16", "bmi2", "f16c", "fma", "ssse3"),
        *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"),
    )
)
"""Instruction sets that ggml's CPU backend has kernels for. Source: ggml-cpu.c, ggml_cpu_has_*."""
_MAX_SOCKETS: Final = 64
_MAX_CACHE_BYTES: Final = 1 << 34
"""Why: the largest caches are about 1 GiB per socket; what is above is not a cache."""


def read_cpu(root: Path, *, quota: float | None, cpuset: tuple[int, ...] = ()) -> Cpu:
    """The processors of the machine at ``root``, under a control group's quota and set."""
    info = _cpuinfo(root)
    online = processor_list(read_line(root, "/sys/devices/system/cpu/online"))
    if not online:
        online = tuple(range(max(1, info.count("processor"))))
    allowed = _allowed(root, online, cpuset)
    features = info.get("flags") or info.get("Features")
    cores = {_core(root, number): number for number in reversed(allowed)}
    kinds = core_kinds(root, tuple(cores.values()))
    return Cpu(
        model=info.get("model name") or info.get("Model") or info.get("Hardware") or "",
        architecture=_architecture(root, info),
        online=len(online),
        allowed=len(allowed),
        allowed_cores=_physical(root, len(cores), allowed, online),
        big_cores=sum(kind.cores for kind in kinds if kind.big),
        quota=quota,
        features=tuple(sorted(_FEATURES & set(features.split()))),
        sockets=_sockets(root, online),
        kinds=kinds if len(kinds) > 1 or any(kind.name for kind in kinds) else (),
        cache_bytes=_cache(root, allowed),
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


def _architecture(root: Path, info: _CpuInfo) -> str:
    """As the kernel names it; of a recorded tree by its files, never by this machine."""
    named = read_line(root, "/proc/sys/kernel/arch")  # Linux 6.1 and later
    if named or root == Path(os.sep):
        return named or platform.machine()
    if info.get("Features"):
        return "aarch64"
    return "x86_64" if info.get("flags") else ""


def _allowed(root: Path, online: tuple[int, ...], cpuset: tuple[int, ...]) -> tuple[int, ...]:
    allowed = set(online)
    for line in read_text(root, "/proc/self/status").splitlines():
        if line.startswith("Cpus_allowed_list:"):
            allowed &= set(processor_list(line.partition(":")[2]))
    narrowed = allowed & set(cpuset) if cpuset else allowed
    return tuple(sorted(narrowed or allowed)) or online


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


def _sockets(root: Path, online: Sequence[int]) -> int:
    path = "/sys/devices/system/cpu/cpu{}/topology/physical_package_id"
    packages = {read_line(root, path.format(number)) for number in online}
    known = {one for one in packages if one.isascii() and one.isdigit()}
    return min(max(1, len(known)), _MAX_SOCKETS)


def _cache(root: Path, allowed: Sequence[int]) -> int:
    """The last-level caches, each counted once however many processors share it."""
    sizes: dict[str, int] = {}
    for number in allowed:
        for index in (3, 2):
            directory = f"/sys/devices/system/cpu/cpu{number}/cache/index{index}"
            text = read_line(root, f"{directory}/size")
            if text:
                shared = read_line(root, f"{directory}/shared_cpu_list") or str(number)
                sizes[f"{index} {shared}"] = _size(text)
                break
    return sum(sizes.values())


def _size(text: str) -> int:
    """``1280K`` in bytes; 0 when it is no size."""
    try:
        size = int(Bytes.parse(text))
    except QuantityError:
        return 0
    return size if size < _MAX_CACHE_BYTES else 0
