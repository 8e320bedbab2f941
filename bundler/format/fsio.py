"""Durable and careful file access: the only place that fsyncs, renames, or opens what may lie.

Rules:
 * a file becomes visible by rename, after its bytes are on the disk, and the directory is
   flushed after it;
 * a file of unknown origin is opened without following links and without blocking, must be a
   regular file, and is read up to a bound.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import stat
from pathlib import Path
from typing import Final, NoReturn

from bundler.format.errors import LayoutError, MediumError, MissingBlobError, NoSpaceError

_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TEMPORARY: Final = ".part"


def fsync_dir(path: Path) -> None:
    """Make the names in a directory durable.

    Raises:
        MediumError: the directory cannot be opened or flushed.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        # File systems without directory fsync (some FUSE ones) say EINVAL: nothing to be done.
        if error.errno != errno.EINVAL:
            raise_io(error, path)


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files of `atomic_write` to this path whose process was killed.

    Raises:
        MediumError: they cannot be removed.
    """
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[0-9]+{re.escape(_TEMPORARY)}")
    try:
        for entry in list(path.parent.iterdir()):
            if pattern.fullmatch(entry.name):
                entry.unlink(missing_ok=True)
    except OSError as error:
        raise_io(error, path)


def atomic_write(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Put a file in place whole: temporary file, fsync, rename, fsync of the directory.

    Args:
        path: where; an existing file is replaced.
        data: the whole content.
        mode: permission bits, not subject to the umask.

    Raises:
        NoSpaceError: the disk is full.
        MediumError: anything else went wrong; the old file is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}")
    try:
        # On a medium somebody may have put a link where the temporary file goes.
        temporary.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(temporary, flags, mode)
        try:
            write_all(fd, data)
            _set_mode(fd, mode)
            os.fsync(fd)
        finally:
            os.close(fd)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise_io(error, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)


def _set_mode(fd: int, mode: int) -> None:
    """FAT has no permission bits and says EPERM; the file is no less there."""
    try:
        os.fchmod(fd, mode)
    except PermissionError:
        return


def create_new(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Create a file that must not exist yet, durably, with these permission bits from the start.

    Raises:
        FileExistsError: it exists.
        NoSpaceError: the disk is full.
        MediumError: anything else went wrong.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, mode)
    except FileExistsError:
        raise
    except OSError as error:
        raise_io(error, path)
    try:
        write_all(fd, data)
        os.fsync(fd)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise_io(error, path)
    finally:
        os.close(fd)
    fsync_dir(path.parent)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write every byte; a short write is continued.

    Raises:
        OSError: as the system says it.
    """
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def open_regular(
    path: Path | str, *, dir_fd: int | None = None, size_bytes: int | None = None
) -> io.FileIO:
    """Open a file of unknown origin for reading.

    Args:
        path: the file; with ``dir_fd`` relative to that directory.
        dir_fd: an open directory.
        size_bytes: the size it must have.

    Raises:
        MissingBlobError: there is no such file.
        LayoutError: it is a link, a pipe, a device, a directory, or of another size.
        MediumError: it cannot be opened.
    """
    shown = Path(path).name
    try:
        fd = os.open(path, _READ, dir_fd=dir_fd)
    except FileNotFoundError as error:
        raise MissingBlobError(f"{shown}: expected a file, found nothing") from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENOTDIR):
            raise LayoutError(f"{shown}: expected a regular file, found another kind") from error
        raise_io(error, Path(path))
    try:
        status = os.fstat(fd)
        _check_regular(status, shown, size_bytes)
        return io.FileIO(fd, "rb")
    except BaseException:
        os.close(fd)
        raise


def _check_regular(status: os.stat_result, shown: str, size_bytes: int | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise LayoutError(f"{shown}: expected a regular file, found another kind")
    if size_bytes is not None and status.st_size != size_bytes:
        raise LayoutError(f"{shown}: expected {size_bytes} bytes, found {status.st_size}")


def open_directory(path: Path | str, *, dir_fd: int | None = None, follow: bool = False) -> int:
    """Open a directory and return its descriptor, which the caller closes.

    Args:
        path: the directory; with ``dir_fd`` relative to that directory.
        dir_fd: an open directory.
        follow: let the last component be a symbolic link: for what the operator typed only.

    Raises:
        MissingBlobError: there is no such directory.
        LayoutError: it is no directory, or a link.
        MediumError: it cannot be opened.
    """
    flags = _DIRECTORY & ~os.O_NOFOLLOW if follow else _DIRECTORY
    try:
        return os.open(path, flags, dir_fd=dir_fd)
    except FileNotFoundError as error:
        raise MissingBlobError(f"{Path(path).name}: expected a directory, found nothing") from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise LayoutError(
                f"{Path(path).name}: expected a directory, found another kind"
            ) from error
        raise_io(error, Path(path))


def read_bounded(path: Path | str, *, max_bytes: int, dir_fd: int | None = None) -> bytes:
    """Read a whole file of unknown origin, once, at most ``max_bytes`` of it.

    Raises:
        MissingBlobError: there is no such file.
        LayoutError: it is no regular file, or larger than ``max_bytes``.
        MediumError: it cannot be read.
    """
    with open_regular(path, dir_fd=dir_fd) as file:
        try:
            # One byte more than allowed tells a file that is too large, also one that grows.
            parts: list[bytes] = []
            left = max_bytes + 1
            while left > 0 and (part := file.read(min(left, 1 << 20))):
                parts.append(part)
                left -= len(part)
        except OSError as error:
            raise_io(error, Path(path))
    if left <= 0:
        raise LayoutError(f"{Path(path).name}: expected at most {max_bytes} bytes, found more")
    return b"".join(parts)


def drop_cache(fd: int) -> None:
    """Forget a file's cached pages, so that the next read comes from the medium."""
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def pass_over(fd: int, offset: int, size_bytes: int) -> None:
    """Leave no pages behind of what was read, or written and flushed.

    Who reads a file once would otherwise push out of memory what others use all the time. Pages
    that some process has mapped stay: those of a model that is being served.
    """
    with contextlib.suppress(OSError):  # a file system that knows no advice
        os.posix_fadvise(fd, offset, size_bytes, os.POSIX_FADV_DONTNEED)


def raise_io(error: OSError, path: Path) -> NoReturn:
    """Translate a system error into this package's words.

    Raises:
        NoSpaceError: the disk, the quota or the file system's largest file is reached.
        MediumError: anything else.
    """
    reason = (error.strerror or "unknown error").lower()
    if error.errno in _FULL:
        raise NoSpaceError(f"{path}: {reason}", hint="free some space and try again") from error
    raise MediumError(f"{path}: {reason}") from error
