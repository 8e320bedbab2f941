"""Sizes, volumes, room and time of a bundle before anything is written. Pure but for `room`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bundler.format.fsio import raise_io
from bundler.format.limits import SEGMENT_BYTES
from bundler.plan import Plan
from bundler.proving import Speed
from hwprobe.quantity import Bytes

RATES: Final = (30e6, 100e6, 400e6)
"""Bytes per second of a slow stick, a good one, and an external SSD, where none was measured."""
_FAT32_FILE_BYTES: Final = (4 << 30) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Free bytes of the medium and of the work directory."""

    medium: int
    work: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What `pack` would do.

    Attributes:
        plan: variants and sizes.
        volume_bytes: size of a volume, 0 for one without an end.
        volumes: how many it takes, at most.
        largest_file_bytes: no file on the medium is larger.
        room: what is free.
        speed: of the medium, if it was measured.
    """

    plan: Plan
    volume_bytes: int
    volumes: int
    largest_file_bytes: int
    room: Room
    speed: Speed | None

    @property
    def lacks(self) -> tuple[str, ...]:
        """What is too small, a line each; empty when it fits."""
        found = []
        if self.plan.medium_bytes > self.room.medium and not self.plan.is_delta:
            found.append(_lack("medium", self.plan.medium_bytes, self.room.medium))
        if self.plan.work_bytes > self.room.work:
            found.append(_lack("work directory", self.plan.work_bytes, self.room.work))
        return tuple(found)

    def seconds(self, rate: float, read_rate: float) -> float:
        """Writing all of it, and reading it back."""
        return self.plan.medium_bytes / rate + self.plan.medium_bytes / read_rate


def _lack(what: str, need_bytes: int, free_bytes: int) -> str:
    return f"{what}: expected {Bytes(need_bytes)} free, found {Bytes(free_bytes)}"


def forecast(plan: Plan, volume_bytes: int, room: Room, speed: Speed | None) -> Forecast:
    """What packing will take.

    Raises:
        PackError: a volume is too small for what stands on every volume.
    """
    largest = min(SEGMENT_BYTES, plan.medium_bytes)
    volumes = 1
    if volume_bytes:
        largest = min(largest, plan.room_bytes(volume_bytes))
        volumes = plan.volumes(volume_bytes)
    return Forecast(
        plan=plan,
        volume_bytes=volume_bytes,
        volumes=volumes,
        largest_file_bytes=largest,
        room=room,
        speed=speed,
    )


def read_room(out: Path, work: Path) -> Room:
    """What is free where the bundle goes, and where variants are made.

    Raises:
        MediumError: nobody can say.
    """
    free = []
    for path in (out, work):
        try:
            status = os.statvfs(path)
        except OSError as error:
            raise_io(error, path)
        free.append(status.f_bavail * status.f_frsize)
    return Room(medium=free[0], work=free[1])


def forecast_lines(found: Forecast) -> tuple[str, ...]:
    """The forecast for people."""
    plan = found.plan
    lines = [
        f"{one.id:<10} {'' if one.is_source else 'about '}{Bytes(one.size_bytes)}"
        for one in plan.variants
    ]
    at_most = "less, as a delta, than" if plan.is_delta else "at most"
    lines.append(f"together   {at_most} {Bytes(plan.medium_bytes)}")
    if found.volume_bytes:
        lines.append(f"volumes    at most {found.volumes} of {Bytes(found.volume_bytes)}")
    fits = "fits" if found.largest_file_bytes <= _FAT32_FILE_BYTES else "does not fit"
    lines.append(f"files      at most {Bytes(found.largest_file_bytes)} each, which {fits} FAT32")
    lines.append(f"free       {Bytes(found.room.medium)} on the medium")
    if plan.work_bytes:
        lines.append(
            f"work       {Bytes(plan.work_bytes)} for a while, "
            f"{Bytes(found.room.work)} are free there"
        )
    lines += _time_lines(found)
    return (*lines, *found.lacks)


def _time_lines(found: Forecast) -> list[str]:
    if found.speed is not None:
        speed = found.speed
        rates = f"{speed.write / 1e6:.0f} MB/s written, {speed.read / 1e6:.0f} MB/s read"
        return [f"time       {_span(found.seconds(speed.write, speed.read))} at {rates} (measured)"]
    times = ", ".join(
        f"{_span(found.seconds(rate, rate))} at {rate / 1e6:.0f} MB/s" for rate in RATES
    )
    return [f"time       {times}, with reading back (--measure tries the medium)"]


def _span(seconds: float) -> str:
    minute = 60
    return f"{seconds / minute:.0f} min" if seconds >= minute else f"{max(seconds, 1):.0f} s"


def forecast_json(found: Forecast) -> dict[str, Any]:
    """The forecast for machines; bytes and seconds."""
    speed = found.speed
    return {
        "variants": [
            {"id": one.id, "size": one.size_bytes, "exact": one.is_source}
            for one in found.plan.variants
        ],
        "medium_bytes": found.plan.medium_bytes,
        "work_bytes": found.plan.work_bytes,
        "volumes": found.volumes,
        "largest_file_bytes": found.largest_file_bytes,
        "free_bytes": found.room.medium,
        "free_work_bytes": found.room.work,
        "measured": None
        if speed is None
        else {
            "write_bytes_per_s": round(speed.write),
            "read_bytes_per_s": round(speed.read),
            "seconds": round(found.seconds(speed.write, speed.read)),
        },
        "fits": not found.lacks,
        "lacks": list(found.lacks),
    }
