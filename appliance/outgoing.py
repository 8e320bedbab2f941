"""Files of installed models on their way out: each is hashed while it is copied.

Rules:
 * what is copied has the digest the store calls it by, or it does not appear on the other side;
 * a file appears by rename or link, whole and flushed, and never in the place of another;
 * a file that is there already counts only after its bytes were hashed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from appliance.errors import (
    BlobMismatchError,
    NoSpaceError,
    RequestError,
    StoreCorruptError,
    store_io,
)
from appliance.store import Store
from appliance.uploads import UploadLimits
from bundler.format import fsio
from bundler.format.digest import Descriptor, Digest
from hwprobe.quantity import Bytes

Advance = Callable[[int], None]
"""Called with the number of bytes just done."""

_PIECE_BYTES = 1 << 20
_UNLIMITED = UploadLimits(max_bytes=0, reserve_bytes=0)
_ROT = "the file has changed on the disk: see satchel scrub"


def pieces(part: Descriptor, store: Store, advance: Advance) -> Iterator[bytes]:
    """The bytes of a blob; the last step fails if they were not the ones it is called by.

    Raises:
        StoreAccessError: it cannot be read.
        StoreCorruptError: it has another digest or another size.
    """
    hasher, done = hashlib.sha256(), 0
    with (
        store_io(f"read blob {part.digest.short()}"),
        store.paths.blob(part.digest).open("rb", buffering=0) as file,
    ):
        while piece := file.read(_PIECE_BYTES):
            hasher.update(piece)
            done += len(piece)
            yield piece
            advance(len(piece))
    found = Digest(hasher.hexdigest())
    if found != part.digest:
        raise StoreCorruptError(
            f"blob {part.digest.short()}: digest mismatch, expected {part.digest}, found {found}",
            hint=_ROT,
        )
    if done != part.size_bytes:
        raise StoreCorruptError(
            f"blob {part.digest.short()}: expected {part.size_bytes} bytes, found {done}",
            hint=_ROT,
        )


def into_store(part: Descriptor, store: Store, target: Store, advance: Advance) -> None:
    """Copy a blob into another store of the same layout, unless one of its size is there.

    Raises:
        StoreError: it is not what its name says, or cannot be read or written.
        NoSpaceError: the other file system is full.
    """
    if target.has_blob(part):
        advance(part.size_bytes)
        return
    try:
        with target.receiving(part.digest, _UNLIMITED) as upload:
            upload.reserve(part.size_bytes)
            for piece in pieces(part, store, advance):
                upload.write(piece)
    except BlobMismatchError as error:
        raise StoreCorruptError(str(error), hint=_ROT) from error


def stage(data: Iterable[bytes], path: Path) -> Path:
    """Write a file beside its place, flushed; an earlier attempt's remains are replaced.

    Returns:
        Where it lies, for `reveal`.

    Raises:
        NoSpaceError: the file system is full, or takes no file as large.
        MediumError: it cannot be written.
    """
    staged = path.with_name(f".{path.name}.part")
    try:
        with contextlib.suppress(FileNotFoundError):
            staged.unlink()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(staged, flags, 0o644)
        try:
            for piece in data:
                fsio.write_all(descriptor, piece)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        staged.unlink(missing_ok=True)
        fsio.raise_io(error, path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    return staged


def reveal(staged: Path, path: Path) -> None:
    """Let a staged file appear in its place, which must be free.

    Raises:
        RequestError: somebody has put a file there.
        MediumError: it cannot be put there.
    """
    try:
        try:
            os.link(staged, path, follow_symlinks=False)
        except FileExistsError:
            staged.unlink(missing_ok=True)
            raise taken(path) from None
        except OSError:  # no links on FAT and exFAT
            if path.exists():
                staged.unlink(missing_ok=True)
                raise taken(path) from None
            staged.replace(path)
        staged.unlink(missing_ok=True)
    except OSError as error:
        fsio.raise_io(error, path)
    fsio.fsync_dir(path.parent)


def taken(path: Path) -> RequestError:
    """The refusal to write over a file."""
    return RequestError(
        f"{path}: is there already, and nothing is written over",
        hint="name another directory with --out, or remove the file",
    )


def check_room(directory: Path, size_bytes: int) -> None:
    """Refuse what does not fit, before the first byte is copied.

    Raises:
        NoSpaceError: there is too little room.
        MediumError: nobody can say.
    """
    try:
        status = os.statvfs(directory)
    except OSError as error:
        fsio.raise_io(error, directory)
    free_bytes = status.f_bavail * status.f_frsize
    if size_bytes > free_bytes:
        raise NoSpaceError(
            f"{directory}: expected {Bytes(size_bytes)} free, found {Bytes(free_bytes)}",
            hint="take a larger medium, or export fewer models at a time",
        )
