"""Build the engine once, keep the wheel, install it, and check that AMX is off.

    .venv/bin/python requirements/engine.py

This is the one place that says how the engine is built (docs/engine-build.md tells why).
The wheel is kept outside the checkout, in a folder named after everything that decides its
content: source hash, flags, compiler, machine. pip's own wheel cache is not used, because it
ignores the flags and may hand back a build with AMX.

On x86-64 the CPU backend, one library of 1 to 2 MB, is built again for other instruction sets;
`hwprobe.variants` chooses among them at run time.

Environment:
    SATCHEL_CACHE            where the wheel is kept (default: $XDG_CACHE_HOME/satchel)
    SATCHEL_ENGINE_FLAGS     more CMake arguments, such as -DGGML_CUDA=ON; part of the key
    SATCHEL_ENGINE_VARIANTS  CPU variants to build beside it, of baseline, avx512 and amx
                             (default: "baseline avx512"; empty: none)
    CXX                      the C++ compiler (default: g++)
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
import sysconfig
import tarfile
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

VARIANTS = {
    # Any x86-64: what runs where AVX2 does not.
    "baseline": (
        *("-DGGML_SSE42=OFF", "-DGGML_AVX=OFF", "-DGGML_AVX2=OFF"),
        *("-DGGML_FMA=OFF", "-DGGML_F16C=OFF", "-DGGML_BMI2=OFF"),
    ),
    # Cascade Lake and later, Zen 4 and later. Without VBMI, which the former lack.
    "avx512": ("-DGGML_AVX512=ON", "-DGGML_AVX512_VNNI=ON"),
    # Only on request, and served only where the canary passes: see above.
    "amx": (
        *("-DGGML_AVX512=ON", "-DGGML_AVX512_VNNI=ON", "-DGGML_AVX512_BF16=ON"),
        *("-DGGML_AMX_TILE=ON", "-DGGML_AMX_INT8=ON"),
    ),
}
"""CMake arguments of each CPU variant; the wheel's own is called avx2."""

DEFAULT_VARIANTS = "baseline avx512"

VARIANT_ARGS = (
    *("-GNinja", "-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=ON", "-DGGML_RPC=OFF"),
    *("-DLLAMA_BUILD_COMMON=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF"),
    *("-DLLAMA_BUILD_TOOLS=OFF", "-DLLAMA_BUILD_SERVER=OFF", "-DLLAMA_OPENSSL=OFF"),
)
"""For the one target ggml-cpu; the other libraries stay the wheel's."""

BACKEND = "libggml-cpu.so.0"

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


def wanted_variants() -> list[str]:
    """The CPU variants to have; none on other processors than x86-64."""
    if platform.machine() != "x86_64":
        return []
    names = os.environ.get("SATCHEL_ENGINE_VARIANTS", DEFAULT_VARIANTS).split()
    unknown = sorted(set(names) - set(VARIANTS))
    if unknown:
        sys.exit(f"engine: error: SATCHEL_ENGINE_VARIANTS: expected of {', '.join(VARIANTS)}, "
                 f"found {unknown[0]}")  # fmt: skip
    return names


def build_variants(names: list[str], folder: Path) -> None:
    """Compile the CPU backend for each name into ``folder/<name>``.

    Half a minute of processor time each, measured with gcc 12.
    """
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    jobs = str(len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory(prefix="satchel-engine-") as scratch:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        run(
            *pip,
            *("--no-build-isolation", "--no-binary", "llama-cpp-python"),
            *("--require-hashes", "-r", str(REQUIREMENT), "-d", scratch),
        )
        (archive,) = Path(scratch).glob("*.tar.gz")
        with tarfile.open(archive) as source:
            source.extractall(scratch, filter="data")
        (tree,) = Path(scratch).glob("*/vendor/llama.cpp")
        for name in names:
            made = Path(scratch) / name
            arguments = [*VARIANT_ARGS, *flags(), "-DGGML_RPC=OFF", *VARIANTS[name]]
            quiet = ["--log-level=WARNING", "-Wno-dev"]
            run("cmake", *quiet, "-S", str(tree), "-B", str(made), *arguments, env=environment)
            build = ["cmake", "--build", str(made), "--target", "ggml-cpu", "-j", jobs]
            run(*build, "--", "--quiet", env=environment)
            target = folder / name
            target.mkdir(parents=True, exist_ok=True)
            staged = target / f".{BACKEND}"
            shutil.copy2((made / "bin" / BACKEND).resolve(), staged)
            staged.rename(target / BACKEND)


def variants_key(names: list[str]) -> str:
    """A short name for what decides the content of the variants, besides the engine's key."""
    facts = [VARIANT_ARGS, {name: VARIANTS[name] for name in names}]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]


def install_variants(names: list[str], kept: Path) -> None:
    """Put a folder per variant beside the wheel's libraries: its backend, links to the others."""
    installed = Path(sysconfig.get_path("platlib")) / "llama_cpp"
    shutil.rmtree(installed / "variants", ignore_errors=True)
    for name in names:
        folder = installed / "variants" / name
        folder.mkdir(parents=True)
        shutil.copy2(kept / name / BACKEND, folder / BACKEND)
        for library in (installed / "lib").glob("lib*.so*"):
            if not library.name.startswith("libggml-cpu."):
                (folder / library.name).symlink_to(Path("..", "..", "lib", library.name))


def have_variants(destination: Path) -> None:
    """Build the CPU variants if needed, and install them."""
    names = wanted_variants()
    kept = destination / f"variants-{variants_key(names)}"
    missing = [name for name in names if not (kept / name / BACKEND).exists()]
    if missing:
        print(f"engine: building CPU variants {' '.join(missing)} (once)", flush=True)
        build_variants(missing, kept)
    install_variants(names, kept)


def main() -> None:
    """Build if needed, install if needed, check always."""
    key = build_key()
    stamp = Path(sys.prefix) / "engine-key"
    destination = cache_folder() / "engine" / key
    destination.parent.mkdir(parents=True, exist_ok=True)
    with (destination.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not list(destination.glob("*.whl")):
            print(f"engine: building with {compiler()} (once, some minutes)", flush=True)
            begin = time.monotonic()
            build(destination)
            print(f"engine: built in {time.monotonic() - begin:.0f} s", flush=True)
        if not stamp.exists() or stamp.read_text() != key:
            (wheel,) = destination.glob("*.whl")
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
            run(*pip, "--force-reinstall", str(wheel))
            stamp.write_text(key)
        have_variants(destination)
    # In a child of its own: a broken build may crash while it is loaded.
    run(sys.executable, "-P", "-c", CHECK)


if __name__ == "__main__":
    main()
