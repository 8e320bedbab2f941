"""What kind of machine this is: board, virtual machine, container."""

from __future__ import annotations

from pathlib import Path

from hwprobe.inventory.files import exists, read_line, read_text
from hwprobe.machine import Board

_PLACEHOLDERS = ("", "To Be Filled By O.E.M.", "Default string", "System Product Name")


def read_board(root: Path) -> Board:
    """Name and kind of the machine; empty where nothing names it."""
    tree_model = read_line(root, "/proc/device-tree/model")
    names = [
        read_line(root, f"/sys/class/dmi/id/{name}") for name in ("sys_vendor", "product_name")
    ]
    dmi = " ".join(name for name in names if name not in _PLACEHOLDERS)
    return Board(
        name=tree_model or dmi,
        single_board=bool(tree_model),
        virtual=_virtual(root),
        kernel=read_line(root, "/proc/sys/kernel/osrelease"),
    )


def _virtual(root: Path) -> str:
    if exists(root, "/.dockerenv") or exists(root, "/run/.containerenv"):
        return "container"
    cpuinfo = read_text(root, "/proc/cpuinfo")
    flags = next((line for line in cpuinfo.splitlines() if line.startswith("flags")), "")
    return "virtual machine" if "hypervisor" in flags.split() else ""
