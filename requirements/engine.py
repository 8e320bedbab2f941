"""Build the engine once, keep the wheel, install it, and check that AMX is off.

    .venv/bin/python requirements/engine.py

This is the one place that says how the engine is built (docs/engine-build.md tells why).
The wheel is kept outside the checkout, in a folder named after everything that decides its
content: source hash, flags, compiler, machine. pip's own wheel cache is not used, because it
ignores the flags and may hand back a build with AMX.

Environment:
    SATCHEL_CACHE         where the wheel is kept (default: $XDG_CACHE_HOME/satchel)
    SATCHEL_ENGINE_FLAGS  more CMake arguments, such as -DGGML_CUDA=ON; part of the key
    CXX                   the C++ compiler (default: g++)
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
REQUIREMENT = HERE / "engine.txt"

CMAKE_ARGS = (
    # Portable: no -march=native. On x86-64 this means AVX2, FMA, F16C and BMI2.
    "-DGGML_NATIVE=OFF",
    # gcc 12 drops the stores that fill the AMX tile configuration; the first decode then crashes
    # on a CPU with AMX. Off, whatever the defaults become.
    "-DGGML_AMX_TILE=OFF",
    "-DGGML_AMX_INT8=OFF",
    "-DGGML_AMX_BF16=OFF",
    # For models larger than one machine; nothing listens or connects unless told to.
    "-DGGML_RPC=ON",
    # The engine never fetches anything.
    "-DLLAMA_OPENSSL=OFF",
)

CHECK = """
import ctypes, pathlib, sys
import llama_cpp
folder = pathlib.Path(llama_cpp.__file__).parent / "lib"
cpu = ctypes.CDLL(str(folder / "libggml-cpu.so.0"))
if cpu.ggml_cpu_has_amx_int8():
    sys.exit("the installed engine has AMX kernels")
print(llama_cpp.llama_print_system_info().decode().strip())
"""


def flags() -> list[str]:
    """Every CMake argument, ours first."""
    return [*CMAKE_ARGS, *os.environ.get("SATCHEL_ENGINE_FLAGS", "").split()]


def compiler() -> str:
    """The compiler's own version line."""
    command = os.environ.get("CXX", "g++")
    if shutil.which(command) is None:
        sys.exit(f"engine: error: no C++ compiler: {command}\nengine: hint: apt-get install g++")
    result = subprocess.run([command, "--version"], check=True, capture_output=True, text=True)
    return result.stdout.splitlines()[0]


def build_key() -> str:
    """A short name for everything that decides the content of the wheel."""
    facts = {
        "requirement": REQUIREMENT.read_text(),
        "flags": flags(),
        "compiler": compiler(),
        "machine": platform.machine(),
        "layout": 1,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def cache_folder() -> Path:
    """Where wheels are kept between checkouts."""
    chosen = os.environ.get("SATCHEL_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "satchel"


def run(*command: str, env: dict[str, str] | None = None) -> None:
    """Run one command and stop with its exit code if it fails."""
    result = subprocess.run(command, check=False, env=env)
    if result.returncode:
        sys.exit(result.returncode)


def slim(wheel: Path, folder: Path) -> Path:
    """Take out the headers and the second set of libraries that upstream installs by accident."""
    unpacked = folder / "unpacked"
    run(sys.executable, "-m", "wheel", "unpack", str(wheel), "--dest", str(unpacked))
    (content,) = unpacked.iterdir()
    for accident in ("include", "lib", "bin"):
        shutil.rmtree(content / accident, ignore_errors=True)
    packed = folder / "packed"
    packed.mkdir()
    run(sys.executable, "-m", "wheel", "pack", str(content), "--dest-dir", str(packed))
    (result,) = packed.iterdir()
    return result


def build(destination: Path) -> None:
    """Compile the engine into ``destination``; five minutes on two cores (measured)."""
    environment = {
        **os.environ,
        "CMAKE_ARGS": " ".join(flags()),
        "CMAKE_BUILD_PARALLEL_LEVEL": str(len(os.sched_getaffinity(0))),
        # scikit-build-core finds cmake and ninja of this venv.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    with tempfile.TemporaryDirectory(prefix="satchel-engine-") as scratch:
        folder = Path(scratch)
        pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-cache-dir"]
        run(
            *pip,
            *("--no-build-isolation", "--no-binary", "llama-cpp-python"),
            *("--require-hashes", "-r", str(REQUIREMENT), "-w", str(folder / "built")),
            env=environment,
        )
        (wheel,) = (folder / "built").glob("*.whl")
        slimmed = slim(wheel, folder)
        staging = destination.with_name(destination.name + ".new")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        shutil.copy2(slimmed, staging)
        shutil.rmtree(destination, ignore_errors=True)
        staging.rename(destination)


def main() -> None:
    """Build if needed, install if needed, check always."""
    key = build_key()
    stamp = Path(sys.prefix) / "engine-key"
    if not stamp.exists() or stamp.read_text() != key:
        destination = cache_folder() / "engine" / key
        destination.parent.mkdir(parents=True, exist_ok=True)
        with (destination.parent / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not destination.exists():
                print(f"engine: building with {compiler()} (once, some minutes)", flush=True)
                begin = time.monotonic()
                build(destination)
                print(f"engine: built in {time.monotonic() - begin:.0f} s", flush=True)
        (wheel,) = destination.glob("*.whl")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
        run(*pip, "--force-reinstall", str(wheel))
        stamp.write_text(key)
    # In a child of its own: a broken build may crash while it is loaded.
    run(sys.executable, "-P", "-c", CHECK)


if __name__ == "__main__":
    main()
