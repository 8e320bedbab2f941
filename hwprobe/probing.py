"""Take the inventory where a driver that crashes or hangs cannot take this process along.

Files of /proc and /sys are read here. A GPU driver's library is native code: it is loaded only in
a child process, and only where there is a card or a driver.

The child is ``python -P -m hwprobe.probing``: arguments in, one site report out.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

from hwprobe.decoding import parsed
from hwprobe.errors import ProbeError
from hwprobe.inventory import take_inventory
from hwprobe.inventory.nvidia import may_have_driver
from hwprobe.machine import Machine, Nvidia
from hwprobe.report import machine_from_json, machine_to_json

DRIVER_TIMEOUT_S: Final = 20.0
"""Why: a driver that wakes cards up takes a few seconds; one that hangs never answers."""


def probe_machine(
    *,
    disk_path: Path = Path("/"),
    engine_offload: bool | None = None,
    timeout_s: float = DRIVER_TIMEOUT_S,
) -> Machine:
    """This machine, as `hwprobe.inventory.take_inventory` shows it. Never raises for a driver."""
    if not may_have_driver(Path("/")):
        return take_inventory(disk_path=disk_path, engine_offload=engine_offload)
    command = [sys.executable, "-P", "-m", "hwprobe.probing", str(disk_path)]
    return replace(
        ended_machine(command, disk_path=disk_path, timeout_s=timeout_s),
        engine_offload=engine_offload,
    )


def ended_machine(command: list[str], *, disk_path: Path, timeout_s: float) -> Machine:
    """The machine a child reports; without its GPUs where the child crashed or hung."""
    try:
        done = subprocess.run(
            command, capture_output=True, check=False, timeout=timeout_s, stdin=subprocess.DEVNULL
        )
        if done.returncode == 0:
            return machine_from_json(parsed(done.stdout, "inventory"))
        ended = _words(done.returncode)
    except subprocess.TimeoutExpired:
        ended = f"gave no answer within {timeout_s:g} s"
    except ProbeError as error:
        ended = f"gave no usable answer: {error}"
    machine = take_inventory(disk_path=disk_path, ask_driver=False)
    broken = Nvidia(
        state="driver_broken",
        detail=f"the process that asked the driver {ended}; planned without GPUs",
        cards=machine.nvidia.cards,
    )
    return replace(machine, nvidia=broken, gpus=())


def _words(status: int) -> str:
    if status > 0:
        return f"failed with {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"


def main() -> None:
    """Write the site report of this machine, asking the driver."""
    answer = os.dup(1)
    os.dup2(2, 1)  # nothing but the report reaches the parent's pipe
    machine = take_inventory(disk_path=Path(sys.argv[1]))
    data = json.dumps(machine_to_json(machine)).encode()
    while data:
        data = data[os.write(answer, data) :]


if __name__ == "__main__":
    main()
