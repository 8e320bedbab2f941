"""The ends of a pack: a place for the bundle, its commit, and its removal after a failure.

Rules:
 * the envelope is the commit marker: it is written last, after everything else was flushed and
   read back from the medium;
 * nothing on the medium is followed or removed that a pack did not put there.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Final

from bundler.errors import BundleExistsError, PackError
from bundler.format import envelope, fsio
from bundler.format.chain import file_name
from bundler.format.manifest import Manifest, encode_manifest
from bundler.format.statement import parse_manifest
from bundler.format.volume import ENVELOPE_NAME, ROOT_DIRECTORY
from bundler.medium import Sink, read_back
from bundler.oci import OCI_LAYOUT, write_oci
from bundler.plan import PackRequest
from bundler.progress import Progress

README_NAME: Final = "SATCHEL-README.txt"
_README: Final = b"""This medium carries signed model bundles for Satchel.

On the target machine:

    satchel verify  THIS-DIRECTORY      checks the signatures and every byte
    satchel import  THIS-DIRECTORY      the same, and installs the model that fits

Nothing on this medium is trusted because it is here: only signatures count, of keys that the
target's operator has added. This file itself is not signed.
"""
_LEFTOVERS: Final = frozenset({"blobs", "oci-layout", "index.json", ROOT_DIRECTORY})


def finish(request: PackRequest, manifest: Manifest, sink: Sink, progress: Progress) -> bytes:
    """Flush, read back, and only then sign and commit."""
    directory = request.directory
    payload = encode_manifest(manifest)
    data = envelope.sign(payload, request.keys)
    # What this release cannot read itself, it does not hand out.
    keys = {key.public_key.key_id: key.public_key for key in request.keys}
    if keys:
        envelope.verify(data, keys=keys, threshold=len(keys))
    else:
        parse_manifest(payload)
    _write_roots(request)
    fsio.atomic_write(directory / "oci-layout", OCI_LAYOUT)
    fsio.atomic_write(directory / "index.json", write_oci(manifest, sink))
    fsio.remove_leftovers(request.out / README_NAME)
    fsio.atomic_write(request.out / README_NAME, _README)
    for path in (sink.directory, sink.directory.parent, directory, directory.parent):
        fsio.fsync_dir(path)
    with progress.stage("reading back", sum(sink.written.values())) as advance:
        read_back(sink.directory, sink.written, advance)
    fsio.atomic_write(directory / ENVELOPE_NAME, data)
    _read_back_envelope(directory / ENVELOPE_NAME, data)
    return payload


def _write_roots(request: PackRequest) -> None:
    """The chain of trust roots, so that a site that is behind can follow it."""
    if not request.roots:
        return
    below = request.directory / ROOT_DIRECTORY
    make_directory(request.out, below)
    for number, data in enumerate(request.roots, start=1):
        fsio.atomic_write(below / file_name(number), data)
        _read_back_envelope(below / file_name(number), data)


def _read_back_envelope(path: Path, data: bytes) -> None:
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


def clear_unfinished(directory: Path) -> None:
    """Remove what an interrupted pack left, and nothing else.

    Raises:
        BundleExistsError: there is something else in the directory.
    """
    if not directory.exists():
        return
    found = {entry.name for entry in directory.iterdir()}
    foreign = {name for name in found - _LEFTOVERS if not name.endswith(".part")}
    if foreign:
        raise BundleExistsError(
            f"{directory}: expected leftovers of a pack, found {min(foreign)!r}",
            hint="look at it, and remove it by hand",
        )
    shutil.rmtree(directory, ignore_errors=True)


def remove(directory: Path, readme: Path) -> None:
    """Take away an unfinished bundle, and what stands around it unless others need it."""
    shutil.rmtree(directory, ignore_errors=True)
    with contextlib.suppress(OSError):
        directory.parent.rmdir()
        readme.unlink()
