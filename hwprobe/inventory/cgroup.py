"""Control groups, version 1 and 2: limits of this process's group and of all its ancestors.

Source: the kernel's cgroup-v2.rst and cgroup-v1/memory.rst; what is reclaimable follows from
their description of ``memory.stat``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hwprobe.inventory.cores import processor_list
from hwprobe.inventory.files import exists, integer, read_integer, read_line, read_table, read_text
from hwprobe.machine import CgroupMemory

_UNLIMITED_BYTES = 1 << 62
"""Version 1 writes 2^63 rounded down to a page for "no limit"."""
_MIN_MOUNT_FIELDS = 5


@dataclass(frozen=True, slots=True)
class _Hierarchy:
    """Where one hierarchy is mounted and which of its groups this process is in."""

    version: int
    mount_point: str
    group: str


def read_cgroup_memory(root: Path) -> tuple[CgroupMemory, ...]:
    """The levels that limit memory, innermost first; empty without control groups."""
    levels: list[CgroupMemory] = []
    for hierarchy in _hierarchies(root, "memory"):
        read = _memory_v2 if hierarchy.version == 2 else _memory_v1  # noqa: PLR2004
        for directory in _upwards(root, hierarchy):
            level = read(root, directory)
            if level is not None:
                levels.append(level)
    return tuple(levels)


def read_cpu_quota(root: Path) -> float | None:
    """The smallest quota of any level, in processors; ``None`` without one."""
    quotas: list[float] = []
    for hierarchy in _hierarchies(root, "cpu"):
        for directory in _upwards(root, hierarchy):
            if hierarchy.version == 2:  # noqa: PLR2004
                words = read_line(root, f"{directory}/cpu.max").split()
                quota = integer(words[0]) if words else None
                period = integer(words[1]) if len(words) > 1 else 100_000
            else:
                quota = read_integer(root, f"{directory}/cpu.cfs_quota_us")
                period = read_integer(root, f"{directory}/cpu.cfs_period_us")
            if quota and period and quota > 0 and period > 0:
                quotas.append(quota / period)
    return min(quotas, default=None)


def read_cpuset(root: Path) -> tuple[int, ...]:
    """Logical processors the control groups allow; empty where they do not say.

    The affinity mask of a process lies within them already; a recorded tree need not have one.
    """
    for name in ("cpuset", ""):
        for hierarchy in _hierarchies(root, "cpuset"):
            if (hierarchy.version == 1) != (name == "cpuset"):
                continue
            for directory in _upwards(root, hierarchy):
                for file in ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"):
                    processors = processor_list(read_line(root, f"{directory}/{file}"))
                    if processors:
                        return processors
    return ()


def _memory_v2(root: Path, directory: str) -> CgroupMemory | None:
    bounds = [read_integer(root, f"{directory}/memory.{name}") for name in ("max", "high")]
    known = [bound for bound in bounds if bound is not None and 0 <= bound < _UNLIMITED_BYTES]
    if not known:
        return None
    stat = read_table(root, f"{directory}/memory.stat")
    names = ("inactive_file", "active_file", "slab_reclaimable")
    return CgroupMemory(
        path=directory,
        limit_bytes=min(known),
        used_bytes=max(0, read_integer(root, f"{directory}/memory.current") or 0),
        reclaimable_bytes=sum(max(0, stat.get(name, 0)) for name in names),
    )


def _memory_v1(root: Path, directory: str) -> CgroupMemory | None:
    limit = read_integer(root, f"{directory}/memory.limit_in_bytes")
    if limit is None or not 0 <= limit < _UNLIMITED_BYTES:
        return None
    stat = read_table(root, f"{directory}/memory.stat")
    names = ("total_inactive_file", "total_active_file")
    return CgroupMemory(
        path=directory,
        limit_bytes=limit,
        used_bytes=max(0, read_integer(root, f"{directory}/memory.usage_in_bytes") or 0),
        reclaimable_bytes=sum(max(0, stat.get(name, 0)) for name in names),
    )


def _upwards(root: Path, hierarchy: _Hierarchy) -> Iterator[str]:
    """Directories from the process's group up to the mount point, both included."""
    mount = PurePosixPath(hierarchy.mount_point)
    group = mount / hierarchy.group.lstrip("/")
    if ".." in group.parts or not exists(root, str(group)):
        # A container sees the host's group path but only its own part of the tree.
        group = mount
    while group not in (mount, group.parent):
        yield str(group)
        group = group.parent
    yield str(mount)


def _hierarchies(root: Path, controller: str) -> Iterator[_Hierarchy]:
    groups = _groups(root)
    for line in read_text(root, "/proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < _MIN_MOUNT_FIELDS or not kind:
            continue
        mount_root, mount_point = fields[3], fields[4]
        if kind[0] == "cgroup2" and "" in groups:
            yield _Hierarchy(2, mount_point, _below(groups[""], mount_root))
        elif kind[0] == "cgroup" and controller in kind[-1].split(",") and controller in groups:
            yield _Hierarchy(1, mount_point, _below(groups[controller], mount_root))


def _below(group: str, mount_root: str) -> str:
    """A bind mount shows only the part of the hierarchy below ``mount_root``."""
    if mount_root != "/" and (group == mount_root or group.startswith(mount_root + "/")):
        return group[len(mount_root) :] or "/"
    return group


def _groups(root: Path) -> dict[str, str]:
    """Group of this process per version 1 controller, and under the empty name for version 2."""
    groups: dict[str, str] = {}
    for line in read_text(root, "/proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if path.startswith("/"):
            names = [""] if number == "0" and not controllers else controllers.split(",")
            groups.update(dict.fromkeys(names, path))
    return groups
