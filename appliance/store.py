"""The store: verified files by content, and names that point to them.

Rules:
 * a blob becomes visible only by rename, after its bytes are on disk and its digest is known;
 * a name changes only by rename of one small file, after everything it needs is on disk;
 * whoever writes holds the lock, but for blobs that clients send (`appliance.uploads`), which are
   part of no model yet; readers need none, because nothing they see ever changes;
 * a file is removed only when every name left in the store could be read and none needs it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance import previous, waiting
from appliance.catalogue import Catalogue, StoreFault, Survey
from appliance.errors import AppError, ModelMissingError, StoreBusyError, store_io
from appliance.evidence import drop_evidence
from appliance.journal import Journal
from appliance.model import Origin, parse_image, parse_origin
from appliance.policyfile import load_policy
from appliance.uploads import Upload, UploadLimits, receiving, tidy
from appliance.workplace import tidy_workplaces
from bundler.format import fsio
from bundler.format.digest import Descriptor, Digest
from bundler.format.name import ModelName

__all__ = ["Store", "StoreFault", "StoreWriter", "Survey"]

_BLOB_MODE = 0o444
_FILE_MODE = 0o644
_DIRECTORY_MODE = 0o755
_LOCK_POLL_S = 0.05
_TEMPORARY = ".*.part"
"""How `fsio.atomic_write` calls a file that is not in place yet."""


class Store(Catalogue):
    """The models below one root, for reading and, under the lock, for writing."""

    @contextmanager
    def writing(self, *, wait_s: float = 0.0) -> Iterator[StoreWriter]:
        """Take the lock, or say who holds it; a store that does not exist yet is made.

        Args:
            wait_s: how long another writer is waited for.

        Raises:
            StoreBusyError: another process, or another thread of this one, is writing.
            StoreAccessError: the store cannot be written.
            NoSpaceError: there is no room even for its directories.
        """
        self.make_directories()
        with store_io(f"open the store {self.paths.root} for writing"):
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(self.paths.lock, flags, _FILE_MODE)
        try:
            _lock(descriptor, wait_s)
            try:
                writer = StoreWriter(self)
                writer.finish()
                yield writer
            finally:
                _sign(descriptor, "")
        finally:
            os.close(descriptor)

    def make_directories(self) -> None:
        """Make what an empty store has.

        Raises:
            StoreAccessError: the store cannot be written.
            NoSpaceError: there is no room even for its directories.
        """
        with store_io(f"open the store {self.paths.root} for writing"):
            for directory in self.paths.directories():
                _make_directory(directory)

    def receiving(
        self, digest: Digest, limits: UploadLimits
    ) -> contextlib.AbstractContextManager[Upload]:
        """Receive a blob without the lock; see `appliance.uploads.receiving`.

        Raises:
            StoreAccessError: the store cannot be written.
            NoSpaceError: there is no room even for its directories.
        """
        self.make_directories()
        return receiving(self.paths, digest, limits)

    def copy(self, source: ModelName, destination: ModelName) -> None:
        """Give a model one more name; raises as `resolve` and `writing`."""
        with self.writing() as writer:
            writer.copy(source, destination)
            journal = Journal(self.paths.journal)
            journal.record("copied", source=source.full(), destination=destination.full())

    def remove(self, name: ModelName) -> int:
        """Remove a name and the files nothing else uses; raises as `resolve` and `writing`.

        Returns:
            Bytes freed.
        """
        with self.writing() as writer:
            freed_bytes = writer.remove(name)
            journal = Journal(self.paths.journal)
            journal.record("removed", name=name.full(), freed_bytes=freed_bytes)
            return freed_bytes


class StoreWriter:
    """The right to write: made by `Store.writing`, good until its block ends."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._paths = store.paths
        self._former = store.paths.staging / "former"
        self._promised: frozenset[Digest] = frozenset()

    def finish(self) -> None:
        """Tidy up after a crash: temporary files, and a removal whose manifest was set aside.

        Raises:
            StoreAccessError: a file cannot be removed.
        """
        with store_io("remove temporary files"):
            for directory in self._paths.directories():
                for temporary in directory.glob(_TEMPORARY):
                    temporary.unlink(missing_ok=True)
            for temporary in self._paths.previous.rglob(_TEMPORARY):
                temporary.unlink(missing_ok=True)
        waiting.tidy(self._paths)
        tidy(self._paths)
        tidy_workplaces(self._paths)
        with store_io("read a manifest that was set aside"), contextlib.suppress(FileNotFoundError):
            self._retire(self._former.read_bytes())
        for name in previous.names_with_formers(self._paths):
            if not self._paths.reference(name).is_file():
                self.trim(name, 0)  # a removal that a crash cut short

    def put(self, data: bytes) -> Digest:
        """Store a small file and return its digest; one that is there already is kept.

        Raises:
            NoSpaceError: the file system is full.
            StoreAccessError: it cannot be written.
        """
        digest = Digest.of(data)
        path = self._paths.blob(digest)
        with store_io(f"write blob {digest.short()}"):
            # Compared, not trusted: the file may be older than this program, or rotten.
            if not path.is_file() or path.read_bytes() != data:
                fsio.atomic_write(path, data, mode=_BLOB_MODE)
        return digest

    def commit(self, staged: Path, digest: Digest) -> None:
        """Make a staged file visible as a blob.

        The caller has computed the digest from the very bytes it wrote; they are flushed here.

        Raises:
            NoSpaceError: the file system is full.
            StoreAccessError: it cannot be renamed.
        """
        with store_io(f"commit blob {digest.short()}"):
            descriptor = os.open(staged, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.fchmod(descriptor, _BLOB_MODE)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            staged.replace(self._paths.blob(digest))
            fsio.fsync_dir(self._paths.blobs)
            fsio.fsync_dir(self._paths.staging)

    def point(
        self, name: ModelName, manifest: bytes, *, origin: Origin | None = None, keep: int = 0
    ) -> int:
        """Let a name stand for this manifest from now on; everything it refers to is there.

        Args:
            name: taken in the store's spelling if it is there in another case.
            manifest: the manifest file; `appliance.model.encode_image` makes it.
            origin: where it came from; on disk before the name changes.
            keep: how many former models of the name stay for a rollback; with 0 this one goes,
                and those kept before stay.

        Returns:
            Bytes freed, because only former models of the name used them.

        Raises:
            NoSpaceError: the file system is full; the name stands for what it did.
            StoreAccessError: it cannot be written; likewise.
        """
        spelled = self.store.canonical(name)
        reference = self._paths.reference(spelled)
        former = self._peek(spelled)
        with store_io(f"write the manifest of {spelled.short()}"):
            if origin is not None:
                at = self._paths.provenance(Digest.of(manifest))
                fsio.atomic_write(at, origin.encode(), mode=_FILE_MODE)
            if former == manifest:
                return 0
            for parent in reversed(reference.relative_to(self._paths.manifests).parents):
                _make_directory(self._paths.manifests / parent)
            # Staged elsewhere: a temporary file beside the manifest would look like a tag.
            staged = self._paths.staging / "manifest"
            fsio.atomic_write(staged, manifest, mode=_FILE_MODE)
            if not keep:
                self._set_aside(former)
            elif former is not None:
                previous.keep(self._paths, spelled, former)
            staged.replace(reference)
            fsio.fsync_dir(reference.parent)
        return self.trim(spelled, keep) if keep else self._retire(former)

    def trim(self, name: ModelName, keep: int) -> int:
        """Drop the former models of a name beyond the latest ``keep``, and what only they used.

        Returns:
            Bytes freed.

        Raises:
            StoreAccessError: a file cannot be removed.
        """
        freed_bytes = 0
        now = self._peek(name)
        kept = previous.formers(self._paths, name, now=now)[:keep]
        for former in previous.formers(self._paths, name):
            if former not in kept:
                with store_io("set a previous version aside"):
                    self._set_aside(former.manifest)
                previous.forget(former, self._paths)
                freed_bytes += self._retire(former.manifest)
        return freed_bytes

    @contextlib.contextmanager
    def promising(self, manifests: Iterable[bytes]) -> Iterator[None]:
        """While names get these manifests, one after the other, keep what they refer to.

        A name that gave something up has moved on; the name that takes it over has not yet.

        Raises:
            StoreError: one of them is malformed.
        """
        self._promised = frozenset(
            part.digest for manifest in manifests for part in parse_image(manifest).parts
        )
        try:
            yield
        finally:
            self._promised = frozenset()

    def copy(self, source: ModelName, destination: ModelName) -> None:
        """Give a model one more name; the manifest's bytes, and so its id, stay the same.

        Raises:
            ModelMissingError: there is no such model.
            StoreError: it is damaged, or the store cannot be written.
            NoSpaceError: the file system is full.
        """
        model = self.store.resolve(source)
        self.point(destination, self.store.manifest(model.name))

    def remove(self, name: ModelName) -> int:
        """Remove a name, damaged or not, and then the files nothing else uses.

        Returns:
            Bytes freed.

        Raises:
            ModelMissingError: there is no such name.
            StoreAccessError: it cannot be removed.
        """
        spelled = self.store.canonical(name)
        reference = self._paths.reference(spelled)
        former = self._peek(spelled)
        if not reference.is_file():
            raise ModelMissingError(f"model '{name.short()}' not found")
        with store_io(f"remove {spelled.short()}"):
            # A rename needs no room: removing must work on a full disk.
            reference.replace(self._former)
            fsio.fsync_dir(reference.parent)
            fsio.fsync_dir(self._former.parent)
            for parent in list(reference.relative_to(self._paths.manifests).parents)[:-1]:
                with contextlib.suppress(OSError):  # not empty: another name lives there
                    (self._paths.manifests / parent).rmdir()
        return self._retire(former) + self.trim(spelled, 0)

    def _set_aside(self, former: bytes | None) -> None:
        """Keep a manifest that is about to lose its name until its files are gone too."""
        if former is not None:
            fsio.atomic_write(self._former, former, mode=_FILE_MODE)

    def _retire(self, former: bytes | None) -> int:
        """Remove what only this manifest used, and then the manifest that was set aside."""
        freed_bytes = 0 if former is None else self.release(former, keep_origin=True)
        with store_io("remove a former manifest"):
            self._former.unlink(missing_ok=True)
        return freed_bytes

    def _peek(self, name: ModelName) -> bytes | None:
        try:
            return self.store.manifest(name)
        except AppError:
            return None

    def release(self, manifest: bytes, *, keep_origin: bool = False) -> int:
        """Remove what only this manifest used, unless some other manifest cannot be read.

        Args:
            manifest: the manifest file that has lost its name, or never got it.
            keep_origin: remember where it came from until its bundle is counted: an older one
                must not come in because an import crashed and its model was then removed.

        Returns:
            Bytes freed.

        Raises:
            StoreAccessError: a file cannot be removed.
        """
        try:
            gone = parse_image(manifest)
            left = [self.store.manifest(name) for name in self.store.names()]
            left += [former.manifest for former in previous.every_former(self._paths)]
            needed = {part.digest for data in left for part in parse_image(data).parts}
            needed |= waiting.needed(self._paths)
        except AppError:
            return 0
        needed |= self._promised
        freed = self._unlink_blobs(part for part in gone.parts if part.digest not in needed)
        if manifest not in left:
            self._forget_origin(Digest.of(manifest), keep=keep_origin)
        return freed

    def _forget_origin(self, manifest: Digest, *, keep: bool) -> None:
        record = self._paths.provenance(manifest)
        with store_io("remove a record of provenance"):
            if keep and record.is_file() and not self._is_counted(record):
                # A rename needs no room: removing must work on a full disk.
                record.replace(self._paths.uncounted(manifest))
                fsio.fsync_dir(self._paths.trust)
            record.unlink(missing_ok=True)
        drop_evidence(self._paths, manifest)

    def _is_counted(self, record: Path) -> bool:
        """Whether the policy knows of the bundle; what says nothing needs no counting."""
        try:
            origin = parse_origin(record.read_bytes()).provenance
            if origin is None:
                return True
            return origin.seq in load_policy(self._paths.trust).accepted.get(origin.channel, {})
        except AppError:
            return False

    def counted(self) -> None:
        """Drop what was kept for counting: the policy that was just written knows it.

        Raises:
            StoreAccessError: a file cannot be removed.
        """
        with store_io("remove a record of provenance"):
            for record in self._paths.all_uncounted():
                record.unlink(missing_ok=True)

    def _unlink_blobs(self, parts: Iterable[Descriptor]) -> int:
        freed = 0
        for digest in {part.digest for part in parts}:
            path = self._paths.blob(digest)
            with store_io(f"remove blob {digest.short()}"):
                if path.is_file():
                    size = path.stat().st_size
                    path.unlink()
                    freed += size
        with store_io("flush the directory of blobs"):
            fsio.fsync_dir(self._paths.blobs)
        return freed


def _lock(descriptor: int, wait_s: float) -> None:
    deadline_s = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError as error:
            if time.monotonic() >= deadline_s:
                holder = os.pread(descriptor, 32, 0).decode("ascii", errors="replace").strip()
                raise StoreBusyError(
                    f"the store is being written by process {holder or 'unknown'}",
                    hint="wait until it has finished",
                ) from error
            time.sleep(_LOCK_POLL_S)
    _sign(descriptor, str(os.getpid()))


def _sign(descriptor: int, holder: str) -> None:
    """Write who holds the lock, always as many bytes, so that a full disk does not matter.

    Failing to say so is no reason not to hold it.
    """
    with contextlib.suppress(OSError):
        os.pwrite(descriptor, f"{holder:<15}\n".encode(), 0)


def _make_directory(path: Path) -> None:
    """Create a directory and make its name durable; parents of the root are made too."""
    if path.is_dir():
        return
    # One by one: pathlib would leave the mode of parents to the umask alone.
    _make_directory(path.parent)
    path.mkdir(mode=_DIRECTORY_MODE, exist_ok=True)
    fsio.fsync_dir(path.parent)
