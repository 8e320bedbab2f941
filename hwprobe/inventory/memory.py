"""Host memory: /proc/meminfo and the limits on one process."""

from __future__ import annotations

import os
from pathlib import Path

from hwprobe.inventory.files import integer, read_integer, read_table, read_text
from hwprobe.machine import CgroupMemory, Memory

_STRICT_OVERCOMMIT = 2


def read_memory(root: Path, *, cgroups: tuple[CgroupMemory, ...]) -> Memory:
    """What is installed, what is available, and what else bounds it."""
    table = read_table(root, "/proc/meminfo")
    return Memory(
        total_bytes=max(0, table.get("MemTotal", 0)),
        available_bytes=max(0, _available(table)),
        swap_total_bytes=max(0, table.get("SwapTotal", 0)),
        page_bytes=os.sysconf("SC_PAGE_SIZE"),
        cgroups=cgroups,
        address_space_bytes=_address_space(root),
        commit_bytes=_commit(root, table),
    )


def _available(table: dict[str, int]) -> int:
    if "MemAvailable" in table:
        return table["MemAvailable"]
    # Some containers do not show MemAvailable: free pages and page cache, less what is shared.
    free = table.get("MemFree", 0) + table.get("Cached", 0) + table.get("SReclaimable", 0)
    return free - table.get("Shmem", 0)


def _address_space(root: Path) -> int | None:
    for line in read_text(root, "/proc/self/limits").splitlines():
        if line.startswith("Max address space"):
            limit = integer(line.removeprefix("Max address space").split()[0])
            if limit is None:
                return None
            used = read_table(root, "/proc/self/status").get("VmSize", 0)
            return max(0, limit - used)
    return None


def _commit(root: Path, table: dict[str, int]) -> int | None:
    if read_integer(root, "/proc/sys/vm/overcommit_memory") != _STRICT_OVERCOMMIT:
        return None
    if "CommitLimit" not in table or "Committed_AS" not in table:
        return None
    return max(0, table["CommitLimit"] - table["Committed_AS"])
