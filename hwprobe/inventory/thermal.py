"""Heat and power: the hottest sensor, and what holds the clocks down."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hwprobe.inventory.files import names_in, read_integer, read_line
from hwprobe.machine import Thermal

_HOTTEST_MILLIDEGREES: Final = 200_000
"""Why: silicon has long been switched off at 200 degrees; what is above is not a temperature."""
_CPU_ZONES = ("cpu", "soc", "pkg", "acpitz", "bigcore", "littlecore", "tj", "package")
_CPU_MONITORS = ("k10temp", "coretemp", "zenpower")
_FIRMWARE_BITS: Final = (
    (0, "under-voltage"),
    (1, "clock capped"),
    (2, "throttled"),
    (3, "soft temperature limit"),
)
"""Bits of get_throttled; 16 higher they say "since the start". Source: Raspberry Pi's
documentation of ``vcgencmd get_throttled``."""
_SINCE_START = 16


def read_thermal(root: Path) -> Thermal:
    """Heat and throttling of the machine at ``root``."""
    bits = _firmware_bits(root)
    now = tuple(name for bit, name in _FIRMWARE_BITS if bits >> bit & 1)
    past = tuple(name for bit, name in _FIRMWARE_BITS if bits >> (bit + _SINCE_START) & 1)
    if (read_integer(root, _COUNTER.format("package")) or 0) > 0:
        past = (*past, "throttled")
    temperatures = [*_zones(root), *_monitors(root)]
    limits = list(_critical(root))
    return Thermal(
        hottest_c=max(temperatures) / 1000 if temperatures else None,
        critical_c=min(limits) / 1000 if limits else None,
        reasons=(*now, *_capped(root)),
        past_reasons=past,
        on_battery=_on_battery(root),
    )


_COUNTER = "/sys/devices/system/cpu/cpu0/thermal_throttle/{}_throttle_count"
_ZONES = "/sys/class/thermal"


def _cpu_zones(root: Path) -> Iterator[str]:
    for name in names_in(root, _ZONES):
        if name.startswith("thermal_zone"):
            kind = read_line(root, f"{_ZONES}/{name}/type").lower()
            if any(word in kind for word in _CPU_ZONES):
                yield f"{_ZONES}/{name}"


def _zones(root: Path) -> Iterator[int]:
    for zone in _cpu_zones(root):
        value = read_integer(root, f"{zone}/temp")
        if value is not None and 0 < value < _HOTTEST_MILLIDEGREES:
            yield value


def _critical(root: Path) -> Iterator[int]:
    for zone in _cpu_zones(root):
        for name in names_in(root, zone):
            if name.startswith("trip_point_") and name.endswith("_type"):
                value = read_integer(root, f"{zone}/{name.removesuffix('type')}temp")
                critical = read_line(root, f"{zone}/{name}") == "critical"
                if critical and value is not None and 0 < value < _HOTTEST_MILLIDEGREES:
                    yield value


def _monitors(root: Path) -> Iterator[int]:
    """Sensors of processors that no thermal zone stands for."""
    for name in names_in(root, "/sys/class/hwmon"):
        directory = f"/sys/class/hwmon/{name}"
        if read_line(root, f"{directory}/name") in _CPU_MONITORS:
            value = read_integer(root, f"{directory}/temp1_input")
            if value is not None and 0 < value < _HOTTEST_MILLIDEGREES:
                yield value


def _firmware_bits(root: Path) -> int:
    """What a Raspberry Pi's firmware says; 0 where there is none."""
    platform = "/sys/devices/platform"
    for soc in names_in(root, platform):
        for name in names_in(root, f"{platform}/{soc}") if soc.startswith("soc") else ():
            if name.endswith("firmware"):
                text = read_line(root, f"{platform}/{soc}/{name}/get_throttled").lower()
                digits = text.removeprefix("0x")
                if digits and len(digits) <= 8 and set(digits) <= set("0123456789abcdef"):  # noqa: PLR2004
                    return int(digits, 16)
    return 0


def _capped(root: Path) -> tuple[str, ...]:
    """Whether the kernel's own limit stands below the processor's highest clock."""
    directory = "/sys/devices/system/cpu/cpu0/cpufreq"
    limit = read_integer(root, f"{directory}/scaling_max_freq")
    highest = read_integer(root, f"{directory}/cpuinfo_max_freq")
    if limit and highest and 0 < limit < highest:
        return (f"clock limited to {limit // 1000} of {highest // 1000} MHz",)
    return ()


def _on_battery(root: Path) -> bool | None:
    supplies = [f"/sys/class/power_supply/{n}" for n in names_in(root, "/sys/class/power_supply")]
    batteries = [one for one in supplies if read_line(root, f"{one}/type") == "Battery"]
    own = [one for one in batteries if read_line(root, f"{one}/scope") != "Device"]
    if not own:
        return None
    return any(read_line(root, f"{one}/status") == "Discharging" for one in own)
