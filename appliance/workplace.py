"""A place to make a model in: a directory beside the store's files, and what must not vanish.

Rules:
 * large files are made without the store's lock, so that others can write meanwhile;
 * what is needed of the store is held by a second name (a hard link), so that its removal under
   way does not matter; it is put back, if need be, under the lock;
 * the directory is locked while its maker lives; what a crash left is removed by the next writer.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from appliance.errors import store_io
from appliance.layout import Paths
from bundler.format import fsio
from bundler.format.digest import Digest

_PREFIX = "work-"
_BLOB_MODE = 0o444


class Workplace:
    """Made by `workplace`, good until its block ends."""

    def __init__(self, paths: Paths, directory: Path) -> None:
        self.paths = paths
        self.directory = directory
        self._made: dict[Digest, Path] = {}

    def hold(self, digest: Digest, name: str = "") -> Path:
        """Keep a blob for as long as this lasts; where hard links cannot be made, only point to it.

        Args:
            digest: which one.
            name: the file name it should have here, where a reader looks at names.

        Returns:
            A path at which it can be read.

        Raises:
            FileNotFoundError: there is no such blob.
        """
        blob = self.paths.blob(digest).resolve(strict=True)
        held = self.directory / (name or f"sha256-{digest.hex}")
        try:
            os.link(blob, held)
        except FileExistsError:
            pass
        except FileNotFoundError:
            raise
        except OSError:  # no hard links here
            held.symlink_to(blob)
        self._made.setdefault(digest, held)
        return held

    def keep(self, file: Path, digest: Digest) -> None:
        """A file made here is to become a blob.

        Raises:
            StoreAccessError: it cannot be flushed.
            NoSpaceError: there was no room for it.
        """
        with store_io(f"flush {file.name}"):
            descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.fchmod(descriptor, _BLOB_MODE)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        self._made[digest] = file

    def path(self, digest: Digest) -> Path:
        """Where something held or made here can be read."""
        return self._made[digest]

    def install(self, digest: Digest) -> bool:
        """Let it be in the store; the caller holds the lock.

        Returns:
            Whether it was not there before.

        Raises:
            StoreAccessError: it cannot be put there.
            NoSpaceError: there is no room for its name.
        """
        blob = self.paths.blob(digest)
        with store_io(f"commit blob {digest.short()}"):
            if blob.exists():
                return False
            try:
                os.link(self._made[digest], blob)
            except FileExistsError:
                return False
            except PermissionError:  # no hard links here: it was made on the same file system
                self._made[digest].replace(blob)
            fsio.fsync_dir(self.paths.blobs)
        return True


@contextmanager
def workplace(paths: Paths) -> Iterator[Workplace]:
    """A fresh directory, gone when the block ends.

    Raises:
        StoreAccessError: it cannot be made.
        NoSpaceError: there is no room even for it.
    """
    with store_io("make a place to work"):
        directory, descriptor = _begin(paths)
    try:
        yield Workplace(paths, directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(descriptor)


def _begin(paths: Paths) -> tuple[Path, int]:
    while True:
        directory = paths.uploads / f"{_PREFIX}{secrets.token_hex(8)}"
        directory.mkdir(mode=0o700)
        try:
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # somebody tidied up between the two lines
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if directory.is_dir():
            return directory, descriptor
        os.close(descriptor)


def tidy_workplaces(paths: Paths) -> None:
    """Remove what crashes left; a workplace in use holds a lock."""
    for directory in paths.uploads.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            descriptor = os.open(
                directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            )
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory, ignore_errors=True)
            finally:
                os.close(descriptor)
