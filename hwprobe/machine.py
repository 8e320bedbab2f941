"""A machine as a frozen snapshot: what the inventory found, and what follows from it. Pure.

Absence is a value: an unknown number is ``None``, a missing device an empty tuple.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NvidiaState = Literal["no_card", "no_driver", "driver_broken", "usable"]
"""``usable`` says the driver answers; whether the engine can use it is ``engine_offload``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """Processors this process may use.

    Attributes:
        model: as the processor names itself, or empty.
        architecture: as the kernel names it, such as ``x86_64`` or ``aarch64``.
        online: logical processors of the machine.
        allowed: logical processors in this process's affinity mask and cpuset.
        allowed_cores: distinct cores among them.
        big_cores: cores among those that are not efficiency cores.
        quota: processors that the control groups grant, such as 1.5; ``None`` without a quota.
        features: instruction-set names, sorted; only those the engine has kernels for.
    """

    model: str = ""
    architecture: str = ""
    online: int = 1
    allowed: int = 1
    allowed_cores: int = 1
    big_cores: int = 1
    quota: float | None = None
    features: tuple[str, ...] = ()

    @property
    def usable(self) -> int:
        """Whole logical processors that may be busy at once: affinity, then quota; at least 1."""
        return max(1, self.allowed if self.quota is None else min(self.allowed, int(self.quota)))

    @property
    def decode_threads(self) -> int:
        """Threads to decode with.

        One per big core (hyper-threads share the vector units), never more than the quota: a
        thread that waits for a processor holds up all others at every barrier. From five
        processors on one is left to the server.
        """
        threads = max(1, min(self.big_cores, self.usable))
        spare_one = 4
        return threads - 1 if threads > spare_one and threads == self.usable else threads


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupMemory:
    """One level of the control-group hierarchy that limits memory.

    Attributes:
        path: the directory, as the process sees it.
        limit_bytes: the smaller of the hard limit and the throttling limit.
        used_bytes: what the group uses, page cache included.
        reclaimable_bytes: page cache and slab that the kernel gives back under pressure.
    """

    path: str
    limit_bytes: int
    used_bytes: int
    reclaimable_bytes: int

    @property
    def headroom_bytes(self) -> int:
        """What may still be allocated here. Mapped model files count as cache, not as use."""
        return max(0, self.limit_bytes - max(0, self.used_bytes - self.reclaimable_bytes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Host memory.

    Attributes:
        total_bytes: physical memory; 0 when unknown.
        available_bytes: what the kernel can give without swapping.
        swap_total_bytes: swap space; never counted as capacity.
        page_bytes: size of a page.
        cgroups: levels with a limit, innermost first.
        address_space_bytes: what RLIMIT_AS leaves, or ``None``.
        commit_bytes: what strict overcommit leaves, or ``None``.
    """

    total_bytes: int = 0
    available_bytes: int = 0
    swap_total_bytes: int = 0
    page_bytes: int = 4096
    cgroups: tuple[CgroupMemory, ...] = ()
    address_space_bytes: int | None = None
    commit_bytes: int | None = None

    @property
    def limits(self) -> tuple[tuple[str, int], ...]:
        """Every bound on new memory with its name, the tightest first."""
        bounds = [("available memory", self.available_bytes)]
        bounds += [(f"control group {group.path}", group.headroom_bytes) for group in self.cgroups]
        if self.address_space_bytes is not None:
            bounds.append(("address space limit", self.address_space_bytes))
        if self.commit_bytes is not None:
            bounds.append(("strict overcommit", self.commit_bytes))
        return tuple(sorted(bounds, key=lambda bound: bound[1]))

    @property
    def headroom_bytes(self) -> int:
        """The tightest bound on new memory."""
        return self.limits[0][1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU, or one slice of a partitioned GPU.

    Attributes:
        index: position in the driver's own order, which is by bus address.
        name: product name.
        uuid: the driver's identifier.
        bus_id: PCI address, or empty.
        total_bytes: its own memory; 0 when it shares the host's.
        free_bytes: free memory as the driver reports it.
        compute_capability: such as ``(8, 9)``, or ``None``.
        display: a screen or a graphics process uses it.
        unified: it reports no memory of its own; it shares the host's.
    """

    index: int
    name: str = ""
    uuid: str = ""
    bus_id: str = ""
    total_bytes: int = 0
    free_bytes: int = 0
    compute_capability: tuple[int, int] | None = None
    display: bool = False
    unified: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Nvidia:
    """What was found of NVIDIA, as one of four states, with words for a person.

    Attributes:
        state: see `NvidiaState`.
        detail: one line: what is wrong, and what to do.
        driver: version of the kernel driver, or empty.
        cards: PCI addresses of cards, whether or not a driver runs them.
    """

    state: NvidiaState = "no_card"
    detail: str = ""
    driver: str = ""
    cards: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """What kind of machine this is.

    Attributes:
        name: vendor and product, or empty.
        single_board: a small board described by a device tree.
        virtual: ``container``, ``virtual machine``, or empty.
        kernel: release of the running kernel, or empty.
    """

    name: str = ""
    single_board: bool = False
    virtual: str = ""
    kernel: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """The file system models are kept on.

    Attributes:
        path: the directory that was asked about.
        total_bytes: size of the file system; 0 when unknown.
        free_bytes: what this user may still write.
        rotational: it stands on spinning disks; ``None`` when unknown.
    """

    path: str = "/"
    total_bytes: int = 0
    free_bytes: int = 0
    rotational: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A snapshot of one machine.

    Attributes:
        gpus: what the driver offers, in its order.
        engine_offload: the engine on this machine was built for GPUs; ``None`` when it was not
            asked. GPUs are only planned with when it is ``True``.
    """

    cpu: Cpu = Cpu()
    memory: Memory = Memory()
    gpus: tuple[Gpu, ...] = ()
    nvidia: Nvidia = Nvidia()
    board: Board = Board()
    disk: Disk = Disk()
    engine_offload: bool | None = None

    @property
    def planned_gpus(self) -> tuple[Gpu, ...]:
        """GPUs with memory of their own that the engine can use."""
        if not self.engine_offload:
            return ()
        return tuple(gpu for gpu in self.gpus if not gpu.unified and gpu.total_bytes > 0)
