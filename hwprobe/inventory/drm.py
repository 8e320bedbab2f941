"""GPUs of AMD and Intel, as the kernel's drivers describe them in sysfs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hwprobe.inventory.files import (
    exists,
    integer,
    names_in,
    read_integer,
    read_line,
    read_table,
    read_text,
)
from hwprobe.inventory.memory import MAX_MEMORY_BYTES
from hwprobe.machine import OtherGpu

_CARDS = "/sys/class/drm"
_VENDORS: Final = {"0x1002": "AMD", "0x8086": "Intel"}
_PART_OF_PROCESSOR: Final = frozenset(
    (
        *(90002, 90009, 90012, 100103, 100303, 100305, 100306, 110003),
        *(110500, 110501, 110502, 110503),
    )
)
"""gfx_target_version of AMD's GPUs that are part of a processor, gfx902 to gfx1153.
Source: the processor table of LLVM's AMDGPU documentation, type APU."""
_INTEL_ON_DIE = "0000:00:02.0"
"""Intel's graphics in a processor always stand at this address."""
_WINDOW_LINE = 2
"""Line of PCI ``resource`` with the window on a discrete Intel card's memory (BAR 2)."""
_LEAST_WINDOW_BYTES = 1 << 30
"""Why: without a resizable window it shows 256 MiB, whatever the card has."""


def read_other_gpus(root: Path) -> tuple[OtherGpu, ...]:
    """AMD's and Intel's cards, in the order of the kernel's numbers."""
    found = []
    for name in names_in(root, _CARDS):
        number = integer(name.removeprefix("card")) if name.startswith("card") else None
        if number is not None:
            device = f"{_CARDS}/{name}/device"
            vendor = _VENDORS.get(read_line(root, f"{device}/vendor").lower())
            if vendor == "AMD":
                found.append((number, _amd(root, device)))
            elif vendor == "Intel":
                found.append((number, _intel(root, f"{_CARDS}/{name}")))
    return tuple(gpu for _, gpu in sorted(found, key=lambda pair: pair[0]))


def _amd(root: Path, device: str) -> OtherGpu:
    facts = dict(_facts(root, device))
    bus = facts.get("PCI_SLOT_NAME", "")
    own = _bytes(root, f"{device}/mem_info_vram_total")
    return OtherGpu(
        vendor="AMD",
        name=read_line(root, f"{device}/product_name") or _pci_id(root, device),
        bus_id=bus,
        driver=facts.get("DRIVER", ""),
        total_bytes=own,
        used_bytes=min(own, _bytes(root, f"{device}/mem_info_vram_used")),
        shared_bytes=_bytes(root, f"{device}/mem_info_gtt_total"),
        unified=_gfx_version(root, bus) in _PART_OF_PROCESSOR,
        detail=_amd_detail(root, facts.get("DRIVER", "")),
    )


def _amd_detail(root: Path, driver: str) -> str:
    if not driver:
        return "no driver is loaded"
    if not exists(root, "/dev/kfd"):
        return "no /dev/kfd: compute is not set up"
    if root == Path(os.sep) and not os.access("/dev/kfd", os.R_OK | os.W_OK):
        return "/dev/kfd may not be opened: add the user to the groups render and video"
    return ""


def _gfx_version(root: Path, bus_id: str) -> int:
    """``gfx_target_version`` of the node at a PCI address, such as 110501; 0 when unknown."""
    wanted = _location(bus_id)
    nodes = "/sys/class/kfd/kfd/topology/nodes"
    for name in names_in(root, nodes):
        table = read_table(root, f"{nodes}/{name}/properties")
        here = (table.get("domain", 0), table.get("location_id"))
        if wanted is not None and here == wanted:
            return table.get("gfx_target_version", 0)
    return 0


def _location(bus_id: str) -> tuple[int, int] | None:
    """Domain and ``location_id`` (bus, device and function in 16 bits) of a PCI address."""
    parts = bus_id.replace(".", ":").split(":")
    if len(parts) != 4 or any(not p or set(p) - set("0123456789abcdef") for p in parts):  # noqa: PLR2004
        return None
    domain, bus, device, function = (int(part, 16) for part in parts)
    return domain, bus << 8 | device << 3 | function


def _intel(root: Path, card: str) -> OtherGpu:
    device = f"{card}/device"
    facts = dict(_facts(root, device))
    bus = facts.get("PCI_SLOT_NAME", "")
    on_die = bus == _INTEL_ON_DIE
    tiles = [name for name in names_in(root, device) if name.startswith("tile")]
    sizes = [_bytes(root, f"{device}/{tile}/physical_vram_size_bytes") for tile in tiles]
    own = sum(sizes) or _bytes(root, f"{card}/lmem_total_bytes")
    if not own and not on_die:
        own = _window(root, device)
    return OtherGpu(
        vendor="Intel",
        name=_pci_id(root, device),
        bus_id=bus,
        driver=facts.get("DRIVER", ""),
        total_bytes=0 if on_die else own,
        unified=on_die,
        detail="" if facts.get("DRIVER") else "no driver is loaded",
    )


def _window(root: Path, device: str) -> int:
    """Size of the window on the card's memory, if it shows all of it; 0 otherwise."""
    lines = read_text(root, f"{device}/resource").splitlines()
    words = lines[_WINDOW_LINE].split() if len(lines) > _WINDOW_LINE else []
    try:
        first, last = (int(word, 16) for word in words[:2])
    except ValueError:
        return 0
    size = last - first + 1
    return size if _LEAST_WINDOW_BYTES <= size < MAX_MEMORY_BYTES else 0


def _facts(root: Path, device: str) -> Iterator[tuple[str, str]]:
    for line in read_text(root, f"{device}/uevent").splitlines():
        name, _, value = line.partition("=")
        yield name, value.strip()


def _pci_id(root: Path, device: str) -> str:
    ids = [read_line(root, f"{device}/{name}").removeprefix("0x") for name in ("vendor", "device")]
    return ":".join(ids) if all(ids) else ""


def _bytes(root: Path, path: str) -> int:
    size = read_integer(root, path)
    return size if size is not None and 0 <= size < MAX_MEMORY_BYTES else 0
