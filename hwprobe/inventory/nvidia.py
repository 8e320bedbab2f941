"""NVIDIA cards, and which of four states they are in: absent, without driver, broken, usable.

The bus says whether a card is there; the driver's library (NVML) says whether it works. The
library is loaded only here and only when asked, because a machine without cards has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from hwprobe.inventory.files import exists, names_in, read_line, read_text
from hwprobe.machine import Gpu, Nvidia

_VENDOR = "0x10de"
_DISPLAY_CLASSES = ("0x0300", "0x0302")
_T = TypeVar("_T")


def read_nvidia(root: Path, *, ask_driver: bool) -> tuple[Nvidia, tuple[Gpu, ...]]:
    """The state of NVIDIA cards and drivers, and the GPUs the driver offers."""
    cards = _cards(root)
    if not ask_driver:
        if not cards:
            return Nvidia(), ()
        return Nvidia(state="no_driver", detail="the driver was not asked", cards=cards), ()
    return _ask(root, cards)


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
    memory = _or(pynvml, None, pynvml.nvmlDeviceGetMemoryInfo, device, pynvml.nvmlMemory_v2)
    if memory is None:
        memory = _or(pynvml, None, pynvml.nvmlDeviceGetMemoryInfo, device)
    pci = _or(pynvml, None, pynvml.nvmlDeviceGetPciInfo, parent)
    capability = _or(pynvml, None, pynvml.nvmlDeviceGetCudaComputeCapability, parent)
    total = int(memory.total) if memory is not None else 0
    used = int(memory.used) if memory is not None else 0
    reserved = int(getattr(memory, "reserved", 0))
    free = int(memory.free) if memory is not None else 0
    return Gpu(
        index=index,
        name=_text(_or(pynvml, "", pynvml.nvmlDeviceGetName, device)),
        uuid=_text(_or(pynvml, "", pynvml.nvmlDeviceGetUUID, device)),
        bus_id=_text(pci.busId) if pci is not None else "",
        total_bytes=total,
        # Drivers differ in whether `free` counts the reserved part; the smaller one is safe.
        free_bytes=max(0, min(free, total - reserved - used)),
        compute_capability=(int(capability[0]), int(capability[1])) if capability else None,
        display=bool(_or(pynvml, 0, pynvml.nvmlDeviceGetDisplayActive, parent)),
        unified=total == 0,
    )


def _or(pynvml: Any, default: _T, call: Callable[..., Any], *arguments: Any) -> _T | Any:
    """The call's answer, or ``default``: old drivers lack functions, slices lack permissions."""
    try:
        return call(*arguments)
    except pynvml.NVMLError:
        return default


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
