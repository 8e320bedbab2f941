"""How much of each pool may be planned with: live free memory less what must stay free. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from hwprobe.estimate import HOST, gpu_pool
from hwprobe.machine import Gpu, Machine, Memory

_GIB: Final = 1 << 30
_MIB: Final = 1 << 20

SMALL_HOST_BYTES: Final = 8 * _GIB
"""A single-board machine up to this size keeps less free."""
SMALL_HOST_RESERVE_BYTES: Final = 256 * _MIB
HOST_RESERVE_BYTES: Final = 512 * _MIB
"""Kept free on the host for the operating system and the server itself."""
LARGE_HOST_BYTES: Final = 64 * _GIB
LARGE_HOST_RESERVE_SHARE: Final = 0.03
"""On a large host other services are larger too."""
DRIFT_SHARE: Final = 0.02
"""Available memory moves by about this much within an hour on an idle machine."""
ZRAM_RATIO: Final = 3
"""How many bytes compressed swap makes of one; what it can still take shrinks what is available.
A usual figure for program data; weights do not compress and are never swapped in a plan."""
ZRAM_SHARE: Final = 0.05
"""Of all memory, the most that is kept free for it: a judgement."""
_CMA_FAMILIES: Final = frozenset({"rockchip"})
"""Boards whose kernels set memory aside for devices that a large allocation cannot have, although
it counts as available."""
HEADLESS_GPU_RESERVE_BYTES: Final = 64 * _MIB
DISPLAY_GPU_RESERVE_BYTES: Final = 384 * _MIB
"""A compositor takes memory in spikes."""
_CONTEXT_BYTES: Final = ((10, 600 * _MIB), (8, 450 * _MIB), (0, 250 * _MIB))
"""Driver context and kernels per process, by compute capability.

Published figures reach from 107 MiB on a small Ada card to 555 MiB on a Blackwell card.
"""


def pool_budgets(machine: Machine, reserved_bytes: Mapping[str, int]) -> dict[str, int]:
    """Bytes that may be planned with, per pool; never negative."""
    budgets = {HOST: machine.memory.headroom_bytes - host_reserve_bytes(machine)}
    for gpu in machine.unified_gpus:
        budgets[HOST] -= gpu_context_bytes(gpu)
    for gpu in machine.planned_gpus:
        budgets[gpu_pool(gpu.index)] = gpu.free_bytes - gpu_reserve_bytes(gpu)
    return {
        pool: max(0, budget - max(0, reserved_bytes.get(pool, 0)))
        for pool, budget in budgets.items()
    }


def given_back(memory: Memory, size_bytes: int) -> Memory:
    """The memory as it would be if processes of ours gave back what they hold for themselves.

    They are taken to be in this process's control groups. Mapped files count as available anyway.
    """
    groups = tuple(
        replace(group, used_bytes=max(0, group.used_bytes - size_bytes)) for group in memory.cgroups
    )
    commit = memory.commit_bytes
    return replace(
        memory,
        available_bytes=memory.available_bytes + size_bytes,
        cgroups=groups,
        commit_bytes=None if commit is None else commit + size_bytes,
    )


def host_reserve_bytes(machine: Machine) -> int:
    """What stays free on the host."""
    return sum(size for _, size in host_reserve_terms(machine))


def host_reserve_terms(machine: Machine) -> tuple[tuple[str, int], ...]:
    """What stays free on the host, and what for; none of them zero."""
    memory = machine.memory
    total = memory.total_bytes
    reserve = HOST_RESERVE_BYTES
    if machine.board.single_board and total <= SMALL_HOST_BYTES:
        reserve = SMALL_HOST_RESERVE_BYTES
    elif total >= LARGE_HOST_BYTES:
        reserve = int(LARGE_HOST_RESERVE_SHARE * total)
    unused_swap = max(0, memory.zram_size_bytes // ZRAM_RATIO - memory.zram_bytes)
    device = memory.cma_free_bytes if machine.board.family in _CMA_FAMILIES else 0
    terms = (
        ("the system and the server", reserve),
        ("what other programs take within an hour", int(DRIFT_SHARE * memory.headroom_bytes)),
        ("compressed swap that fills up", min(unused_swap, int(ZRAM_SHARE * total))),
        ("devices that set memory aside", device),
    )
    return tuple(term for term in terms if term[1])


def gpu_reserve_bytes(gpu: Gpu) -> int:
    """What stays free on a GPU: the driver's own part, and room for a screen.

    A worker keeps what it needs before it says what it offers.
    """
    if gpu.worker:
        return 0
    return gpu_context_bytes(gpu) + (
        DISPLAY_GPU_RESERVE_BYTES if gpu.display else HEADLESS_GPU_RESERVE_BYTES
    )


def gpu_context_bytes(gpu: Gpu) -> int:
    """What the driver takes for one process that uses a GPU."""
    major = gpu.compute_capability[0] if gpu.compute_capability else 8
    return next(size for lowest, size in _CONTEXT_BYTES if major >= lowest)
