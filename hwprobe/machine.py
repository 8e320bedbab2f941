"""A machine as a frozen snapshot: what the inventory found, and what follows from it. Pure.

Absence is a value: an unknown number is ``None``, a missing device an empty tuple.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NvidiaState = Literal["no_card", "no_driver", "driver_broken", "usable"]
"""``usable`` says the driver answers; whether the engine can use it is ``engine_offload``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreKind:
    """Cores of one design.

    Attributes:
        name: of the design, such as ``Cortex-A76`` or ``performance``; empty when unknown.
        cores: how many of them this process may use.
        big: they are not efficiency cores.
        max_khz: highest clock, or ``None``.
    """

    name: str
    cores: int
    big: bool
    max_khz: int | None = None


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
        sockets: processor packages of the machine.
        kinds: the allowed cores by design, big ones first; empty when nothing tells them apart.
        cache_bytes: last-level caches of the allowed processors; 0 when unknown.
    """

    model: str = ""
    architecture: str = ""
    online: int = 1
    allowed: int = 1
    allowed_cores: int = 1
    big_cores: int = 1
    quota: float | None = None
    features: tuple[str, ...] = ()
    sockets: int = 1
    kinds: tuple[CoreKind, ...] = ()
    cache_bytes: int = 0

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
        lockable_bytes: RLIMIT_MEMLOCK; ``None`` without a limit.
        overcommit: the kernel's policy: 0 heuristic, 1 always, 2 strict; ``None`` when unknown.
        zram_bytes: memory that compressed swap takes now.
        zram_size_bytes: what compressed swap holds at most, uncompressed.
        hugepages_bytes: memory set aside for huge pages, lost to everything else.
        hugepages_free_bytes: the part of it that nobody uses.
        transparent_hugepages: ``always``, ``madvise``, ``never``, or empty.
        cma_bytes: memory set aside for devices; the free part counts as available, but not
            every allocation can use it.
        cma_free_bytes: the free part.
        pressure_percent: share of the last minute in which some task waited for memory.
    """

    total_bytes: int = 0
    available_bytes: int = 0
    swap_total_bytes: int = 0
    page_bytes: int = 4096
    cgroups: tuple[CgroupMemory, ...] = ()
    address_space_bytes: int | None = None
    commit_bytes: int | None = None
    lockable_bytes: int | None = None
    overcommit: int | None = None
    zram_bytes: int = 0
    zram_size_bytes: int = 0
    hugepages_bytes: int = 0
    hugepages_free_bytes: int = 0
    transparent_hugepages: str = ""
    cma_bytes: int = 0
    cma_free_bytes: int = 0
    pressure_percent: float | None = None

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
class NumaNode:
    """One memory node.

    Attributes:
        index: the kernel's number.
        processors: logical processors beside it.
        total_bytes: its memory.
        free_bytes: free pages; page cache is not counted as free here.
        distances: relative cost of reaching each node, itself 10.
    """

    index: int
    processors: int = 0
    total_bytes: int = 0
    free_bytes: int = 0
    distances: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Numa:
    """Memory nodes.

    Attributes:
        nodes: by number; empty when the kernel shows none.
        balancing: the kernel moves pages between nodes; ``None`` when unknown.
    """

    nodes: tuple[NumaNode, ...] = ()
    balancing: bool | None = None


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
        unified: it has no memory of its own; it shares the host's.
        device_id: PCI vendor and device, such as ``10de:2684``, or empty.
        slice: it is a slice of a partitioned GPU.
        processes: processes that use it; ``None`` when the driver does not tell.
        throttle: why its clocks are held down now.
        temperature_c: of the chip, or ``None``.
        bandwidth_bytes_per_s: of its memory by specification, or ``None``.
        worker: address of the machine it stands for, whose memory this is; empty for a real GPU.
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
    device_id: str = ""
    slice: bool = False
    processes: int | None = None
    throttle: tuple[str, ...] = ()
    temperature_c: int | None = None
    bandwidth_bytes_per_s: int | None = None
    worker: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherGpu:
    """A GPU of AMD or Intel, as the kernel describes it. Shown, never planned with.

    Attributes:
        vendor: ``AMD`` or ``Intel``.
        name: product name, or PCI vendor and device.
        bus_id: PCI address, or empty.
        driver: the kernel driver, or empty.
        total_bytes: memory of its own or set aside for it; 0 when unknown.
        used_bytes: the part in use.
        shared_bytes: host memory it may use beside that.
        unified: it is part of the processor and shares the host's memory.
        detail: what keeps it from being used, or empty.
    """

    vendor: str
    name: str = ""
    bus_id: str = ""
    driver: str = ""
    total_bytes: int = 0
    used_bytes: int = 0
    shared_bytes: int = 0
    unified: bool = False
    detail: str = ""


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
        family: ``raspberry-pi``, ``rockchip``, ``jetson``, ``gb10``, ``strix-halo``, or empty.
        compatible: what the device tree says the board is like, the most exact first.
        container: ``docker``, ``podman``, ``lxc``, ``kubernetes``, …, or empty.
        accelerators: devices that the engine does not use, such as NPUs.
    """

    name: str = ""
    single_board: bool = False
    virtual: str = ""
    kernel: str = ""
    family: str = ""
    compatible: tuple[str, ...] = ()
    container: str = ""
    accelerators: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """The file system models are kept on.

    Attributes:
        path: the directory that was asked about.
        total_bytes: size of the file system; 0 when unknown.
        free_bytes: what this user may still write.
        rotational: it stands on spinning disks; ``None`` when unknown.
        device: the block device, such as ``nvme0n1``, or empty.
        filesystem: its kind, such as ``ext4``, or empty.
        read_bytes_per_s: measured past the page cache, or ``None`` when it was not measured.
    """

    path: str = "/"
    total_bytes: int = 0
    free_bytes: int = 0
    rotational: bool | None = None
    device: str = ""
    filesystem: str = ""
    read_bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Thermal:
    """Heat, and what is held down because of it.

    Attributes:
        hottest_c: the hottest sensor of the processor, in degrees Celsius, or ``None``.
        critical_c: where the kernel switches off, or ``None``.
        reasons: what holds the clocks down now, such as ``under-voltage``.
        past_reasons: what did since the machine started.
        on_battery: a battery is being discharged; ``None`` without a battery.
    """

    hottest_c: float | None = None
    critical_c: float | None = None
    reasons: tuple[str, ...] = ()
    past_reasons: tuple[str, ...] = ()
    on_battery: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A snapshot of one machine.

    Attributes:
        gpus: what NVIDIA's driver offers, in its order.
        other_gpus: GPUs of other makers.
        engine_offload: the engine on this machine was built for GPUs; ``None`` when it was not
            asked. GPUs are only planned with when it is ``True``.
        engine_variant: the build of the CPU backend that is used here (`hwprobe.variants`);
            empty when it is not known.
    """

    cpu: Cpu = Cpu()
    memory: Memory = Memory()
    gpus: tuple[Gpu, ...] = ()
    nvidia: Nvidia = Nvidia()
    board: Board = Board()
    disk: Disk = Disk()
    numa: Numa = Numa()
    thermal: Thermal = Thermal()
    other_gpus: tuple[OtherGpu, ...] = ()
    engine_offload: bool | None = None
    engine_variant: str = ""

    @property
    def planned_gpus(self) -> tuple[Gpu, ...]:
        """GPUs with memory of their own that the engine can use."""
        if not self.engine_offload:
            return ()
        return tuple(gpu for gpu in self.gpus if not gpu.unified and gpu.total_bytes > 0)

    @property
    def unified_gpus(self) -> tuple[Gpu, ...]:
        """GPUs without memory of their own that the engine can use; none beside those with it."""
        if not self.engine_offload or self.planned_gpus:
            return ()
        return tuple(gpu for gpu in self.gpus if gpu.unified)
