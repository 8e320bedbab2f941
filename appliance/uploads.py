"""Blobs that clients bring: written as they arrive, named by their digest, part of nothing yet.

Rules:
 * every byte is hashed and written once, to a file beside the store's; it becomes a blob by
   rename, after its digest is known and its bytes are on the disk;
 * no lock is held: a blob that appears changes no model, and two uploads of one content write the
   same bytes;
 * room is taken before the first byte where the size is known, and the store's reserve stays free;
 * what broke off is removed at once, after a crash by the next upload or `Store.writing`;
 * a blob that no model uses stays for `grace_s` after it was last sent or asked for.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import BlobMismatchError, BlobTooLargeError, store_io
from appliance.layout import Paths
from appliance.room import check_room, take_room
from bundler.format import fsio
from bundler.format.digest import Digest

_BLOB_MODE = 0o444
_MEASURE_BYTES = 8 << 20
"""Where the size is not known, the room left is looked at once in so many bytes."""
_SUFFIX = ".part"


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadLimits:
    """What one upload may take.

    Attributes:
        max_bytes: largest blob; 0 means that only the room decides.
        reserve_bytes: free space that must be left.
    """

    max_bytes: int
    reserve_bytes: int


class Upload:
    """One blob on its way; made by `receiving`, good until its block ends."""

    def __init__(self, paths: Paths, digest: Digest, limits: UploadLimits, descriptor: int) -> None:
        self._paths = paths
        self._digest = digest
        self._limits = limits
        self._descriptor = descriptor
        self._hasher = hashlib.sha256()
        self._size_bytes = 0
        self._measured_bytes = 0

    def reserve(self, size_bytes: int) -> None:
        """Take the room for a blob of this size, so that a full disk shows before the first byte.

        Raises:
            BlobTooLargeError: it is over the limit.
            NoSpaceError: there is too little room.
            StoreAccessError: the store cannot be written.
        """
        self._check_size(size_bytes)
        check_room(self._paths, size_bytes, self._limits.reserve_bytes)
        with store_io("take room for an upload"):
            take_room(self._descriptor, size_bytes)
        self._measured_bytes = size_bytes

    def write(self, data: bytes) -> None:
        """Append bytes; raises as `reserve`."""
        self._check_size(self._size_bytes + len(data))
        if self._size_bytes + len(data) > self._measured_bytes:
            check_room(self._paths, len(data), self._limits.reserve_bytes)
            self._measured_bytes = self._size_bytes + len(data) + _MEASURE_BYTES
        self._hasher.update(data)
        with store_io("write an upload"):
            fsio.write_all(self._descriptor, data)
        self._size_bytes += len(data)

    def _check_size(self, size_bytes: int) -> None:
        most = self._limits.max_bytes
        if most and size_bytes > most:
            raise BlobTooLargeError(f"blob: expected at most {most} bytes, found {size_bytes}")

    def finish(self, staged: Path) -> None:
        """Check the digest and let the blob appear; called by `receiving`."""
        found = Digest(self._hasher.hexdigest())
        if found != self._digest:
            raise BlobMismatchError(f'digest mismatch, expected "{self._digest}", got "{found}"')
        with store_io("commit an upload"):
            os.ftruncate(self._descriptor, self._size_bytes)
            os.fchmod(self._descriptor, _BLOB_MODE)
            os.fsync(self._descriptor)
            staged.replace(self._paths.blob(self._digest))
            fsio.fsync_dir(self._paths.blobs)


@contextmanager
def receiving(paths: Paths, digest: Digest, limits: UploadLimits) -> Iterator[Upload]:
    """Receive one blob; it is in the store when the block ends without an error.

    Args:
        paths: the store, whose directories exist.
        digest: what the client says it is.
        limits: what it may take.

    Raises:
        BlobMismatchError: the bytes have another digest.
        BlobTooLargeError: there are too many.
        NoSpaceError: there is too little room.
        StoreAccessError: the store cannot be written.
    """
    tidy(paths)
    staged, descriptor = _begin(paths, digest)
    try:
        upload = Upload(paths, digest, limits, descriptor)
        yield upload
        upload.finish(staged)
    finally:
        with suppress(OSError):
            staged.unlink(missing_ok=True)
        os.close(descriptor)


def _begin(paths: Paths, digest: Digest) -> tuple[Path, int]:
    """A new file and its descriptor, which holds the lock that tells the living from the dead."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with store_io("begin an upload"):
        while True:
            staged = paths.uploads / f"sha256-{digest.hex}.{secrets.token_hex(4)}{_SUFFIX}"
            descriptor = os.open(staged, flags, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:
                return staged, descriptor
            os.close(descriptor)  # somebody tidied up between the two lines


def tidy(paths: Paths) -> None:
    """Remove what crashes left of uploads; those that go on hold a lock on their file."""
    for path in paths.uploads.glob(f"*{_SUFFIX}"):
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(descriptor)


def renew(paths: Paths, digest: Digest) -> bool:
    """Whether the blob is here; if so its grace begins again."""
    path = paths.blob(digest)
    if not path.is_file():
        return False
    with suppress(OSError):  # a store that cannot be written keeps its blobs all the same
        os.utime(path, (time.time(), time.time()))
    return True
