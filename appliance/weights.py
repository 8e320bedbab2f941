"""Weights that are made or judged here: quantized, and shown to the engine, each in a child.

The one module that may import packing's tools: what the connected side does to a model before it
is signed, the appliance does to one that is made here (docs/adr/0011).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from appliance.errors import RequestError, UnusableModelError
from bundler import quantize as quantizing
from hwprobe.engine import dry_run
from hwprobe.errors import EngineCheckError
from hwprobe.gguf import GgufHeader, ModelProfile
from hwprobe.settings import EngineSettings

FLOATING = ("F32", "F16", "BF16")
_ALIASES = {"Q4_K": "Q4_K_M"}
_SMALLEST = EngineSettings(num_ctx=256, num_batch=32, num_ubatch=32)
"""The cheapest load there is: whether the engine takes the file does not depend on it."""


def read_quantization(text: str) -> str:
    """A quantization in llama.cpp's spelling.

    Raises:
        RequestError: it is none that can be made.
    """
    known = text.strip().upper()
    known = _ALIASES.get(known, known)
    if known not in quantizing.BITS_PER_WEIGHT:
        names = ", ".join(quantizing.BITS_PER_WEIGHT)
        raise RequestError(f"unsupported quantization type {text} - supported types are {names}")
    return known


def quantize(
    source: Path,
    profile: ModelProfile,
    target: Path,
    quantization: str,
    *,
    threads: int,
    advance: Callable[[int], None],
) -> None:
    """Write a quantized copy; see `bundler.quantize.quantize`.

    Raises:
        RequestError: the source is quantized already.
        QuantizeError: the engine crashed or refused.
    """
    if profile.quantization not in FLOATING:
        raise RequestError("quantization is only supported for F16, BF16 and F32 models")
    quantizing.quantize(source, target, quantization, threads=threads, advance=advance)


def quantized_bytes(profile: ModelProfile, quantization: str) -> int:
    """About how large a quantized copy is; never far below."""
    return quantizing.estimate_bytes(profile, quantization)


def check_engine(path: Path, header: GgufHeader, profile: ModelProfile) -> None:
    """Let the engine read the file's tensors and build its graph, without loading the weights.

    Raises:
        UnusableModelError: it refuses, or crashes; the message holds its last words.
    """
    try:
        dry_run(path, profile, _SMALLEST)
    except EngineCheckError as error:
        architecture = header.string("general.architecture", "unknown")
        raise UnusableModelError(
            f"the engine does not take this {architecture} model: {error}",
            hint="models from Ollama's library may have a layout of Ollama's own; use the GGUF "
            "file that llama.cpp's converter made of the model, and its mmproj file",
        ) from error
