"""Choose the build of the CPU backend that works best on this processor.

The wheel's own build needs AVX2 on x86-64. `requirements/engine.py` may have put others beside it:
a folder per variant, with its own backend and links to the libraries that are the same.

Rules:
 * what the processor does not announce is not tried;
 * what is tried is tried in a child process, on `hwprobe.canary`; a crash is an answer;
 * its numbers must agree with those of the plainest variant that works;
 * AMX is never chosen by default, only when somebody built it and the canary passed;
 * a choice holds for one set of libraries on one machine and is kept on disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import math
import platform
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from hwprobe.canary import CONTEXT_TOKENS, canary_bytes
from hwprobe.engine import canary_logits, engine_build_id
from hwprobe.errors import EngineCheckError
from hwprobe.settings import EngineSettings

OWN: Final = "avx2" if platform.machine() == "x86_64" else "own"
"""The wheel's own build."""

NEEDS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "amx": ("avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "amx_int8"),
        "avx512": ("avx512f", "avx512bw", "avx512vl", "avx512_vnni"),
        "avx2": ("avx2", "fma", "f16c", "bmi2"),
        "own": (),
        "baseline": (),
    }
)
"""Instruction sets each variant is compiled for, the fastest variant first."""

MOST_DIFFERENCE: Final = 0.05
"""Root of the mean squared difference of two variants' logits, in units of their spread. Why:
0.016 was measured between sound builds, which round in another order and at other widths; numbers
without relation differ by about 1.4."""

CHOICE_FILE: Final = "variant.json"
_MAX_CHOICE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantChoice:
    """Which build is used, and why not another.

    Attributes:
        name: ``avx2`` and so on; `OWN` is the wheel's.
        refused: a line for each variant that was tried and does not work.
        libraries: folder to load from; empty for the wheel's own.
        identity: digest of what the choice holds for.
    """

    name: str
    refused: tuple[str, ...] = ()
    libraries: str = ""
    identity: str = ""


def folders() -> dict[str, Path]:
    """The folder of each variant that is installed beside the wheel's own."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        return {}
    root = Path(spec.submodule_search_locations[0]) / "variants"
    return {name: root / name for name in NEEDS if (root / name / "libllama.so").exists()}


def candidates(installed: Collection[str], features: Collection[str]) -> tuple[str, ...]:
    """Variants worth trying on a processor with these features, the fastest first."""
    have = {*installed, OWN}
    return tuple(n for n, needs in NEEDS.items() if n in have and set(needs) <= set(features))


def choose_variant(
    directory: Path, *, features: Collection[str], machine_id: str, wanted: str = "auto"
) -> VariantChoice:
    """The choice on record for these libraries on this machine, or a new one.

    Args:
        directory: where the choice is kept.
        features: instruction sets of the processor.
        machine_id: names the processor.
        wanted: the name of a variant, or ``auto``.

    Raises:
        EngineCheckError: no variant works here, or the wanted one does not.
    """
    installed = folders()
    names = candidates(installed, features)
    if wanted != "auto":
        if wanted not in names:
            raise EngineCheckError(
                f"engine variant: expected one of {', '.join(names)}, found {wanted}",
                hint="it is not installed, or this processor does not announce what it needs",
            )
        names = (wanted,)
    identity = _identity(installed, names, machine_id)
    known = read_choice(directory)
    if known is not None and known.identity == identity:
        return known
    name, refused = try_variants(names, installed)
    libraries = str(installed[name]) if name in installed else ""
    choice = VariantChoice(name=name, refused=refused, libraries=libraries, identity=identity)
    _keep(directory, choice)
    return choice


def try_variants(
    names: Sequence[str], installed: Mapping[str, Path]
) -> tuple[str, tuple[str, ...]]:
    """The first variant that computes what the plainest working one computes, and the refused.

    Raises:
        EngineCheckError: none works.
    """
    refused: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="satchel-canary-") as scratch:
        model = Path(scratch) / "canary.gguf"
        model.write_bytes(canary_bytes())
        expected = None
        for name in reversed(names):
            try:
                expected = _logits(model, installed.get(name), plain=True)
                break
            except EngineCheckError as error:
                refused[name] = f"{name}: {error}"
        if expected is None:
            raise EngineCheckError(
                f"no build of the engine works here: {'; '.join(refused.values())}",
                hint="build the engine on a machine like this one: docs/engine-build.md",
            )
        for name in names:
            if name in refused:
                continue
            try:
                difference = spread(expected, _logits(model, installed.get(name), plain=False))
            except EngineCheckError as error:
                refused[name] = f"{name}: {error}"
                continue
            if difference <= MOST_DIFFERENCE:
                return name, tuple(refused.values())
            refused[name] = f"{name}: computes other numbers ({difference:.2g})"
    raise EngineCheckError(f"no build of the engine works here: {'; '.join(refused.values())}")


def spread(expected: Sequence[Sequence[float]], found: Sequence[Sequence[float]]) -> float:
    """Root mean square of the difference in units of the standard deviation expected."""
    one = [value for row in expected for value in row]
    other = [value for row in found for value in row]
    if len(one) != len(other) or not one:
        return math.inf
    mean = math.fsum(one) / len(one)
    variance = math.fsum((value - mean) ** 2 for value in one)
    error = math.fsum((a - b) ** 2 for a, b in zip(one, other, strict=True))
    return math.sqrt(error / variance) if variance else math.inf


def read_choice(directory: Path) -> VariantChoice | None:
    """The choice kept in a directory; damage reads as absence."""
    try:
        with (directory / CHOICE_FILE).open("rb") as file:
            values = json.loads(file.read(_MAX_CHOICE_BYTES))
        choice = VariantChoice(
            name=str(values["name"]),
            refused=tuple(map(str, values["refused"])),
            libraries=str(values["libraries"]),
            identity=str(values["identity"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return choice if choice.name in NEEDS else None


def _logits(model: Path, libraries: Path | None, *, plain: bool) -> tuple[tuple[float, ...], ...]:
    settings = EngineSettings(
        num_ctx=CONTEXT_TOKENS, num_batch=CONTEXT_TOKENS, num_ubatch=64, threads=1, repack=not plain
    )
    return canary_logits(model, settings, libraries=libraries)


def _identity(installed: Mapping[str, Path], names: Sequence[str], machine_id: str) -> str:
    digest = hashlib.sha256(f"{engine_build_id()} {machine_id} {' '.join(names)}".encode())
    for name in names:
        if name in installed:
            backend = installed[name] / "libggml-cpu.so.0"
            digest.update(f"\0{backend}\0".encode())
            with backend.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:32]


def _keep(directory: Path, choice: VariantChoice) -> None:
    """Keep a choice; one that cannot be kept is made again."""
    temporary = None
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=directory, delete=False) as file:
            temporary = Path(file.name)
            file.write(json.dumps(asdict(choice), indent=1).encode())
        temporary.replace(directory / CHOICE_FILE)
    except OSError:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
