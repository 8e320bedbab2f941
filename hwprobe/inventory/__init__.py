"""Find out what this machine is: each source a module, each fact a value or its absence.

Every file is read below ``root``, so that a recorded tree gives the same answer as the machine.
"""

from __future__ import annotations

from pathlib import Path

from hwprobe.inventory.board import read_board
from hwprobe.inventory.cgroup import read_cgroup_memory, read_cpu_quota, read_cpuset
from hwprobe.inventory.cpu import read_cpu
from hwprobe.inventory.disk import read_disk
from hwprobe.inventory.drm import read_other_gpus
from hwprobe.inventory.memory import read_memory
from hwprobe.inventory.numa import read_numa
from hwprobe.inventory.nvidia import may_have_driver, read_nvidia
from hwprobe.inventory.thermal import read_thermal
from hwprobe.machine import Disk, Machine

__all__ = ["take_inventory"]


def take_inventory(
    root: Path = Path("/"),
    *,
    disk_path: Path = Path("/"),
    ask_driver: bool | None = None,
    engine_offload: bool | None = None,
) -> Machine:
    """Look at the machine whose file system stands at ``root``. Never raises for what it finds.

    Args:
        root: the machine's root, or a recorded tree.
        disk_path: directory of this machine whose file system will hold the models; not looked
            at below another root.
        ask_driver: load and ask the NVIDIA driver's library; by default only when ``root`` is
            this machine's and there is a card or a driver.
        engine_offload: what `hwprobe.engine.engine_info` said about GPUs.
    """
    live = root == Path("/")
    asked = (live and may_have_driver(root)) if ask_driver is None else ask_driver
    nvidia, gpus = read_nvidia(root, ask_driver=asked)
    return Machine(
        cpu=read_cpu(root, quota=read_cpu_quota(root), cpuset=read_cpuset(root)),
        memory=read_memory(root, cgroups=read_cgroup_memory(root)),
        gpus=gpus,
        nvidia=nvidia,
        board=read_board(root),
        disk=read_disk(disk_path) if live else Disk(path=str(disk_path)),
        numa=read_numa(root),
        thermal=read_thermal(root),
        other_gpus=read_other_gpus(root),
        engine_offload=engine_offload,
    )
