"""Where a file is cut into chunks, and which filter each takes. Pure.

Cuts fall on the start of every tensor and, within a tensor, every 4 MiB; what stands before the
tensors is one run. So two quantizations of a model, or a model with another chat template, have
most of their chunks in common.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from bundler.format.index import Filter
from bundler.format.limits import CHUNK_BYTES
from hwprobe.gguf import GgufHeader

_FILTERS: Final = {"F16": Filter.PLANES_2, "BF16": Filter.PLANES_2, "F32": Filter.PLANES_4}
"""Exponents of neighbouring weights are alike: their bytes stand together in a plane."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """One chunk to be: where it starts and ends in the plain file, in bytes.

    Attributes:
        kind: type of the tensor it belongs to, or empty.
        filter: what compression would want done to it first.
    """

    start: int
    end: int
    kind: str = ""
    filter: Filter = Filter.NONE

    @property
    def size_bytes(self) -> int:
        """Plain bytes of the chunk."""
        return self.end - self.start


def cut_gguf(header: GgufHeader, *, chunk_bytes: int = CHUNK_BYTES) -> tuple[Cut, ...]:
    """Cuts of a whole GGUF file, in order, without gap or overlap."""
    runs = [(0, "")]
    runs += sorted(
        (header.data_offset_bytes + tensor.offset_bytes, tensor.ggml_type)
        for tensor in header.tensors
        if tensor.size_bytes
    )
    # With no metadata before it, the first tensor would make an empty run.
    ends = [start for start, _ in runs[1:]] + [header.file_size_bytes]
    return tuple(
        cut
        for (start, kind), end in zip(runs, ends, strict=True)
        for cut in _run(start, end, kind, chunk_bytes)
    )


def _run(start: int, end: int, kind: str, chunk_bytes: int) -> Iterator[Cut]:
    chosen = _FILTERS.get(kind, Filter.NONE)
    for at in range(start, end, chunk_bytes):
        yield Cut(start=at, end=min(at + chunk_bytes, end), kind=kind, filter=chosen)
