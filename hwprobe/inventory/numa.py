"""Memory nodes: which processors and how much memory stand together."""

from __future__ import annotations

from pathlib import Path

from hwprobe.inventory.cores import processor_list
from hwprobe.inventory.files import integer, names_in, read_integer, read_line, read_text
from hwprobe.inventory.memory import MAX_MEMORY_BYTES
from hwprobe.machine import Numa, NumaNode

_NODES = "/sys/devices/system/node"


def read_numa(root: Path) -> Numa:
    """The nodes of the machine at ``root``."""
    numbers = (
        integer(name.removeprefix("node"))
        for name in names_in(root, _NODES)
        if name.startswith("node")
    )
    balancing = read_integer(root, "/proc/sys/kernel/numa_balancing")
    return Numa(
        nodes=tuple(_node(root, number) for number in sorted(n for n in numbers if n is not None)),
        balancing=bool(balancing) if balancing is not None else None,
    )


def _node(root: Path, number: int) -> NumaNode:
    directory = f"{_NODES}/node{number}"
    sizes = _sizes(read_text(root, f"{directory}/meminfo"))
    distances = [integer(word) for word in read_line(root, f"{directory}/distance").split()]
    return NumaNode(
        index=number,
        processors=len(processor_list(read_line(root, f"{directory}/cpulist"))),
        total_bytes=sizes.get("MemTotal", 0),
        free_bytes=sizes.get("MemFree", 0),
        distances=tuple(one for one in distances if one is not None and one >= 0),
    )


def _sizes(text: str) -> dict[str, int]:
    """Lines such as ``Node 0 MemTotal: 131072 kB``, in bytes."""
    sizes: dict[str, int] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        number = integer(value.strip().removesuffix("kB"))
        if name.split() and number is not None and 0 <= number * 1024 < MAX_MEMORY_BYTES:
            sizes[name.split()[-1]] = number * 1024
    return sizes
