"""Answer a repair request: the chunks a site lacks, each as a file under its signed digest.

The answer stands in a bundle directory with the envelope it belongs to, on a medium of its own or
beside what the site's own medium still holds. Every chunk is compared with its signed digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bundler.committing import README, README_NAME, make_directory, read_back_exactly
from bundler.copying import copy_roots
from bundler.errors import BundleExistsError, PackError
from bundler.format import envelope, fsio
from bundler.format.digest import Digest
from bundler.format.errors import BundleError, DamagedError, MissingBlobError
from bundler.format.index import ChunkIndex, ChunkRecord, check_index, parse_index
from bundler.format.manifest import Manifest
from bundler.format.repair import LackedFile, RepairRequest
from bundler.format.statement import parse_manifest
from bundler.format.volume import ENVELOPE_NAME, BundleDirectory, find_bundles
from bundler.medium import Sink, read_back
from bundler.progress import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What the answer holds."""

    directory: Path
    chunks: int
    size_bytes: int


def answer(
    request: RepairRequest, media: Sequence[Path], out: Path, progress: Progress
) -> Answered:
    """Write the chunks a site asks for.

    Args:
        request: what it asks for.
        media: where good copies of the bundle, or of its volumes, lie.
        out: root of the medium to write to, which exists.
        progress: where stages are shown.

    Raises:
        PackError: none of the media carries that bundle, or the request is of another one.
        BundleExistsError: another bundle has its place on the medium.
        BundleError: a chunk is damaged or missing in every copy; the medium cannot be written.
    """
    bundle = _find(request, media)
    data = bundle.read_envelope()
    manifest = parse_manifest(envelope.parse(data).payload)
    wanted = [(file, _index(bundle, manifest, file)) for file in request.files]
    target = out / "satchel" / f"{manifest.bundle.channel}-{manifest.bundle.seq:06d}"
    _check_place(target, data)
    make_directory(out, target / "blobs" / "sha256")
    sink = Sink(target / "blobs" / "sha256")
    size = sum(index.records[one].stored_len for file, index in wanted for one in file.places())
    with progress.stage("collecting chunks", size) as advance:
        for file, index in wanted:
            for place in file.places():
                advance(len(_put_chunk(bundle, index, index.records[place], sink)))
    chunks = len(sink.written)
    _put_small(bundle, manifest, sink)
    copy_roots(bundle, out, target)
    fsio.atomic_write(out / README_NAME, README)
    for path in (sink.directory, sink.directory.parent, target, target.parent):
        fsio.fsync_dir(path)
    with progress.stage("reading back", sum(sink.written.values())) as advance:
        read_back(sink.directory, sink.written, advance)
    fsio.atomic_write(target / ENVELOPE_NAME, data)
    read_back_exactly(target / ENVELOPE_NAME, data)
    return Answered(directory=target, chunks=chunks, size_bytes=sum(sink.written.values()))


def _find(request: RepairRequest, media: Sequence[Path]) -> BundleDirectory:
    """The bundle of that statement, wherever its volumes lie."""
    found = []
    for medium in media:
        for bundle in find_bundles(medium):
            with contextlib.suppress(BundleError):
                payload = envelope.parse(bundle.read_envelope()).payload
                if Digest.of(payload) == request.statement:
                    found.append(bundle.path)
    if not found:
        raise PackError(
            f"repair: expected bundle {request.channel} {request.seq} of statement "
            f"{request.statement.short()}, found others",
            hint="name the medium, or every volume, that a good copy of it is on",
        )
    return BundleDirectory(found[0], tuple(found[1:]))


def _index(bundle: BundleDirectory, manifest: Manifest, file: LackedFile) -> ChunkIndex:
    artifact = next((one for one in manifest.artifacts if one.digest == file.digest), None)
    if artifact is None or artifact.index.digest != file.index:
        raise PackError(f"repair: expected a file of the bundle, found {file.digest.short()}")
    size = artifact.index.size_bytes
    data = bundle.read_blob(artifact.index.digest, max_bytes=size, size_bytes=size)
    index = parse_index(data)
    check_index(index, artifact)
    if file.missing[-1].end > len(index.records):
        raise PackError(
            f"repair: expected chunks below {len(index.records)}, found {file.missing[-1].end - 1}"
        )
    return index


def _check_place(target: Path, data: bytes) -> None:
    """What stands there already must be the same bundle, or nothing."""
    if not target.exists():
        return
    with contextlib.suppress(MissingBlobError):
        there = BundleDirectory(target).read_envelope()
        if envelope.parse(there).payload == envelope.parse(data).payload:
            return
    raise BundleExistsError(
        f"{target}: expected nothing there, or the bundle asked for, found another",
        hint="take another medium",
    )


def _put_chunk(
    bundle: BundleDirectory, index: ChunkIndex, record: ChunkRecord, sink: Sink
) -> bytes:
    """Write one chunk from the first copy that has it whole."""
    if not record.stored_len:
        return b""
    entry = index.segments[record.segment]
    digest = Digest.from_raw(record.stored_digest)
    for file in bundle.open_copies(entry.digest, at_most_bytes=entry.size_bytes):
        with file, contextlib.suppress(OSError):
            stored = os.pread(file.fileno(), record.stored_len, record.seg_off)
            if hashlib.sha256(stored).digest() == record.stored_digest:
                sink.put(stored)
                return stored
    raise DamagedError(
        f"chunk at {record.plain_off}: expected bytes of digest {digest.short()}, found none here",
        hint="this copy is damaged or incomplete, too; name every volume, or another copy",
    )


def _put_small(bundle: BundleDirectory, manifest: Manifest, sink: Sink) -> None:
    """What an import reads before the chunks."""
    small = [(one.digest, one.size_bytes) for one in manifest.blobs]
    for artifact in manifest.artifacts:
        small.append((artifact.index.digest, artifact.index.size_bytes))
        if artifact.parity is not None:
            small.append((artifact.parity.index.digest, artifact.parity.index.size_bytes))
    for digest, size_bytes in small:
        sink.put(bundle.read_blob(digest, max_bytes=size_bytes, size_bytes=size_bytes))
