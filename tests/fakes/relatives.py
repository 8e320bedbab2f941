"""Relatives of a real GGUF file: another chat template, or tensors that were tuned a little."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hwprobe.gguf import GgufHeader, read_header

TEMPLATE = "tokenizer.chat_template"


def with_template(source: Path, target: Path, more: str) -> Path:
    """The same model with text behind its chat template: everything after it moves."""
    data, header = source.read_bytes(), read_header(source)
    at = header.value_offsets[TEMPLATE]
    (length,) = struct.unpack_from("<Q", data, at)
    end = at + 8 + length
    text = data[at + 8 : end] + more.encode()
    # Padding and the last tensor's record both end in zeros: the records say where they end.
    records = data[end : _records_end(data, header)]
    head = data[:at] + struct.pack("<Q", len(text)) + text + records
    head += b"\0" * (-len(head) % header.alignment)
    target.write_bytes(head + data[header.data_offset_bytes :])
    return target


def _records_end(data: bytes, header: GgufHeader) -> int:
    """Where the tensor records end: name, dimensions, type and offset of each."""
    at = header.tensors_offset_bytes
    for _ in header.tensors:
        (name,) = struct.unpack_from("<Q", data, at)
        at += 8 + name
        (dimensions,) = struct.unpack_from("<I", data, at)
        at += 4 + 8 * dimensions + 4 + 8
    return at


def tuned(source: Path, target: Path, scale: float, which: Callable[[str], bool]) -> Path:
    """The same F16 model; each weight of some tensors moved by a share of the tensor's deviation.

    Args:
        source: an F16 file.
        target: where to.
        scale: standard deviation of the change, relative to that of the weights.
        which: names of the tensors that change.
    """
    data, header = bytearray(source.read_bytes()), read_header(source)
    random = np.random.default_rng(7)
    for tensor in header.tensors:
        if tensor.ggml_type != "F16" or not which(tensor.name):
            continue
        start = header.data_offset_bytes + tensor.offset_bytes
        view = np.frombuffer(data, dtype="<f2", count=tensor.element_count, offset=start)
        weights = view.astype(np.float32)
        noise = random.standard_normal(len(weights)).astype(np.float32)
        view[:] = (weights + noise * scale * weights.std()).astype("<f2")
    target.write_bytes(data)
    return target
