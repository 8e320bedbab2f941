"""Forge delta bundles: chunks that are copied from, or mixed with, files the site holds.

Nothing here uses the packer. Chunks are `forge.SMALL_CHUNK_BYTES` long, wherever tensors start.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from bundler.format.chunks import ChunkEncoder
from bundler.format.digest import Digest
from bundler.format.index import (
    ChunkRecord,
    Codec,
    Filter,
    SegmentEntry,
    encode_index,
    parse_index,
)
from bundler.format.manifest import BlobRef, Segment, sum_totals
from tests.fakes.forge import Forged, forge


def delta_of(new: bytes, *held: bytes, seq: int = 2, chunk_bytes: int = 512) -> Forged:
    """A delta that makes ``new`` out of files the site holds.

    Chunks that are in one of them at any multiple of the chunk's length are copied; others are
    mixed with the first file where that reaches as far, and stored whole otherwise.
    """
    full = forge({"F32": new}, seq=seq, chunk_bytes=chunk_bytes)
    (artifact,) = full.manifest.artifacts
    index = parse_index(full.files[artifact.index.digest.hex])
    segment = b""
    records = []
    for record in index.records:
        made, stored = _made(record, new, held, len(segment))
        records.append(made)
        segment += stored
    table = (SegmentEntry(digest=Digest.of(segment), size_bytes=len(segment)),) * bool(segment)
    data = encode_index(replace(index, segments=table, records=tuple(records)))
    files = dict(full.files)
    for gone in (artifact.index.digest, *(one.digest for one in artifact.segments)):
        files.pop(gone.hex, None)
    for content in (data, *((segment,) if segment else ())):
        files[Digest.of(content).hex] = content
    changed = replace(
        artifact,
        encoding="delta",
        index=BlobRef(digest=Digest.of(data), size_bytes=len(data)),
        segments=tuple(Segment(digest=one.digest, size_bytes=one.size_bytes) for one in table),
    )
    objects = tuple(BlobRef(digest=Digest.of(one), size_bytes=len(one)) for one in held)
    manifest = replace(
        full.manifest,
        bundle=replace(full.manifest.bundle, kind="delta"),
        requires=replace(full.manifest.requires, objects=objects),
        artifacts=(changed,),
        totals=sum_totals((changed,), full.manifest.blobs),
    )
    return replace(full, manifest=manifest, files=files)


def _made(
    record: ChunkRecord, new: bytes, held: Sequence[bytes], seg_off: int
) -> tuple[ChunkRecord, bytes]:
    plain = new[record.plain_off : record.plain_off + record.plain_len]
    for number, data in enumerate(held):
        at = data.find(plain)
        if at >= 0:
            copied = replace(
                record,
                codec=Codec.COPY,
                stored_len=0,
                seg_off=0,
                segment=0,
                source=number,
                source_off=at,
                stored_digest=bytes(32),
            )
            return copied, b""
    local = held[0][record.plain_off : record.plain_off + record.plain_len]
    if len(local) == len(plain):
        stored = bytes(ChunkEncoder().encode(plain, Codec.XOR, Filter.PLANES_4, local))
        mixed = replace(
            record,
            codec=Codec.XOR,
            filter=Filter.PLANES_4,
            stored_len=len(stored),
            segment=0,
            seg_off=seg_off,
            source_off=record.plain_off,
            stored_digest=hashlib.sha256(stored).digest(),
        )
        return mixed, stored
    return replace(record, segment=0, seg_off=seg_off), plain
