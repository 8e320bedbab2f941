"""Find out what this machine is: each source a module, each fact a value or its absence.

Every file is read below ``root``, so that a recorded tree gives the same answer as the machine.
"""

from __future__ import annotations

from pathlib import Path

from hwprobe.inventory.board import read_board
from hwprobe.inventory.cgroup import read_cgroup_memory, read_cpu_quota
from hwprobe.inventory.cpu import read_cpu
from hwprobe.inventory.disk import read_disk
from hwprobe.inventory.memory import read_memory
from hwprobe.inventory.nvidia import read_nvidia
from hwprobe.machine import Machine

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
        disk_path: directory, below ``root``, whose file system will hold the models.
        ask_driver: ask the NVIDIA driver; by default only when ``root`` is this machine's.
        engine_offload: what `hwprobe.engine.engine_info` said about GPUs.
    """
    live = root == Path("/")
    nvidia, gpus = read_nvidia(root, ask_driver=live if ask_driver is None else ask_driver)
    return Machine(
        cpu=read_cpu(root, quota=read_cpu_quota(root)),
        memory=read_memory(root, cgroups=read_cgroup_memory(root)),
        gpus=gpus,
        nvidia=nvidia,
        board=read_board(root),
        disk=read_disk(root, disk_path),
        engine_offload=engine_offload,
    )
