"""Machines and placements as JSON and as a screen for a person. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, Final

from hwprobe.budgets import host_reserve_bytes, pool_budgets
from hwprobe.decoding import decoded
from hwprobe.errors import ProbeError
from hwprobe.estimate import HOST, MemoryEstimate
from hwprobe.machine import Machine, OtherGpu
from hwprobe.quantity import Bytes
from hwprobe.settings import EngineSettings
from hwprobe.verdict import Placement, Rejection, pool_words

SITE_REPORT_FORMAT: Final = "satchel-site/1"
"""Marks a site report; raised when a field changes its meaning."""

_LABEL_WIDTH: Final = 9
_TEXT_WIDTH: Final = 89
_NVIDIA: Final = {
    "no_card": "no card",
    "no_driver": "card without driver",
    "driver_broken": "driver broken",
    "usable": "usable",
}


def machine_to_json(machine: Machine) -> dict[str, Any]:
    """The site report: every fact of the snapshot, under the names of its fields."""
    record = asdict(machine)
    assert isinstance(record, dict)
    return {"format": SITE_REPORT_FORMAT, **record}


def machine_from_json(record: object) -> Machine:
    """The inverse of `machine_to_json`; unknown fields are ignored, missing ones are absent.

    Raises:
        ProbeError: this is no site report, or a field has another type.
    """
    if not isinstance(record, Mapping) or record.get("format") != SITE_REPORT_FORMAT:
        raise ProbeError(
            f"no site report: expected format {SITE_REPORT_FORMAT!r}",
            hint="make one on the target with: satchel-probe report --json",
        )
    machine = decoded(Machine, record, "machine")
    assert isinstance(machine, Machine)
    return machine


def machine_lines(machine: Machine, *, engine: str = "") -> tuple[str, ...]:
    """One screen about a machine; ``engine`` is a line about the engine, if it was asked."""
    cpu, memory, disk = machine.cpu, machine.memory, machine.disk
    kept = host_reserve_bytes(machine)
    budget = pool_budgets(machine, {})[HOST]
    quota = f", quota {cpu.quota:g}" if cpu.quota is not None else ""
    return (
        _line("Machine", _machine_words(machine)),
        _line("CPU", f"{cpu.model or 'unknown'} ({cpu.architecture or 'unknown'})"),
        _line(
            "",
            f"{cpu.allowed} of {cpu.online} processors allowed{quota}, {cpu.big_cores} big "
            f"core(s), {cpu.decode_threads} thread(s) for decoding",
        ),
        *_labelled("", tuple(_core_words(machine))),
        *_labelled("", (" ".join(cpu.features) or "no known instruction sets",)),
        _line(
            "Memory",
            f"{Bytes(memory.total_bytes)} installed, {Bytes(memory.available_bytes)} available, "
            f"{Bytes(budget)} usable for models ({Bytes(kept)} kept free)",
        ),
        *_labelled("", tuple(_memory_notes(machine))),
        *_limit_lines(machine),
        *_gpu_lines(machine),
        *_labelled("Other GPU", tuple(_other_gpu_words(gpu) for gpu in machine.other_gpus)),
        *_labelled("Not used", machine.board.accelerators),
        *([_line("Engine", engine)] if engine else []),
        _line(
            "Disk",
            f"{Bytes(disk.free_bytes)} free of {Bytes(disk.total_bytes)} at {disk.path}"
            + (" (spinning)" if disk.rotational else "")
            + (f" on {disk.device}" if disk.device else "")
            + (f" ({disk.filesystem})" if disk.filesystem else ""),
        ),
        *_labelled("", _speed_words(machine)),
        *_labelled("Heat", tuple(_thermal_words(machine))),
    )


def placement_to_json(placement: Placement) -> dict[str, Any]:
    """A placement with its predicted memory, budgets, reasons and rejections."""
    return {
        "variant": placement.variant,
        "settings": asdict(placement.settings),
        "estimate": placement.estimate.to_json(),
        "budgets": dict(placement.budgets),
        "reasons": list(placement.reasons),
        "rejected": [rejection_to_json(one) for one in placement.rejected],
    }


def rejection_to_json(rejection: Rejection) -> dict[str, Any]:
    """A rejection with its shortfall."""
    return {**asdict(rejection), "shortfall_bytes": rejection.shortfall_bytes}


def placement_lines(placement: Placement, machine: Machine) -> tuple[str, ...]:
    """One screen about a placement: machine, choice, sums that add up, reasons, refusals."""
    return (
        _line("Machine", _machine_words(machine)),
        _line("Chosen", f"{placement.variant} · {settings_words(placement.settings)}"),
        *_memory_lines(placement.estimate, placement.budgets),
        *_labelled("Why", placement.reasons),
        *_labelled("Why not", tuple(str(one) for one in placement.rejected)),
    )


def settings_words(settings: EngineSettings) -> str:
    """The settings of a load in one line."""
    layers = f"{settings.num_gpu} layers on GPU" if settings.num_gpu else "CPU"
    parts = [
        layers,
        f"{settings.slots} slot(s) of {settings.num_ctx} tokens",
        f"KV {settings.kv_type}",
        f"{settings.threads} thread(s)",
    ]
    return " · ".join(parts)


def _memory_lines(estimate: MemoryEstimate, budgets: Mapping[str, int]) -> Iterator[str]:
    label = "Memory"
    for pool in estimate.pools:
        terms = [term for term in estimate.terms if term.pool == pool]
        total, budget = estimate.total_bytes(pool), budgets.get(pool, 0)
        addends = " + ".join(f"{term.name} {Bytes(term.size_bytes)}" for term in terms)
        for row in textwrap.wrap(addends, _TEXT_WIDTH):
            yield _line(label, row)
            label = ""
        yield _line(
            "",
            f"= {Bytes(total)} of {Bytes(budget)} usable {pool_words(pool)}, "
            f"{Bytes(max(0, budget - total))} left",
        )


def _core_words(machine: Machine) -> Iterator[str]:
    cpu = machine.cpu
    for kind in cpu.kinds:
        clock = f" at {kind.max_khz / 1e6:.2f} GHz" if kind.max_khz else ""
        words = kind.name or ("big" if kind.big else "small")
        yield f"{kind.cores} {words} core(s){clock}" + ("" if kind.big else ", not for decoding")
    nodes = machine.numa.nodes
    if len(nodes) > 1:
        free = ", ".join(str(Bytes(node.free_bytes)) for node in nodes)
        moved = "; the kernel moves pages between them" if machine.numa.balancing else ""
        yield f"{cpu.sockets} socket(s), {len(nodes)} memory nodes with {free} free{moved}"


def _memory_notes(machine: Machine) -> Iterator[str]:
    memory = machine.memory
    if memory.hugepages_bytes:
        yield f"{Bytes(memory.hugepages_bytes)} set aside for huge pages, lost to models"
    if memory.zram_size_bytes:
        yield (
            f"compressed swap holds up to {Bytes(memory.zram_size_bytes)} and takes "
            f"{Bytes(memory.zram_bytes)} now; swap is never counted as memory"
        )
    if memory.cma_free_bytes:
        yield f"{Bytes(memory.cma_free_bytes)} of what is available is set aside for devices"


def _other_gpu_words(gpu: OtherGpu) -> str:
    own = f", {Bytes(gpu.total_bytes)}" if gpu.total_bytes else ""
    shared = ", shares host memory" if gpu.unified else ""
    detail = f"; {gpu.detail}" if gpu.detail else ""
    return f"{gpu.vendor} {gpu.name}{own}{shared} ({gpu.driver or 'no driver'}){detail}; not used"


def _speed_words(machine: Machine) -> tuple[str, ...]:
    speed = machine.disk.read_bytes_per_s
    return (f"reads {Bytes(int(speed))} per second",) if speed else ()


def _thermal_words(machine: Machine) -> Iterator[str]:
    thermal = machine.thermal
    if thermal.hottest_c is not None:
        limit = f", off at {thermal.critical_c:.0f}" if thermal.critical_c is not None else ""
        yield f"{thermal.hottest_c:.0f} degrees Celsius{limit}"
    if thermal.reasons:
        yield f"held down now: {', '.join(thermal.reasons)}"
    if thermal.past_reasons:
        yield f"held down since the start: {', '.join(thermal.past_reasons)}"
    if thermal.on_battery:
        yield "runs on battery"


def _limit_lines(machine: Machine) -> Iterator[str]:
    memory = machine.memory
    label = "Limits"
    for name, size in memory.limits:
        if name != "available memory":
            yield _line(label, f"{name}: {Bytes(size)} left")
            label = ""


def _gpu_lines(machine: Machine) -> Iterator[str]:
    nvidia = machine.nvidia
    words = _NVIDIA[nvidia.state]
    if nvidia.driver:
        words += f", driver {nvidia.driver}"
    if nvidia.detail:
        words += f": {nvidia.detail}"
    if nvidia.state == "usable" and machine.engine_offload is False:
        words += "; not used: the engine was built without GPU support"
    yield _line("NVIDIA", words)
    budgets = pool_budgets(machine, {})
    for gpu in machine.gpus:
        usable = budgets.get(f"gpu{gpu.index}")
        own = (
            "shares host memory"
            if gpu.unified
            else f"{Bytes(gpu.free_bytes)} free of {Bytes(gpu.total_bytes)}"
        )
        more = f", {Bytes(usable)} usable for models" if usable is not None else ""
        yield _line("", f"GPU {gpu.index}: {gpu.name}, {own}{more}")
        if gpu.throttle:
            yield _line("", f"GPU {gpu.index} is held down: {', '.join(gpu.throttle)}")


def _machine_words(machine: Machine) -> str:
    parts = [
        machine.board.name or "unnamed machine",
        machine.board.container or machine.board.virtual,
        f"Linux {machine.board.kernel}" if machine.board.kernel else "",
    ]
    return ", ".join(part for part in parts if part)


def _labelled(label: str, lines: tuple[str, ...]) -> tuple[str, ...]:
    rows = [row for line in lines for row in textwrap.wrap(line, _TEXT_WIDTH)]
    return tuple(_line("" if index else label, row) for index, row in enumerate(rows))


def _line(label: str, text: str) -> str:
    return f"{label:<{_LABEL_WIDTH}} {text}".rstrip()
