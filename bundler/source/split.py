"""A GGUF model in several files, as ``llama-gguf-split`` makes them, put together into one.

A bundle cuts its files itself, and one artifact is one model: so shards are merged, tensor by
tensor, and nothing of a model is held in memory. The result has the tensors and keys of the
shards, less the ``split.*`` keys, and equal shards give equal bytes.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from bundler.errors import PackError, SourceDamagedError
from bundler.format.errors import NoSpaceError
from bundler.progress import Advance, Progress
from hwprobe.errors import GgufError
from hwprobe.ggml_types import GGML_TYPES
from hwprobe.gguf import GgufHeader, TensorInfo, read_header
from hwprobe.quantity import Bytes

_NAME: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_COUNT: Final = "split.count"
_TENSORS: Final = "split.tensors.count"
_KEYS: Final = (_COUNT, "split.no", _TENSORS)
_COPY_BYTES: Final = 4 << 20
_TYPE_NUMBERS: Final = {kind.name: number for number, kind in GGML_TYPES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One file of a split model."""

    path: Path
    header: GgufHeader


def shard_names(name: str) -> tuple[str, ...]:
    """File names of all shards of the model that ``name`` is one of; itself alone if it is none."""
    found = _NAME.fullmatch(name)
    if not found:
        return (name,)
    count = int(found["count"])
    return tuple(f"{found['stem']}-{one:05d}-of-{count:05d}.gguf" for one in range(1, count + 1))


def merged_name(name: str) -> str:
    """The name a model has when its shards are one file."""
    found = _NAME.fullmatch(name)
    return f"{found['stem']}.gguf" if found else name


def read_shards(path: Path) -> tuple[Shard, ...]:
    """Headers of the shards of a model; one when it is not split. Any shard may be named.

    Raises:
        SourceDamagedError: shards are missing or do not belong together.
        GgufError: one is no GGUF file.
        PackError: one cannot be read.
    """
    paths = [path.with_name(name) for name in shard_names(path.name)]
    missing = [one.name for one in paths if not one.exists()]
    if missing and len(paths) > 1:
        raise SourceDamagedError(
            f"{path.parent}: {len(missing)} of {len(paths)} shards are missing: "
            f"{', '.join(missing[:4])}",
            hint="put all shards of the model into one directory",
        )
    shards = tuple(Shard(path=one, header=_header(one)) for one in paths)
    count = shards[0].header.integer(_COUNT, 0)
    if count <= 1 and len(shards) == 1:
        return shards
    if count != len(shards):
        raise SourceDamagedError(
            f"{paths[0].name}: expected {count} shards as its header says, found {len(shards)}",
            hint="shards keep the names llama-gguf-split gave them: NAME-00001-of-00003.gguf",
        )
    for place, shard in enumerate(shards):
        if shard.header.integer("split.no", place) != place:
            raise SourceDamagedError(f"{shard.path.name}: its header says it is another shard")
    expected = shards[0].header.metadata.get(_TENSORS)
    tensors = sum(len(shard.header.tensors) for shard in shards)
    if isinstance(expected, int) and expected != tensors:
        raise SourceDamagedError(
            f"{paths[0].name}: expected {expected} tensors in all shards, found {tensors}"
        )
    return shards


def _header(path: Path) -> GgufHeader:
    try:
        return read_header(path)
    except GgufError as error:
        raise GgufError(
            offset=error.offset, expected=f"{error.expected} ({path.name})", found=error.found
        ) from error
    except OSError as error:
        raise PackError(f"{path}: {(error.strerror or 'unreadable').lower()}") from error


def merge(shards: tuple[Shard, ...], target: Path, progress: Progress) -> None:
    """Write the shards as one GGUF file.

    Raises:
        SourceDamagedError: two shards hold a tensor of one name.
        NoSpaceError: there is no room for it.
        PackError: it cannot be written or a shard cannot be read.
    """
    alignment = shards[0].header.alignment
    tensors = [tensor for shard in shards for tensor in shard.header.tensors]
    names = {tensor.name for tensor in tensors}
    if len(names) != len(tensors):
        raise SourceDamagedError(f"{shards[0].path.name}: a tensor stands in two shards")
    head = _head(shards[0], tensors, alignment)
    total = len(head) + sum(_padded(tensor.size_bytes, alignment) for tensor in tensors)
    free = shutil.disk_usage(target.parent).free
    if total > free:
        raise NoSpaceError(
            f"{target.parent}: expected {Bytes(total)} free to merge the shards, "
            f"found {Bytes(free)}",
            hint="give another place with --work",
        )
    try:
        with target.open("xb") as out, progress.stage("merging shards", total) as advance:
            out.write(head)
            advance(len(head))
            for shard in shards:
                _copy_tensors(shard, out, alignment, advance)
    except OSError as error:
        target.unlink(missing_ok=True)
        raise PackError(f"{target}: {(error.strerror or 'unwritable').lower()}") from error
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _copy_tensors(shard: Shard, out: IO[bytes], alignment: int, advance: Advance) -> None:
    with shard.path.open("rb") as file:
        for tensor in shard.header.tensors:
            file.seek(shard.header.data_offset_bytes + tensor.offset_bytes)
            left = tensor.size_bytes
            while left:
                data = file.read(min(left, _COPY_BYTES))
                if not data:
                    raise PackError(f"{shard.path}: the file changed while it was read")
                out.write(data)
                left -= len(data)
                advance(len(data))
            padding = _padded(tensor.size_bytes, alignment) - tensor.size_bytes
            out.write(bytes(padding))
            advance(padding)


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _head(first: Shard, tensors: Iterable[TensorInfo], alignment: int) -> bytes:
    """The header of the whole: the first shard's keys as they stand, and all tensors."""
    listed = list(tensors)
    pairs = _key_records(first)
    out = [struct.pack("<4sIQQ", b"GGUF", first.header.version, len(listed), len(pairs)), *pairs]
    at = 0
    for tensor in listed:
        name = tensor.name.encode()
        rank = len(tensor.dimensions)
        out.append(struct.pack(f"<Q{len(name)}sI", len(name), name, rank))
        out.append(struct.pack(f"<{rank}Q", *tensor.dimensions))
        out.append(struct.pack("<IQ", _TYPE_NUMBERS[tensor.ggml_type], at))
        at += _padded(tensor.size_bytes, alignment)
    data = b"".join(out)
    return data + bytes(-len(data) % alignment)


def _key_records(first: Shard) -> list[bytes]:
    """The bytes of each key and its value, without the keys of splitting."""
    header = first.header
    # Before a value stand its type and its key with a length (GGUF specification).
    starts = {key: at - 4 - len(key.encode()) - 8 for key, at in header.value_offsets.items()}
    ends = [*sorted(starts.values())[1:], header.tensors_offset_bytes]
    spans = dict(zip(sorted(starts, key=starts.__getitem__), ends, strict=True))
    with first.path.open("rb") as file:
        return [
            os.pread(file.fileno(), spans[key] - starts[key], starts[key])
            for key in header.metadata
            if key not in _KEYS
        ]
