"""Write files to a medium under their digests, and read them back from it.

Rules:
 * a file gets its name, its digest, only when all its bytes are on the medium;
 * what was written counts when it was read back from the medium itself, not from the cache.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bundler.errors import PackError
from bundler.format.digest import Digest
from bundler.format.errors import DamagedError
from bundler.format.fsio import drop_cache, open_regular, raise_io, write_all
from bundler.format.manifest import BlobRef
from bundler.progress import Advance

_SYNC_BYTES: Final = 64 << 20
"""Flushed this often, so that progress is what the medium took, not what the cache did."""
_READ_BYTES: Final = 4 << 20


class Sink:
    """The directory ``blobs/sha256`` of a bundle being written; one for each volume of it.

    Small files go on the first volume and are copied to the others in the end; segments fill one
    volume after the other.

    Args:
        directory: of the first volume.
        volume_bytes: most bytes of segments on one volume; 0 for one volume without an end.
        following: makes the directory of a further volume, by its number.
    """

    def __init__(
        self,
        directory: Path,
        *,
        volume_bytes: int = 0,
        following: Callable[[int], Path] | None = None,
    ) -> None:
        self.directories = [directory]
        self.written: dict[Digest, int] = {}
        self.small: set[Digest] = set()
        self._volumes: dict[Digest, int] = {}
        self._volume_bytes = volume_bytes
        self._following = following
        self._used_bytes = 0
        self._temporary = 0

    @property
    def directory(self) -> Path:
        """The directory of the first volume."""
        return self.directories[0]

    def volume_of(self, digest: Digest) -> int:
        """On which volume a segment was written, from 1."""
        return self._volumes[digest]

    def path_of(self, digest: Digest) -> Path:
        """Where a file stands that was written."""
        return self.directories[self._volumes[digest] - 1] / digest.hex

    def room_for(self, first_bytes: int, most_bytes: int) -> int:
        """How long the next segment may become; a volume that is full is left for the next one.

        Args:
            first_bytes: what it begins with.
            most_bytes: more than that is never wanted.

        Raises:
            PackError: a volume is smaller than what it begins with.
        """
        if not self._volume_bytes:
            return most_bytes
        if first_bytes > self._volume_bytes:
            raise PackError(
                f"volume-size: expected room for a chunk of {first_bytes} bytes, "
                f"found {self._volume_bytes}"
            )
        if self._used_bytes + first_bytes > self._volume_bytes:
            assert self._following is not None
            self.directories.append(self._following(len(self.directories) + 1))
            self._used_bytes = 0
        return min(most_bytes, self._volume_bytes - self._used_bytes)

    def took(self, digest: Digest, size_bytes: int) -> None:
        """A file was written, under this name, on the volume being filled."""
        self.written[digest] = size_bytes
        self._volumes[digest] = len(self.directories)
        self._used_bytes += size_bytes

    def put(self, data: bytes) -> BlobRef:
        """Write a small file; the same bytes are written once.

        Raises:
            NoSpaceError: the medium is full.
            MediumError: it cannot be written.
        """
        digest = Digest.of(data)
        if digest not in self.written:
            with self.file(self.directory) as file:
                file.write(data)
                file.close(digest)
        self.small.add(digest)
        return BlobRef(digest=digest, size_bytes=len(data))

    @contextmanager
    def file(self, directory: Path | None = None) -> Iterator[SinkFile]:
        """A file that is named when it is closed, and removed when the block fails.

        Args:
            directory: where; else on the volume being filled.
        """
        self._temporary += 1
        path = (directory or self.directories[-1]) / f"part-{self._temporary}"
        file = SinkFile(path, self)
        try:
            yield file
        finally:
            file.discard()


class SinkFile:
    """One file being written."""

    def __init__(self, path: Path, sink: Sink) -> None:
        self._path = path
        self._sink = sink
        self._unsynced = 0
        self.size_bytes = 0
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(path, flags, 0o644)
        except OSError as error:
            raise_io(error, path)

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes.

        Raises:
            NoSpaceError: the medium is full.
            MediumError: it cannot be written.
        """
        try:
            write_all(self._fd, data)
            self.size_bytes += len(data)
            self._unsynced += len(data)
            if self._unsynced >= _SYNC_BYTES:
                os.fdatasync(self._fd)
                self._unsynced = 0
        except OSError as error:
            raise_io(error, self._path)

    def close(self, digest: Digest) -> None:
        """Flush the file and give it its name.

        Raises:
            NoSpaceError: the medium is full.
            MediumError: it cannot be written.
        """
        try:
            os.fsync(self._fd)
            self._close()
            if digest in self._sink.written:
                self._path.unlink()  # the same bytes are written once
                return
            self._path.rename(self._path.with_name(digest.hex))
        except OSError as error:
            raise_io(error, self._path)
        self._sink.took(digest, self.size_bytes)

    def discard(self) -> None:
        """Remove the file unless it was closed."""
        self._close()
        self._path.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


def read_back(directory: Path, files: Mapping[Digest, int], advance: Advance) -> None:
    """Read every file from the medium, past the cache, and compare it with its name.

    Args:
        directory: where the files stand, named by digest.
        files: sizes in bytes.
        advance: told of bytes read.

    Raises:
        MissingBlobError: a file is gone.
        DamagedError: the medium does not give back what was written to it.
        MediumError: it cannot be read.
    """
    for digest, size_bytes in files.items():
        with open_regular(directory / digest.hex, size_bytes=size_bytes) as file:
            found = hashlib.sha256()
            try:
                for view in uncached(file.fileno(), _READ_BYTES):
                    found.update(view)
                    advance(len(view))
            except OSError as error:
                raise_io(error, directory / digest.hex)
        if found.hexdigest() != digest.hex:
            raise DamagedError(
                f"{digest}: the medium does not give back what was written to it",
                hint="the medium is faulty or counterfeit; use another one",
            )


def uncached(descriptor: int, block_bytes: int) -> Iterator[memoryview]:
    """A file's bytes from its medium, not from the page cache.

    Past the cache where the file system can do that, else after its pages were dropped.

    Args:
        descriptor: open for reading, at its beginning.
        block_bytes: most bytes at a time, a multiple of the page size.

    Yields:
        Views that are valid until the next step.

    Raises:
        OSError: as the system says it.
    """
    drop_cache(descriptor)
    offset = 0
    buffer = memoryview(mmap.mmap(-1, block_bytes))  # begins on a page, as direct reads need
    _set_direct(descriptor, direct=True)
    while True:
        try:
            got = os.preadv(descriptor, [buffer], offset)
        except OSError as error:
            # Some file systems take the flag and refuse the read.
            if error.errno != errno.EINVAL or not _set_direct(descriptor, direct=False):
                raise
            continue
        if not got:
            return
        yield buffer[:got]
        offset += got
        if got % mmap.PAGESIZE:
            _set_direct(descriptor, direct=False)  # the rest does not begin on a page


def _set_direct(descriptor: int, *, direct: bool) -> bool:
    """Switch direct reading on or off; returns whether that changed anything."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    wanted = flags | os.O_DIRECT if direct else flags & ~os.O_DIRECT
    if wanted == flags:
        return False
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, wanted)
    except OSError:
        return False
    return True
