"""Copy a bundle, or one volume of it, to another medium, and read it back from there.

The envelope goes last, as when it was packed: a copy that was interrupted is an unfinished bundle.
Nothing is trusted: every file is compared with its digest on the way and again on the medium.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bundler.committing import README, README_NAME, make_directory, read_back_exactly
from bundler.errors import BundleExistsError
from bundler.format import envelope, fsio
from bundler.format.digest import Digest
from bundler.format.errors import DamagedError, MissingBlobError, NoSpaceError
from bundler.format.limits import MAX_ROOT_VERSIONS
from bundler.format.manifest import Manifest, volume_count
from bundler.format.statement import parse_manifest
from bundler.format.volume import ENVELOPE_NAME, ROOT_DIRECTORY, ROOT_NAME, BundleDirectory
from bundler.medium import Sink, read_back
from bundler.oci import OCI_LAYOUT, write_oci
from bundler.progress import Progress
from hwprobe.quantity import Bytes

_COPY_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """What was copied.

    Attributes:
        directory: where the copy is.
        manifest: what the bundle says.
        volumes: which volumes of it the copy holds whole.
        size_bytes: of the files that were copied and read back.
    """

    directory: Path
    manifest: Manifest
    volumes: tuple[int, ...]
    size_bytes: int


def copy_bundle(bundle: BundleDirectory, out: Path, progress: Progress) -> Copied:
    """Copy what stands in a bundle's directory to the root of a medium.

    Args:
        bundle: a bundle, or one volume of it.
        out: root of the medium, which exists.
        progress: where stages are shown.

    Raises:
        BundleExistsError: another bundle stands there.
        NoSpaceError: the medium is too full.
        BundleError: a file is damaged, here or on the medium; nothing unfinished is left.
    """
    data = bundle.read_envelope()
    manifest = parse_manifest(envelope.parse(data).payload)
    info = manifest.bundle
    target = out / "satchel" / f"{info.channel}-{info.seq:06d}"
    if target.exists():
        raise BundleExistsError(
            f"{target}: expected nothing there, found a directory",
            hint="look at it, and remove it by hand",
        )
    files = _present(bundle, manifest)
    _check_room(out, sum(files.values()))
    blobs = target / "blobs" / "sha256"
    try:
        make_directory(out, blobs)
        sink = Sink(blobs)
        with progress.stage("copying", sum(files.values())) as advance:
            for digest in files:
                _copy_file(bundle, digest, sink)
                advance(files[digest])
        fsio.atomic_write(target / "oci-layout", OCI_LAYOUT)
        fsio.atomic_write(target / "index.json", write_oci(manifest, sink))
        copy_roots(bundle, out, target)
        fsio.atomic_write(out / README_NAME, README)
        for path in (blobs, blobs.parent, target, target.parent):
            fsio.fsync_dir(path)
        with progress.stage("reading back", sum(sink.written.values())) as advance:
            read_back(blobs, sink.written, advance)
        fsio.atomic_write(target / ENVELOPE_NAME, data)
        read_back_exactly(target / ENVELOPE_NAME, data)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        with contextlib.suppress(OSError):
            target.parent.rmdir()
        raise
    return Copied(
        directory=target,
        manifest=manifest,
        volumes=_whole(manifest, files),
        size_bytes=sum(files.values()),
    )


def copy_roots(bundle: BundleDirectory, out: Path, target: Path) -> None:
    """The chain of trust roots that travels along, as far as it goes."""
    for number in range(1, MAX_ROOT_VERSIONS + 1):
        data = bundle.read_root(number)
        if data is None:
            return
        make_directory(out, target / ROOT_DIRECTORY)
        path = target / ROOT_DIRECTORY / ROOT_NAME.format(number)
        fsio.atomic_write(path, data)
        read_back_exactly(path, data)


def _present(bundle: BundleDirectory, manifest: Manifest) -> dict[Digest, int]:
    """Files of the statement that are here, with their sizes; small ones must be."""
    files = {one.digest: one.size_bytes for one in manifest.blobs}
    segments: dict[Digest, int] = {}
    for artifact in manifest.artifacts:
        files[artifact.index.digest] = artifact.index.size_bytes
        segments |= {one.digest: one.size_bytes for one in artifact.segments}
        if artifact.parity is not None:
            files[artifact.parity.index.digest] = artifact.parity.index.size_bytes
            segments |= {one.digest: one.size_bytes for one in artifact.parity.segments}
    for digest, size_bytes in segments.items():
        with contextlib.suppress(MissingBlobError):
            bundle.open_segment(digest, size_bytes=size_bytes).close()
            files[digest] = size_bytes
    return files


def _whole(manifest: Manifest, files: dict[Digest, int]) -> tuple[int, ...]:
    segments = [
        segment
        for artifact in manifest.artifacts
        for segment in artifact.segments + (artifact.parity.segments if artifact.parity else ())
    ]
    lacking = {one.volume for one in segments if one.digest not in files}
    return tuple(number for number in range(1, volume_count(manifest) + 1) if number not in lacking)


def _check_room(out: Path, size_bytes: int) -> None:
    free_bytes = shutil.disk_usage(out).free
    if size_bytes > free_bytes:
        raise NoSpaceError(
            f"{out}: expected {Bytes(size_bytes)} free, found {Bytes(free_bytes)}",
            hint="take a larger medium, or pack with --volume-size",
        )


def _copy_file(bundle: BundleDirectory, digest: Digest, sink: Sink) -> None:
    found = hashlib.sha256()
    with bundle.open_blob(digest) as source, sink.file() as file:
        try:
            while data := source.read(_COPY_BYTES):
                found.update(data)
                file.write(data)
        except OSError as error:
            fsio.raise_io(error, bundle.path)
        if found.hexdigest() != digest.hex:
            raise DamagedError(
                f"{digest}: expected bytes of this digest, found others",
                hint="the source is damaged; import its parity with satchel, or pack it again",
            )
        file.close(digest)
