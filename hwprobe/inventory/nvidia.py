"""NVIDIA cards, and which of four states they are in: absent, without driver, broken, usable.

The bus says whether a card is there; the driver's library (NVML) says whether it works. The
library is loaded only here and only when asked, because a machine without cards has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

from hwprobe.inventory.files import exists, names_in, read_line, read_text
from hwprobe.machine import Gpu, Nvidia

_VENDOR = "0x10de"
_DISPLAY_CLASSES = ("0x0300", "0x0302")
_SHARES_HOST = ("GB10", "ORIN", "XAVIER", "THOR", "TEGRA", "NVGPU")
"""In the names of GPUs without memory of their own; some drivers report the host's as theirs."""
_THROTTLE: Final = (
    (0x4, "power cap"),
    (0x8, "slowdown by hardware"),
    (0x20, "temperature"),
    (0x40, "temperature, by hardware"),
    (0x80, "power brake"),
)
"""Source: nvmlClocksEventReason* and nvmlClocksThrottleReason* in nvml.h."""
_SIGNS = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg")
_TEGRA_DRIVERS = ("/dev/nvhost-gpu", "/dev/nvgpu", "/sys/module/nvgpu")
_T = TypeVar("_T")


def read_nvidia(root: Path, *, ask_driver: bool) -> tuple[Nvidia, tuple[Gpu, ...]]:
    """The state of NVIDIA cards and drivers, and the GPUs the driver offers."""
    cards = _cards(root)
    if not ask_driver:
        if not cards:
            return _tegra(root) if _is_tegra(root) else (Nvidia(), ())
        return Nvidia(state="no_driver", detail="the driver was not asked", cards=cards), ()
    return _ask(root, cards)


def may_have_driver(root: Path) -> bool:
    """Whether there is a card or a driver that makes asking worth while."""
    return bool(_cards(root)) or _is_tegra(root) or any(exists(root, one) for one in _SIGNS)


def _is_tegra(root: Path) -> bool:
    return "nvidia,tegra" in read_text(root, "/proc/device-tree/compatible")


def _tegra(root: Path) -> tuple[Nvidia, tuple[Gpu, ...]]:
    """A board whose GPU is part of the processor; older releases have no NVML for it."""
    if not any(exists(root, one) for one in _TEGRA_DRIVERS):
        detail = "the board has an NVIDIA GPU but its driver is not loaded"
        return Nvidia(state="no_driver", detail=detail), ()
    gpu = Gpu(index=0, name="NVIDIA Tegra", unified=True)
    return Nvidia(state="usable", detail="the board's own GPU, without NVML"), (gpu,)


def _cards(root: Path) -> tuple[str, ...]:
    found = []
    for address in names_in(root, "/sys/bus/pci/devices"):
        device = f"/sys/bus/pci/devices/{address}"
        if (
            read_line(root, f"{device}/vendor").lower() == _VENDOR
            and read_line(root, f"{device}/class").lower()[:6] in _DISPLAY_CLASSES
        ):
            found.append(address)
    return tuple(found)


def _ask(root: Path, cards: tuple[str, ...]) -> tuple[Nvidia, tuple[Gpu, ...]]:
    import pynvml  # noqa: PLC0415 - loaded only when asked; see the module's text

    try:
        pynvml.nvmlInitWithFlags(0)
    except pynvml.NVMLError as error:
        if error.value == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND and _is_tegra(root):
            return _tegra(root)
        return _unusable(root, cards, pynvml, error), ()
    try:
        driver = _text(_or(pynvml, "", pynvml.nvmlSystemGetDriverVersion))
        gpus = tuple(_gpus(pynvml))
    except pynvml.NVMLError as error:
        return _unusable(root, cards, pynvml, error), ()
    finally:
        _or(pynvml, None, pynvml.nvmlShutdown)
    if gpus:
        return Nvidia(state="usable", driver=driver, cards=cards), gpus
    if cards:
        detail = f"driver {driver} sees none of {len(cards)} card(s): look at the kernel log"
        return Nvidia(state="driver_broken", detail=detail, driver=driver, cards=cards), ()
    return Nvidia(driver=driver), ()


def _unusable(root: Path, cards: tuple[str, ...], pynvml: Any, error: Any) -> Nvidia:
    """Turn a failure of the library into a state and a line that says what to do."""
    driver = _kernel_driver(root)
    loaded = bool(driver) or exists(root, "/dev/nvidia0")
    if error.value == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND and loaded:
        detail = (
            "the kernel driver runs but libnvidia-ml.so.1 is missing: install it, or in a "
            "container add utility to NVIDIA_DRIVER_CAPABILITIES"
        )
        return Nvidia(state="driver_broken", detail=detail, driver=driver, cards=cards)
    if error.value == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        detail = "kernel driver and library differ in version: reboot, or reload the driver"
        return Nvidia(state="driver_broken", detail=detail, driver=driver, cards=cards)
    absent = (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
    if error.value not in absent:
        detail = f"the driver answers with an error: {error}"
        return Nvidia(state="driver_broken", detail=detail, driver=driver, cards=cards)
    if cards:
        detail = "a card is there but no driver is loaded: install or load the NVIDIA driver"
        return Nvidia(state="no_driver", detail=detail, driver=driver, cards=cards)
    return Nvidia()


def _kernel_driver(root: Path) -> str:
    """Version of the loaded kernel module, or empty."""
    words = read_text(root, "/proc/driver/nvidia/version").split()
    return next((word for word in words if word[:1].isdigit() and "." in word), "")


def _gpus(pynvml: Any) -> Iterator[Gpu]:
    index = 0
    for position in range(int(pynvml.nvmlDeviceGetCount())):
        handle = _or(pynvml, None, pynvml.nvmlDeviceGetHandleByIndex, position)
        if handle is None:  # lost from the bus, or not ours to see
            continue
        for device in _slices(pynvml, handle) or (handle,):
            yield _gpu(pynvml, device, index, parent=handle)
            index += 1


def _slices(pynvml: Any, handle: Any) -> tuple[Any, ...]:
    """Slices of a partitioned GPU; a process can use one of them, never their parent."""
    mode = _or(pynvml, [0, 0], pynvml.nvmlDeviceGetMigMode, handle)
    if mode[0] != 1:
        return ()
    count = _or(pynvml, 0, pynvml.nvmlDeviceGetMaxMigDeviceCount, handle)
    slices = (
        _or(pynvml, None, pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, number)
        for number in range(count)
    )
    return tuple(device for device in slices if device is not None)


def _gpu(pynvml: Any, device: Any, index: int, *, parent: Any) -> Gpu:
    memory, has_own = _memory(pynvml, device)
    pci = _or(pynvml, None, pynvml.nvmlDeviceGetPciInfo, parent)
    capability = _or(pynvml, None, pynvml.nvmlDeviceGetCudaComputeCapability, parent)
    name = _text(_or(pynvml, "", pynvml.nvmlDeviceGetName, device))
    unified = not has_own or any(word in name.upper() for word in _SHARES_HOST)
    total = int(memory.total) if memory is not None and not unified else 0
    used = int(memory.used) if memory is not None else 0
    reserved = int(getattr(memory, "reserved", 0))
    free = int(memory.free) if memory is not None else 0
    computing = _or(pynvml, None, pynvml.nvmlDeviceGetComputeRunningProcesses, device)
    drawing = _or(pynvml, None, pynvml.nvmlDeviceGetGraphicsRunningProcesses, parent)
    seen = [list(one) for one in (computing, drawing) if one is not None]
    return Gpu(
        index=index,
        name=name,
        uuid=_text(_or(pynvml, "", pynvml.nvmlDeviceGetUUID, device)),
        bus_id=_text(pci.busId) if pci is not None else "",
        total_bytes=total,
        # Drivers differ in whether `free` counts the reserved part; the smaller one is safe.
        free_bytes=max(0, min(free, total - reserved - used)),
        compute_capability=(int(capability[0]), int(capability[1])) if capability else None,
        display=bool(_or(pynvml, 0, pynvml.nvmlDeviceGetDisplayActive, parent)) or bool(drawing),
        unified=unified,
        device_id=_device_id(pci),
        slice=device is not parent,
        processes=len({one.pid for group in seen for one in group}) if seen else None,
        throttle=_throttle(pynvml, parent),
        temperature_c=_or(
            pynvml, None, pynvml.nvmlDeviceGetTemperature, parent, pynvml.NVML_TEMPERATURE_GPU
        ),
        bandwidth_bytes_per_s=_bandwidth(pynvml, parent),
    )


def _memory(pynvml: Any, device: Any) -> tuple[Any, bool]:
    """The driver's figures, or ``None``, and whether the GPU has memory of its own at all.

    Only "not supported" says that it has not: any other failure is a fault of a card that has.
    """
    for version in ((pynvml.nvmlMemory_v2,), ()):
        try:
            return pynvml.nvmlDeviceGetMemoryInfo(device, *version), True
        except pynvml.NVMLError as error:
            last = error.value
    return None, last != pynvml.NVML_ERROR_NOT_SUPPORTED


def _device_id(pci: Any) -> str:
    """``10de:2684`` of the driver's number, whose low half is the vendor."""
    number = int(pci.pciDeviceId) if pci is not None else 0
    return f"{number & 0xFFFF:04x}:{number >> 16:04x}" if number else ""


def _throttle(pynvml: Any, parent: Any) -> tuple[str, ...]:
    bits = _or(pynvml, 0, pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, parent)
    return tuple(name for bit, name in _THROTTLE if int(bits) & bit)


def _bandwidth(pynvml: Any, parent: Any) -> int | None:
    """Two transfers per clock over the whole bus."""
    width = _or(pynvml, None, pynvml.nvmlDeviceGetMemoryBusWidth, parent)
    clock = _or(pynvml, None, pynvml.nvmlDeviceGetMaxClockInfo, parent, pynvml.NVML_CLOCK_MEM)
    return 2 * int(width) // 8 * int(clock) * 1_000_000 if width and clock else None


def _or(pynvml: Any, default: _T, call: Callable[..., Any], *arguments: Any) -> _T | Any:
    """The call's answer, or ``default``: old drivers lack functions, slices lack permissions."""
    try:
        return call(*arguments)
    except (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError):
        return default


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
