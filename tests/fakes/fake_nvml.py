"""The NVIDIA driver's library as a simulator: compiled once, driven by a text file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

_SOURCE = Path(__file__).with_name("fake_nvml.c")
_ASK = """
import json, sys
from pathlib import Path
from hwprobe.inventory import take_inventory
from hwprobe.report import machine_to_json
machine = take_inventory(Path(sys.argv[1]), ask_driver=True)
print(json.dumps(machine_to_json(machine)))
"""


def compiler() -> str | None:
    """The C compiler of this machine, or ``None``."""
    return shutil.which("cc") or shutil.which("gcc")


def build_fake_nvml(directory: Path) -> Path:
    """Compile the library into ``directory``; the directory."""
    cc = compiler()
    assert cc is not None
    target = directory / "libnvidia-ml.so.1"
    subprocess.run(
        [cc, "-shared", "-fPIC", "-o", str(target), str(_SOURCE)], check=True, timeout=120
    )
    return directory


def inventory_with_driver(root: Path, library: Path | None, settings: str = "") -> dict[str, Any]:
    """The inventory of ``root`` in a process that finds ``library`` as the driver's."""
    answers = root / "fake-nvml.txt"
    answers.parent.mkdir(parents=True, exist_ok=True)
    answers.write_text(settings, encoding="utf-8")
    path = str(library) if library else str(root)
    environment = {**os.environ, "FAKE_NVML": str(answers), "LD_LIBRARY_PATH": path}
    done = subprocess.run(
        [sys.executable, "-P", "-c", _ASK, str(root)],
        env=environment,
        check=True,
        capture_output=True,
        timeout=60,
    )
    machine = json.loads(done.stdout)
    assert isinstance(machine, dict)
    return machine
