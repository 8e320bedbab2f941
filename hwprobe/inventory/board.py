"""What kind of machine this is: board, virtual machine, container."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from hwprobe.inventory.files import exists, names_in, read_line, read_text
from hwprobe.machine import Board

_PLACEHOLDERS = ("", "To Be Filled By O.E.M.", "Default string", "System Product Name")
_FAMILIES: Final = (
    ("raspberrypi,", "raspberry-pi"),
    ("rockchip,", "rockchip"),
    ("nvidia,tegra", "jetson"),
)
"""Beginning of a device tree's ``compatible`` and the family it stands for."""
_VIRTUAL_VENDORS: Final = ("QEMU", "VMware", "Xen", "innotek", "Parallels", "Amazon EC2", "Google")
"""Vendors in DMI that are hypervisors or clouds."""
_ACCELERATORS: Final = (
    ("/dev/rknpu", "Rockchip NPU"),
    ("/dev/hailo0", "Hailo accelerator"),
    ("/dev/apex_0", "Coral accelerator"),
)


def read_board(root: Path) -> Board:
    """Name and kind of the machine; empty where nothing names it."""
    tree_model = read_line(root, "/proc/device-tree/model")
    tree = read_text(root, "/proc/device-tree/compatible")
    compatible = tuple(part.strip() for part in tree.split("\0") if part.strip())
    names = [
        read_line(root, f"/sys/class/dmi/id/{name}") for name in ("sys_vendor", "product_name")
    ]
    dmi = " ".join(name for name in names if name not in _PLACEHOLDERS)
    container = _container(root)
    return Board(
        name=tree_model or dmi,
        single_board=bool(tree_model),
        virtual="container" if container else _virtual(root, dmi),
        kernel=read_line(root, "/proc/sys/kernel/osrelease"),
        family=_family(root, compatible, dmi),
        compatible=compatible,
        container=container,
        accelerators=_accelerators(root),
    )


def _family(root: Path, compatible: tuple[str, ...], dmi: str) -> str:
    for beginning, family in _FAMILIES:
        if any(one.startswith(beginning) for one in compatible):
            return family
    words = dmi.replace("_", " ")
    if "DGX Spark" in words or "GB10" in words:
        return "gb10"
    # The processor's name: "AMD RYZEN AI MAX+ 395 w/ Radeon 8060S".
    if "RYZEN AI MAX" in read_text(root, "/proc/cpuinfo").upper():
        return "strix-halo"
    return ""


def _container(root: Path) -> str:
    """The kind of container this process is in, or empty."""
    if "kubepods" in read_text(root, "/proc/self/cgroup"):
        return "kubernetes"
    if exists(root, "/.dockerenv"):
        return "docker"
    if exists(root, "/run/.containerenv"):
        return "podman"
    named = read_line(root, "/run/systemd/container")
    for entry in read_text(root, "/proc/1/environ").split("\0"):
        name, _, value = entry.partition("=")
        if name == "container":
            named = named or value.strip()
    return named if named.isascii() and named.replace("-", "").isalnum() else ""


def _virtual(root: Path, dmi: str) -> str:
    cpuinfo = read_text(root, "/proc/cpuinfo")
    flags = next((line for line in cpuinfo.splitlines() if line.startswith("flags")), "")
    by_name = dmi.startswith(_VIRTUAL_VENDORS) or "Virtual Machine" in dmi
    by_kernel = bool(read_line(root, "/sys/hypervisor/type"))
    return "virtual machine" if by_name or by_kernel or "hypervisor" in flags.split() else ""


def _accelerators(root: Path) -> tuple[str, ...]:
    named = [name for path, name in _ACCELERATORS if exists(root, path)]
    return (*named, *(f"accelerator {name}" for name in names_in(root, "/sys/class/accel")))
