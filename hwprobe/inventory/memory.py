"""Host memory: /proc/meminfo and the limits on one process."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Final

from hwprobe.inventory.files import (
    integer,
    names_in,
    read_bytes,
    read_integer,
    read_line,
    read_table,
    read_text,
)
from hwprobe.machine import CgroupMemory, Memory

_STRICT_OVERCOMMIT = 2
MAX_MEMORY_BYTES: Final = 1 << 52
"""Why: the widest physical addresses have 52 bits (x86-64 and ARM64); more is not memory."""
_PAGE_SIZES = (4096, 16384, 65536)
_AT_PAGESZ = 6
"""Source: elf.h, entries of the auxiliary vector."""
_USED_FIELD = 2
"""Source: the kernel's admin-guide/blockdev/zram.rst, columns of mm_stat."""


def read_memory(root: Path, *, cgroups: tuple[CgroupMemory, ...]) -> Memory:
    """What is installed, what is available, and what else bounds it."""
    table = read_table(root, "/proc/meminfo")
    total = _plausible(table.get("MemTotal", 0))
    available = _plausible(_available(table))
    huge = _plausible(table.get("Hugepagesize", 0))
    zram_used, zram_size = _zram(root)
    return Memory(
        total_bytes=total,
        available_bytes=min(available, total) if total else available,
        swap_total_bytes=_plausible(table.get("SwapTotal", 0)),
        page_bytes=_page_bytes(root),
        cgroups=cgroups,
        address_space_bytes=_address_space(root),
        commit_bytes=_commit(root, table),
        lockable_bytes=_limit(root, "Max locked memory"),
        overcommit=_policy(root),
        zram_bytes=zram_used,
        zram_size_bytes=zram_size,
        hugepages_bytes=_plausible(table.get("HugePages_Total", 0) * huge),
        hugepages_free_bytes=_plausible(table.get("HugePages_Free", 0) * huge),
        transparent_hugepages=_chosen(
            read_line(root, "/sys/kernel/mm/transparent_hugepage/enabled")
        ),
        cma_bytes=_plausible(table.get("CmaTotal", 0)),
        cma_free_bytes=_plausible(table.get("CmaFree", 0)),
        pressure_percent=_pressure(root),
    )


def _plausible(size: int) -> int:
    """A number of bytes, or 0 where it cannot be one."""
    return size if 0 <= size < MAX_MEMORY_BYTES else 0


def _available(table: dict[str, int]) -> int:
    if "MemAvailable" in table:
        return table["MemAvailable"]
    # Some containers do not show MemAvailable: free pages and page cache, less what is shared.
    free = table.get("MemFree", 0) + table.get("Cached", 0) + table.get("SReclaimable", 0)
    return free - table.get("Shmem", 0)


def _page_bytes(root: Path) -> int:
    """Of the machine that was recorded: its processes are told when they start."""
    if root == Path(os.sep):
        return os.sysconf("SC_PAGE_SIZE")
    vector = read_bytes(root, "/proc/self/auxv")
    for kind, value in struct.iter_unpack("<QQ", vector[: len(vector) // 16 * 16]):
        if kind == _AT_PAGESZ and value in _PAGE_SIZES:
            return int(value)
    return _PAGE_SIZES[0]


def _limit(root: Path, name: str) -> int | None:
    for line in read_text(root, "/proc/self/limits").splitlines():
        if line.startswith(name):
            words = line.removeprefix(name).split()
            size = integer(words[0]) if words else None
            return size if size is not None and size >= 0 else None
    return None


def _address_space(root: Path) -> int | None:
    limit = _limit(root, "Max address space")
    if limit is None:
        return None
    return max(0, limit - read_table(root, "/proc/self/status").get("VmSize", 0))


def _policy(root: Path) -> int | None:
    policy = read_integer(root, "/proc/sys/vm/overcommit_memory")
    return policy if policy in (0, 1, _STRICT_OVERCOMMIT) else None


def _commit(root: Path, table: dict[str, int]) -> int | None:
    if _policy(root) != _STRICT_OVERCOMMIT:
        return None
    if "CommitLimit" not in table or "Committed_AS" not in table:
        return None
    return max(0, table["CommitLimit"] - table["Committed_AS"])


def _zram(root: Path) -> tuple[int, int]:
    """Memory that compressed swap takes now, and what it holds at most."""
    used = size = 0
    for name in names_in(root, "/sys/block"):
        if name.startswith("zram"):
            fields = read_line(root, f"/sys/block/{name}/mm_stat").split()
            numbers = [integer(field) or 0 for field in fields]
            used += _plausible(numbers[_USED_FIELD]) if len(numbers) > _USED_FIELD else 0
            size += _plausible(read_integer(root, f"/sys/block/{name}/disksize") or 0)
    return used, size


def _chosen(text: str) -> str:
    """The word in brackets of ``always [madvise] never``."""
    word = text.partition("[")[2].partition("]")[0]
    return word if word in {"always", "madvise", "never"} else ""


def _pressure(root: Path) -> float | None:
    """``some avg60`` of the kernel's pressure stall information."""
    for word in read_text(root, "/proc/pressure/memory").partition("\n")[0].split():
        name, _, value = word.partition("=")
        whole, _, part = value.partition(".")
        if name == "avg60" and integer(whole) is not None and integer(part or "0") is not None:
            percent = float(f"{int(whole)}.{part or 0}")
            return percent if 0 <= percent <= 100 else None  # noqa: PLR2004 - a percentage
    return None
