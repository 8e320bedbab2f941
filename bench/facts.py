"""What a run was made with: machine, commits, libraries, models, flags."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import measure, models
from bench.server import Side
from bench.sides import library_path
from bench.store import sha256

COMMAND_LIMIT_S = 30
ENGINE_LIBRARIES = ("libggml", "libllama.")
_SYSTEM_INFO = "import llama_cpp; print(llama_cpp.llama_print_system_info().decode().strip())"


def engine_folder() -> Path:
    """Where the installed engine's libraries are; the engine is not loaded for this.

    Raises:
        ModuleNotFoundError: no engine is installed.
    """
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("llama_cpp is not installed; run `make test` first")
    return Path(spec.origin).parent / "lib"


def machine() -> dict[str, Any]:
    """The machine and the interpreter."""
    cpu = _after(Path("/proc/cpuinfo").read_text(), "model name")
    memory_kib = _after(Path("/proc/meminfo").read_text(), "MemTotal").split()[0]
    return {
        "cpu": cpu or platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(memory_kib) / (1 << 20), 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def ours() -> dict[str, str]:
    """Our commit and what the engine says about its build."""
    return {
        "commit": _output(["git", "describe", "--always", "--dirty", "--abbrev=12"]),
        "engine": _output([sys.executable, "-P", "-c", _SYSTEM_INFO]),
    }


def peer(programs: Path, libraries: Path) -> dict[str, str]:
    """The version lines of llama-server."""
    command = [str(programs / "llama-server"), "--version"]
    environment = {**os.environ, **library_path(libraries, programs)}
    return {"version": _output(command, environment).replace("\n", "; ")}


def model(name: str) -> dict[str, Any]:
    """Size and digest of a model's file."""
    path = models.ensure(name)
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def libraries(side: Side) -> dict[str, str]:
    """Digests of the engine libraries that a running side has mapped, by file name."""
    family = measure.tree(side.process.popen.pid)
    paths = {path for needle in ENGINE_LIBRARIES for path in measure.mapped_files(family, needle)}
    # Only what computes: common and server code is the program's own, not the engine's.
    return {path.name.partition(".so")[0]: sha256(path) for path in sorted(paths) if path.exists()}


def differing(sides: Mapping[str, Mapping[str, str]]) -> tuple[str, ...]:
    """Names of libraries that not all sides have with the same content."""
    names = {name for found in sides.values() for name in found}
    return tuple(
        sorted(name for name in names if len({found.get(name) for found in sides.values()}) > 1)
    )


def _output(command: list[str], environment: Mapping[str, str] | None = None) -> str:
    try:
        done = subprocess.run(
            command,
            cwd=models.ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_LIMIT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


def _after(text: str, name: str) -> str:
    """The value of the first ``name : value`` line."""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""
