"""Weights that are made or judged here: merged, quantized, and shown to the engine.

The one module that may import packing's tools: what the connected side does to a model before it
is signed, the appliance does to one that is made here (docs/adr/0012).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.errors import RequestError, UnusableModelError, store_io
from bundler import quantize as quantizing
from bundler.errors import PackError, SourceDamagedError
from bundler.source import split
from bundler.source.layouts import foreign_layout
from hwprobe.engine import dry_run
from hwprobe.errors import EngineCheckError
from hwprobe.gguf import GgufHeader, ModelProfile
from hwprobe.settings import EngineSettings

FLOATING = ("F32", "F16", "BF16")
_TELL_BYTES = 64 << 20
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


def check_layout(header: GgufHeader, called: str) -> None:
    """Refuse a file in a layout that only Ollama's engine reads; see `bundler.source.layouts`.

    Raises:
        UnusableModelError: it has such a layout; the message names the mark.
    """
    mark = foreign_layout(header)
    if mark is not None:
        architecture = header.string("general.architecture", "unknown")
        raise UnusableModelError(
            f"{called}: {architecture} in Ollama's own layout, which llama.cpp does not load: "
            f"{mark}",
            hint="use the GGUF file that llama.cpp's converter made of this model, and its mmproj "
            "file if it sees images",
        )


def shard_names(count: int) -> tuple[str, ...]:
    """Names by which `merge` finds so many shards."""
    return split.shard_names(f"shard-00001-of-{count:05d}.gguf")


def merge(first: Path, target: Path, tell: Callable[[int, int], None]) -> None:
    """Put the shards of a model together; the others stand beside the first.

    Args:
        first: named as `shard_names` says.
        target: must not exist.
        tell: told of bytes done, and of all.

    Raises:
        RequestError: they do not belong together.
        NoSpaceError: there is no room for the whole.
        StoreAccessError: it cannot be written.
    """
    try:
        split.merge(split.read_shards(first), target, _Stages(tell))
    except SourceDamagedError as error:
        raise RequestError(f"files: {error}", hint=error.hint) from error
    except PackError as error:
        with store_io("merge the shards"):
            raise error.__cause__ or error from error


class _Stages:
    """Progress of packing, told as numbers."""

    def __init__(self, tell: Callable[[int, int], None]) -> None:
        self._tell = tell

    @contextmanager
    def stage(self, label: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
        """A stage of so many bytes; told every few megabytes."""
        del label
        done = told = 0

        def advance(size_bytes: int) -> None:
            nonlocal done, told
            done += size_bytes
            if done - told >= _TELL_BYTES or done == total_bytes:
                told = done
                self._tell(done, total_bytes)

        self._tell(0, total_bytes)
        yield advance
