"""Make quantized variants with the engine, in a child process: parent side.

The engine aborts on what it does not expect. A crash must cost one variant, never the packer,
so this module never imports it; `bundler.quantize_child` does.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Final

from bundler.errors import PackError, QuantizeError
from bundler.progress import Advance
from hwprobe.errors import GgufError
from hwprobe.ggml_types import FILE_TYPES
from hwprobe.gguf import ModelProfile, read_header

BITS_PER_WEIGHT: Final[dict[str, float]] = {
    "F32": 32.0,
    "F16": 16.0,
    "BF16": 16.0,
    "Q8_0": 8.5,
    "Q6_K": 6.6,
    "Q5_1": 6.0,
    "Q5_0": 5.5,
    "Q5_K_M": 5.7,
    "Q5_K_S": 5.55,
    "Q4_1": 5.0,
    "Q4_K_M": 4.9,
    "Q4_K_S": 4.7,
    "Q4_0": 4.6,
    "IQ4_NL": 4.6,
    "IQ4_XS": 4.4,
    "Q3_K_L": 4.3,
    "Q3_K_M": 4.0,
    "Q3_K_S": 3.6,
    "Q2_K": 3.4,
}
"""What can be made without an importance matrix, best first, with bits per weight of a whole
file. Source: sizes of published 8B models; for planning only, small models come out larger."""

_SMALL_MODEL_BYTES: Final = 64 << 20
"""Below this, rows too short for K-quants and 32-bit norms make the table above meaningless."""
_NUMBERS: Final = {name: number for number, name in FILE_TYPES.items()}
_FLOATING: Final = ("F32", "F16", "BF16")
_POLL_S: Final = 0.1
_KEPT_BYTES: Final = 64 << 10


def known_quantization(name: str) -> str:
    """The name in llama.cpp's spelling.

    Raises:
        PackError: it is unknown.
    """
    known = name.strip().upper()
    if known not in BITS_PER_WEIGHT:
        raise PackError(
            f"quantization: expected one of {', '.join(BITS_PER_WEIGHT)}, found {name!r}"
        )
    return known


def check_quantization(name: str, source: ModelProfile) -> str:
    """The name in llama.cpp's spelling.

    Raises:
        PackError: unknown, or the source is quantized already.
    """
    known = known_quantization(name)
    if source.quantization not in _FLOATING:
        raise PackError(
            f"source: expected F32, F16 or BF16 weights to quantize, found {source.quantization}",
            hint="quantizing twice loses quality; start from the unquantized model, or pack this "
            "one as it is with --include-source and no --quantize",
        )
    return known


def estimate_bytes(source: ModelProfile, quantization: str) -> int:
    """About how large a variant will be; never far below."""
    estimated = int(source.parameter_count * BITS_PER_WEIGHT[quantization] / 8 * 1.03)
    overhead = max(source.file_size_bytes - source.weights_bytes, 0)
    if source.file_size_bytes < _SMALL_MODEL_BYTES:
        return max(estimated + overhead, source.file_size_bytes)
    return estimated + overhead


def quantize(
    source: Path, target: Path, quantization: str, *, threads: int, advance: Advance
) -> None:
    """Write a quantized copy of a GGUF file.

    Args:
        source: an unquantized GGUF file.
        target: must not exist; removed again when anything goes wrong.
        quantization: llama.cpp's name.
        threads: CPU threads.
        advance: told how many bytes were written.

    Raises:
        QuantizeError: the child crashed, refused, or wrote something else than was asked for.
    """
    request: dict[str, str | int] = {
        "source": str(source),
        "target": str(target),
        "file_type": _NUMBERS[quantization],
        "threads": threads,
    }
    try:
        _run_child(request, target, quantization, advance)
        _check_result(target, quantization)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _run_child(
    request: dict[str, str | int], target: Path, quantization: str, advance: Advance
) -> None:
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "bundler.quantize_child"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},
            start_new_session=True,
        )
        try:
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError), child.stdin:
                child.stdin.write(json.dumps(request).encode())
            _watch(child, target, advance)
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        if child.returncode != 0:
            raise QuantizeError(
                f"quantize to {quantization}: {_ending(child.returncode)}: {_last_line(log)}",
                hint="the other variants can be packed without this one",
            )


def _watch(child: subprocess.Popen[bytes], target: Path, advance: Advance) -> None:
    """Report the growth of the output until the child ends."""
    reported = 0
    while True:
        try:
            child.wait(_POLL_S)
        except subprocess.TimeoutExpired:
            ended = False
        else:
            ended = True
        with contextlib.suppress(OSError):
            size = target.stat().st_size
            advance(max(size - reported, 0))
            reported = max(size, reported)
        if ended:
            return


def _ending(returncode: int) -> str:
    if returncode < 0:
        return f"the engine was ended by {signal.Signals(-returncode).name}"
    return "the engine refused"


def _last_line(log: IO[bytes]) -> str:
    end = log.seek(0, os.SEEK_END)
    log.seek(max(0, end - _KEPT_BYTES))
    text = log.read().decode("utf-8", "replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    last = lines[-1] if lines else "it said nothing"
    return "".join(letter if letter.isprintable() else "?" for letter in last)[:300]


def _check_result(target: Path, quantization: str) -> None:
    try:
        header = read_header(target)
    except (GgufError, OSError) as error:
        raise QuantizeError(f"quantize to {quantization}: {error}") from error
    found = header.integer("general.file_type", -1)
    if found != _NUMBERS[quantization]:
        raise QuantizeError(
            f"quantize to {quantization}: expected file type {_NUMBERS[quantization]}, "
            f"found {found}"
        )
