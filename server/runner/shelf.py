"""Computed prompts in files: a folder that the runners of a server, and their successors, share.

Rules:
 * a file is written under a name of its own and appears by rename; it is not flushed to the disk
   first, because its digest finds out what a lost write leaves;
 * a file of this binding that cannot be believed (cut short, changed, of another binding than its
   name says) is removed and never restored; those of other bindings are left alone;
 * all files together stay within a limit; those that were not used for longest give way;
 * a full, missing or broken disk is no error: nothing is kept then;
 * only names that `server.runner.statefile` gives are ever removed, and only regular files opened.

Files have mode 0600 in a folder of 0700: they hold prompts.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from server.runner import statefile
from server.runner.statefile import HEAD_BYTES, BadStateError, Head
from server.runner.tidying import files, locked, make_room, unlink

Bytes = npt.NDArray[np.uint8]

READ_BYTES = 64 << 20
"""Of one read. Why: well below the most that Linux reads at once, 2 GiB."""

MOST_FILES = 1024
"""So many of the newest files are known; older ones are as if they were not there."""

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Entry:
    """A file that may be restored."""

    name: str
    scope: str
    tokens: tuple[int, ...]


class Shelf:
    """The files of one binding, for one runner."""

    def __init__(self, folder: Path, *, binding: bytes, limit_bytes: int) -> None:
        """Nothing is touched yet.

        Args:
            folder: of all bindings.
            binding: 32 bytes that stand for what a state must have been computed with.
            limit_bytes: most that the files of all bindings may take together.
        """
        self._folder = folder
        self._binding = binding
        self._limit = limit_bytes

    def entries(self) -> tuple[Entry, ...]:
        """What may be restored, the longest unused first."""
        prefix = statefile.prefix_of(self._binding)
        own = sorted(
            (one.used_s, one.name) for one in files(self._folder) if one.name.startswith(prefix)
        )
        found = (self._look(name) for _used_s, name in own[-MOST_FILES:])
        return tuple(entry for entry in found if entry is not None)

    def read(self, entry: Entry) -> Bytes | None:
        """The state of a file, every byte as it was written; a file that is not so is removed."""
        try:
            with self._opened(entry.name) as (descriptor, head):
                data = _read(descriptor, head)
                with contextlib.suppress(OSError):
                    os.utime(descriptor)
                return np.frombuffer(data, np.uint8, offset=head.state_at)
        except BadStateError:
            self.remove(entry)
        except (OSError, MemoryError):
            pass
        return None

    def write(
        self,
        scope: str,
        tokens: tuple[int, ...],
        size_bytes: int,
        fill: Callable[[Bytes], bool],
        *,
        used_s: float,
    ) -> bool:
        """Keep a state; False if there is no room for it, or it could not be written.

        Args:
            scope: who may share it.
            tokens: what it holds.
            size_bytes: of the state.
            fill: writes it, and tells whether it could.
            used_s: when it was last used, in seconds since 1970; files used later stay.
        """
        name = statefile.name_of(self._binding, scope, tokens)
        try:
            head, label = statefile.begin(self._binding, scope, tokens, size_bytes)
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with locked(self._folder):
                if not make_room(
                    self._folder, self._limit - head.size_bytes, before_s=used_s, besides=name
                ):
                    return False
                return self._create(name, head, label, fill, used_s)
        except (BadStateError, OSError, ValueError):
            return False

    def touch(self, scope: str, tokens: tuple[int, ...], *, used_s: float) -> bool:
        """Note that a state was used; False if there is no file of it."""
        name = statefile.name_of(self._binding, scope, tokens)
        try:
            os.utime(self._folder / name, (used_s, used_s), follow_symlinks=False)
        except OSError:
            return False
        return True

    def remove(self, entry: Entry) -> None:
        """Forget a file."""
        unlink(self._folder / entry.name)

    def _look(self, name: str) -> Entry | None:
        try:
            with self._opened(name) as (descriptor, head):
                label = os.pread(descriptor, head.state_at - HEAD_BYTES, HEAD_BYTES)
                scope, tokens = statefile.parse_label(head, label)
        except BadStateError:
            unlink(self._folder / name)
        except OSError:
            pass
        else:
            if statefile.name_of(self._binding, scope, tokens) == name:
                return Entry(name, scope, tokens)
            unlink(self._folder / name)
        return None

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[tuple[int, Head]]:
        descriptor = os.open(self._folder / name, _READ)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise BadStateError("it is no regular file")
            data = os.pread(descriptor, HEAD_BYTES, 0)
            head = statefile.parse_head(data, binding=self._binding, size_bytes=status.st_size)
            yield descriptor, head
        finally:
            os.close(descriptor)

    def _create(
        self, name: str, head: Head, label: bytes, fill: Callable[[Bytes], bool], used_s: float
    ) -> bool:
        partial = self._folder / statefile.partial_of(name)
        unlink(partial)
        descriptor = os.open(partial, _CREATE, 0o600)
        try:
            # All room is taken first: a full disk is an error here, and a signal in a mapping.
            os.posix_fallocate(descriptor, 0, head.size_bytes)
            if not _compose(descriptor, head, label, fill):
                return False
            os.utime(descriptor, (used_s, used_s))
            partial.rename(self._folder / name)
        finally:
            os.close(descriptor)
            unlink(partial)
        return True


def _compose(descriptor: int, head: Head, label: bytes, fill: Callable[[Bytes], bool]) -> bool:
    """Write head, label and state into a file that has room for them."""
    with mmap.mmap(descriptor, head.size_bytes) as mapping:
        mapping[: head.state_at] = head.pack() + label
        view = np.frombuffer(mapping, np.uint8, offset=head.state_at)
        done = fill(view)
        del view  # a mapping cannot be closed while somebody looks at it
        if done:
            with memoryview(mapping) as whole:
                digest = statefile.digest_of(whole)
            mapping[:HEAD_BYTES] = head.pack(digest)
        return done


def _read(descriptor: int, head: Head) -> bytearray:
    """All of a file.

    Raises:
        BadStateError: it is not what was written.
        OSError: as the system says it.
    """
    data, at = bytearray(head.size_bytes), 0
    with memoryview(data) as view:
        while at < len(view):
            count = os.preadv(descriptor, [view[at : at + READ_BYTES]], at)
            if not count:
                raise BadStateError("it is cut short")
            at += count
        if statefile.digest_of(view) != head.digest:
            raise BadStateError("it was changed")
    return data
