"""The ends of a pack: a place for the bundle, its commit, and its removal after a failure.

Rules:
 * the envelope is the commit marker: it is written last, after everything else was flushed and
   read back from the medium;
 * nothing on the medium is followed or removed that a pack did not put there.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bundler.errors import BundleExistsError, PackError
from bundler.format import envelope, fsio
from bundler.format.chain import file_name
from bundler.format.digest import Digest
from bundler.format.manifest import Manifest, encode_manifest
from bundler.format.statement import parse_manifest
from bundler.format.strict import encode_json
from bundler.format.volume import ENVELOPE_NAME, ROOT_DIRECTORY
from bundler.medium import Sink, read_back
from bundler.oci import OCI_LAYOUT, write_oci
from bundler.plan import PackRequest
from bundler.progress import Progress
from bundler.volumes import LABEL

README_NAME: Final = "SATCHEL-README.txt"
README: Final = b"""This medium carries signed model bundles for Satchel.

On the target machine:

    satchel verify  THIS-DIRECTORY      checks the signatures and every byte
    satchel import  THIS-DIRECTORY      the same, and installs the model that fits

Nothing on this medium is trusted because it is here: only signatures count, of keys that the
target's operator has added. This file itself is not signed.
"""
_HINT_NAME: Final = "volume.json"
_LEFTOVERS: Final = frozenset({"blobs", "oci-layout", "index.json", ROOT_DIRECTORY, _HINT_NAME})


def finish(request: PackRequest, manifest: Manifest, sink: Sink, progress: Progress) -> bytes:
    """Flush, read back, and only then sign and commit."""
    payload = encode_manifest(manifest)
    data = envelope.sign(payload, request.keys)
    # What this release cannot read itself, it does not hand out.
    keys = {key.public_key.key_id: key.public_key for key in request.keys}
    if keys:
        envelope.verify(data, keys=keys, threshold=len(keys))
    else:
        parse_manifest(payload)
    index = write_oci(manifest, sink)
    volumes = tuple(
        _Volume(request=request, number=number, count=len(sink.directories))
        for number in range(1, len(sink.directories) + 1)
    )
    for volume in volumes:
        volume.write(sink, index)
    with progress.stage("reading back", sum(sink.written.values())) as advance:
        for volume in volumes:
            read_back(volume.blobs, volume.files(sink), advance)
    for volume in volumes:
        fsio.atomic_write(volume.directory / ENVELOPE_NAME, data)
        read_back_exactly(volume.directory / ENVELOPE_NAME, data)
    return payload


@dataclass(frozen=True, slots=True, kw_only=True)
class _Volume:
    """One volume of a bundle that is being finished; the whole bundle if there is one only."""

    request: PackRequest
    number: int
    count: int

    @property
    def directory(self) -> Path:
        return self.request.volume_directory(self.number)

    @property
    def blobs(self) -> Path:
        return self.directory / "blobs" / "sha256"

    def files(self, sink: Sink) -> dict[Digest, int]:
        """What stands on this volume: its own segments, and every small file."""
        return {
            digest: size_bytes
            for digest, size_bytes in sink.written.items()
            if digest in sink.small or sink.volume_of(digest) == self.number
        }

    def write(self, sink: Sink, index: bytes) -> None:
        """Write what stands on every volume, and flush it."""
        if self.number > 1:
            for digest in sorted(sink.small):
                size_bytes = sink.written[digest]
                data = fsio.read_bounded(sink.directory / digest.hex, max_bytes=size_bytes)
                fsio.atomic_write(self.blobs / digest.hex, data)
        self._write_roots()
        fsio.atomic_write(self.directory / "oci-layout", OCI_LAYOUT)
        fsio.atomic_write(self.directory / "index.json", index)
        if self.request.volume_bytes:
            hint = {"label": LABEL.format(self.number), "of": self.count, "volume": self.number}
            fsio.atomic_write(self.directory / _HINT_NAME, encode_json(hint))
        readme = self.request.volume_root(self.number) / README_NAME
        fsio.remove_leftovers(readme)
        fsio.atomic_write(readme, README)
        for path in (self.blobs, self.blobs.parent, self.directory, self.directory.parent):
            fsio.fsync_dir(path)

    def _write_roots(self) -> None:
        """The chain of trust roots, so that a site that is behind can follow it."""
        if not self.request.roots:
            return
        below = self.directory / ROOT_DIRECTORY
        make_directory(self.request.out, below)
        for number, data in enumerate(self.request.roots, start=1):
            fsio.atomic_write(below / file_name(number), data)
            read_back_exactly(below / file_name(number), data)


def read_back_exactly(path: Path, data: bytes) -> None:
    """Read a small file from the medium and compare it.

    Raises:
        PackError: the medium gives back something else.
        BundleError: it cannot be read, or is gone.
    """
    with fsio.open_regular(path, size_bytes=len(data)) as file:
        fsio.drop_cache(file.fileno())
        if file.read() != data:
            raise PackError(
                f"{path}: the medium does not give back what was written to it",
                hint="the medium is faulty or counterfeit; use another one",
            )


def make_directory(root: Path, path: Path) -> None:
    """Make a directory below the medium's root.

    Raises:
        PackError: a directory on the way is a link: it may lead anywhere on this computer.
        MediumError: it cannot be made.
    """
    below = path.relative_to(root)
    for part in [*below.parents, below]:
        if root / part != root and (root / part).is_symlink():
            raise PackError(f"{root / part}: expected a directory, found a link")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fsio.raise_io(error, path)


def clear_unfinished(request: PackRequest) -> None:
    """Remove what an interrupted pack left, and nothing else.

    Raises:
        BundleExistsError: there is something else in the directory.
    """
    for directory in _directories(request):
        found = {entry.name for entry in directory.iterdir()}
        foreign = {name for name in found - _LEFTOVERS if not name.endswith(".part")}
        if foreign:
            raise BundleExistsError(
                f"{directory}: expected leftovers of a pack, found {min(foreign)!r}",
                hint="look at it, and remove it by hand",
            )
        shutil.rmtree(directory, ignore_errors=True)


def remove(request: PackRequest) -> None:
    """Take away an unfinished bundle, and what stands around it unless others need it."""
    for number, directory in enumerate(_directories(request), start=1):
        root = request.volume_root(number)
        shutil.rmtree(directory, ignore_errors=True)
        with contextlib.suppress(OSError):
            directory.parent.rmdir()
            (root / README_NAME).unlink(missing_ok=True)
            if root != request.out:
                root.rmdir()


def _directories(request: PackRequest) -> list[Path]:
    """The bundle's directories that are there, volume after volume."""
    if not request.volume_bytes:
        return [request.directory] if request.directory.exists() else []
    numbers = itertools.takewhile(
        lambda number: request.volume_directory(number).exists(), itertools.count(1)
    )
    return [request.volume_directory(number) for number in numbers]
