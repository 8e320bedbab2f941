"""Which cores are big: capacity, the kernel's own lists, or the highest clock."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from hwprobe.inventory.files import integer, read_integer, read_line, read_text
from hwprobe.machine import CoreKind

MAX_PROCESSORS: Final = 8192
"""Source: NR_CPUS of the largest kernel configurations (x86 MAXSMP)."""
BIG_CORE_SHARE: Final = 0.6
"""A core is big when its capacity or clock is above this share of the best one's.

Why: efficiency cores stand at 0.25 to 0.55 (A55 beside A76, E beside P cores), while boost clocks
of equal cores differ by a few percent.
"""
_MAX_KHZ: Final = 20_000_000
"""Why: no processor runs at 20 GHz; what is above is not a clock."""
_PARTS: Final = {
    "0xd03": "Cortex-A53",
    "0xd04": "Cortex-A35",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73",
    "0xd0a": "Cortex-A75",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd40": "Neoverse-V1",
    "0xd41": "Cortex-A78",
    "0xd42": "Cortex-A78AE",
    "0xd44": "Cortex-X1",
    "0xd46": "Cortex-A510",
    "0xd47": "Cortex-A710",
    "0xd48": "Cortex-X2",
    "0xd49": "Neoverse-N2",
    "0xd4d": "Cortex-A715",
    "0xd4e": "Cortex-X3",
    "0xd4f": "Neoverse-V2",
    "0xd80": "Cortex-A520",
    "0xd81": "Cortex-A720",
    "0xd82": "Cortex-X4",
    "0xd85": "Cortex-X925",
    "0xd87": "Cortex-A725",
}
"""Designs by ``CPU part``. Source: arch/arm64/include/asm/cputype.h of the kernel."""


def processor_list(text: str) -> tuple[int, ...]:
    """Read the kernel's list form, such as ``0-3,8``; nothing when it is not one."""
    numbers: set[int] = set()
    for part in text.strip().split(",") if text.strip() else ():
        first, _, last = part.partition("-")
        low, high = integer(first), integer(last or first)
        if low is None or high is None or not 0 <= low <= high < MAX_PROCESSORS:
            return ()
        numbers.update(range(low, high + 1))
    return tuple(sorted(numbers))


def core_kinds(root: Path, representatives: Sequence[int]) -> tuple[CoreKind, ...]:
    """Kinds of cores, one logical processor standing for each; big ones first.

    The kernel's lists of performance and efficiency cores decide where there are any, then the
    capacity it gives each core, then its highest clock; without these all cores are big.
    """
    names = _names(root)
    clocks = {number: _clock(root, number) for number in representatives}
    big = _big(root, representatives, clocks)
    kinds: dict[tuple[bool, int, str], int] = {}
    for number in representatives:
        key = (number in big, clocks[number] or 0, names.get(number, ""))
        kinds[key] = kinds.get(key, 0) + 1
    return tuple(
        CoreKind(name=name, cores=count, big=is_big, max_khz=clock or None)
        for (is_big, clock, name), count in sorted(kinds.items(), reverse=True)
    )


def _big(
    root: Path, representatives: Sequence[int], clocks: dict[int, int | None]
) -> frozenset[int]:
    listed = frozenset(processor_list(read_line(root, "/sys/devices/cpu_core/cpus")))
    if listed & set(representatives):
        return listed & set(representatives)
    speeds = {
        number: read_integer(root, f"/sys/devices/system/cpu/cpu{number}/cpu_capacity")
        or clocks[number]
        for number in representatives
    }
    known = [speed for speed in speeds.values() if speed is not None and speed > 0]
    if len(known) < len(speeds):
        return frozenset(representatives)
    least = BIG_CORE_SHARE * max(known)
    return frozenset(number for number, speed in speeds.items() if (speed or 0) >= least)


def _clock(root: Path, number: int) -> int | None:
    path = f"/sys/devices/system/cpu/cpu{number}/cpufreq/cpuinfo_max_freq"
    clock = read_integer(root, path)
    return clock if clock is not None and 0 < clock < _MAX_KHZ else None


def _names(root: Path) -> dict[int, str]:
    """Design of each logical processor, as far as something tells them apart."""
    names: dict[int, str] = {}
    for kind, name in (("core", "performance"), ("atom", "efficiency")):
        listed = processor_list(read_line(root, f"/sys/devices/cpu_{kind}/cpus"))
        names.update(dict.fromkeys(listed, name))
    number: int | None = None
    for line in read_text(root, "/proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "processor":
            number = integer(value)
        elif name.strip() == "CPU part" and number is not None:
            names[number] = _PARTS.get(value.strip().lower(), value.strip())
    return names
