"""Bundles on a medium: find them, and read their files as files of unknown origin.

Rules:
 * every file is reached through a digest or a fixed name, below one opened directory;
 * nothing is followed, nothing blocks, nothing is written;
 * whatever the format does not name is not looked at.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from bundler.format.digest import Digest
from bundler.format.errors import DamagedError, LayoutError, MediumError, MissingBlobError
from bundler.format.fsio import open_directory, open_regular, raise_io, read_bounded
from bundler.format.limits import (
    MAX_BLOB_BYTES,
    MAX_ENVELOPE_BYTES,
    MAX_PERMIT_BYTES,
    MAX_ROOT_ENVELOPE_BYTES,
)

ENVELOPE_NAME: Final = "bundle.dsse.json"
BUNDLES_DIRECTORY: Final = "satchel"
PERMIT_NAME: Final = "rollback.dsse.json"
"""Beside the envelope: a permit (`bundler.format.consent`) for this bundle to be an older one."""
ROOT_DIRECTORY: Final = "root"
ROOT_NAME: Final = "{}.root.dsse.json"
UPDATE_DIRECTORY: Final = "trust"
"""Below `BUNDLES_DIRECTORY`: a trust update, which is roots and nothing else."""
_UPDATE_PLACES: Final = (
    (BUNDLES_DIRECTORY, UPDATE_DIRECTORY, ROOT_DIRECTORY),
    (UPDATE_DIRECTORY, ROOT_DIRECTORY),
    (ROOT_DIRECTORY,),
    (),
)
_BUNDLE_NAME: Final = re.compile(r"[a-z0-9][a-z0-9.-]{0,31}-[0-9]{6,16}")
_ROOT_FILE: Final = re.compile(ROOT_NAME.format("[1-9][0-9]{0,3}").replace(".", r"\."))
_Read = TypeVar("_Read")
_MAX_ENTRIES: Final = 10_000
"""Names looked at in one directory; a stick with more is not one of ours."""


@dataclass(frozen=True, slots=True, order=True)
class BundleDirectory:
    """One bundle on one medium or several. Nothing in it is trusted before `envelope.verify`.

    Attributes:
        path: the directory that holds ``bundle.dsse.json``.
        beside: directories of the same bundle on other media; each brings whatever files it has.
    """

    path: Path
    beside: tuple[Path, ...] = ()

    def read_envelope(self) -> bytes:
        """The bytes of the envelope, read once, at most 8 MiB.

        Raises:
            LayoutError: it is no regular file, or too large.
            MissingBlobError: there is none: the bundle is unfinished.
            MediumError: it cannot be read.
        """
        with _opened(self.path) as directory:
            return read_bounded(ENVELOPE_NAME, max_bytes=MAX_ENVELOPE_BYTES, dir_fd=directory)

    def read_root(self, version: int) -> bytes | None:
        """The envelope of a trust root that travels with the bundle, or ``None``. Not trusted.

        Raises:
            LayoutError: it is no regular file, or too large.
            MediumError: it cannot be read.
        """
        return UpdateDirectory(self.path, (ROOT_DIRECTORY,)).read_root(version)

    def read_permit(self) -> bytes | None:
        """The permit beside the envelope, or ``None``. Not trusted.

        Raises:
            LayoutError: it is no regular file, or too large.
            MediumError: it cannot be read.
        """
        with _opened(self.path) as directory:
            try:
                return read_bounded(PERMIT_NAME, max_bytes=MAX_PERMIT_BYTES, dir_fd=directory)
            except MissingBlobError:
                return None

    def has_blob(self, digest: Digest) -> bool:
        """Whether this medium holds a file of that name; another volume may."""
        try:
            with self.open_blob(digest):
                return True
        except (MissingBlobError, LayoutError):
            return False

    def read_blob(
        self, digest: Digest, *, max_bytes: int = MAX_BLOB_BYTES, size_bytes: int | None = None
    ) -> bytes:
        """A small file, read once and checked against its digest.

        Args:
            digest: its name.
            max_bytes: most bytes read.
            size_bytes: the size the statement gives it.

        Raises:
            MissingBlobError: it is not on this medium.
            LayoutError: it is no regular file, too large, or of another size.
            DamagedError: its bytes have another digest.
            MediumError: it cannot be read.
        """
        return self._first(lambda place: _read_blob(place, digest, max_bytes, size_bytes))

    def open_blob(self, digest: Digest, *, size_bytes: int | None = None) -> io.FileIO:
        """A file on the medium, unbuffered and read-only; the caller closes it.

        Raises:
            MissingBlobError: it is not on this medium.
            LayoutError: it is no regular file, or of another size.
            MediumError: it cannot be opened.
        """
        return self._first(lambda place: _open_blob(place, digest, size_bytes))

    def open_segment(self, digest: Digest, *, size_bytes: int) -> io.FileIO:
        """A segment of the signed size, unbuffered and read-only; the caller closes it.

        Its bytes are not checked here: every chunk is, after it was read.

        Raises:
            MissingBlobError: it is not on this medium.
            LayoutError: it is no regular file, or of another size.
            MediumError: it cannot be opened.
        """
        return self.open_blob(digest, size_bytes=size_bytes)

    def open_copies(self, digest: Digest, *, at_most_bytes: int) -> Iterator[io.FileIO]:
        """Every copy of a file, cut off or not: what is left of a damaged one may still serve.

        The caller closes each.
        """
        for place in (self.path, *self.beside):
            try:
                file = _open_blob(place, digest, None)
            except (MissingBlobError, LayoutError, MediumError):
                continue
            if os.fstat(file.fileno()).st_size > at_most_bytes:
                file.close()
                continue
            yield file

    def _first(self, read: Callable[[Path], _Read]) -> _Read:
        """What the first medium gives that has it whole; else what is wrong with it."""
        problem: DamagedError | LayoutError | MediumError | None = None
        missing: MissingBlobError | None = None
        for place in (self.path, *self.beside):
            try:
                return read(place)
            except MissingBlobError as error:
                missing = missing or error
            except (DamagedError, LayoutError, MediumError) as error:
                problem = problem or error
        found = problem or missing
        assert found is not None
        raise found


def _read_blob(place: Path, digest: Digest, max_bytes: int, size_bytes: int | None) -> bytes:
    with _blobs(place) as directory:
        data = read_bounded(digest.hex, max_bytes=max_bytes, dir_fd=directory)
    if size_bytes is not None and len(data) != size_bytes:
        raise LayoutError(f"{digest}: expected {size_bytes} bytes, found {len(data)}")
    if Digest.of(data) != digest:
        raise DamagedError(
            f"{digest}: expected bytes of this digest, found others",
            hint="the medium is damaged or was changed; copy the bundle again",
        )
    return data


def _open_blob(place: Path, digest: Digest, size_bytes: int | None) -> io.FileIO:
    with _blobs(place) as directory:
        return open_regular(digest.hex, dir_fd=directory, size_bytes=size_bytes)


@contextmanager
def _opened(place: Path) -> Iterator[int]:
    directory = open_directory(place)
    try:
        yield directory
    finally:
        os.close(directory)


@contextmanager
def _blobs(place: Path) -> Iterator[int]:
    with _opened(place) as bundle:
        blobs = open_directory("blobs", dir_fd=bundle)
        try:
            directory = open_directory("sha256", dir_fd=blobs)
        finally:
            os.close(blobs)
    try:
        yield directory
    finally:
        os.close(directory)


@dataclass(frozen=True, slots=True)
class UpdateDirectory:
    """A directory of trust roots on a medium. Nothing in it is trusted.

    Attributes:
        path: what was opened first.
        below: names of the directories below it, none of which may be a link.
    """

    path: Path
    below: tuple[str, ...]

    def read_root(self, version: int) -> bytes | None:
        """The envelope of a root, or ``None`` where there is none.

        Raises:
            LayoutError: it is no regular file, or too large.
            MediumError: it cannot be read.
        """
        directory = open_directory(self.path)
        try:
            for name in self.below:
                outer = directory
                directory = open_directory(name, dir_fd=outer)
                os.close(outer)
            return read_bounded(
                ROOT_NAME.format(version), max_bytes=MAX_ROOT_ENVELOPE_BYTES, dir_fd=directory
            )
        except MissingBlobError:
            return None
        finally:
            os.close(directory)


def find_update(root: Path) -> UpdateDirectory | None:
    """The trust roots of a medium, if there are any beside those of its bundles.

    Args:
        root: the medium, its ``satchel`` or ``trust`` directory, a bundle directory, or a
            directory of roots.

    Raises:
        MediumError: ``root`` cannot be read.
    """
    root = root.resolve()
    for below in _UPDATE_PLACES:
        try:
            names = [path.name for path in root.joinpath(*below).iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise_io(error, root)
        if any(_ROOT_FILE.fullmatch(name) for name in names):
            return UpdateDirectory(root, below)
    return None


def has_bundles(root: Path) -> bool:
    """Whether there is a bundle, finished or not: the question before `find_bundles`."""
    root = root.resolve()
    return _is_file(root / ENVELOPE_NAME) or bool(_bundle_paths(root))


def find_bundles(root: Path) -> tuple[BundleDirectory, ...]:
    """Every finished bundle of a medium, in order of name.

    Args:
        root: the medium, its ``satchel`` directory, or one bundle directory.

    Raises:
        LayoutError: there is no bundle, only unfinished ones, or ``root`` is no directory.
        MediumError: ``root`` does not exist, or cannot be read.
    """
    try:
        os.close(open_directory(root, follow=True))
    except MissingBlobError as error:
        raise MediumError(
            f"{ascii(str(root))[1:-1]}: expected a medium, found nothing",
            hint="is the stick mounted there?",
        ) from error
    typed = ascii(str(root))[1:-1]
    # What the operator typed may be a link; from here on nothing is followed.
    root = root.resolve()
    if _is_file(root / ENVELOPE_NAME):
        return (BundleDirectory(root),)
    named = _bundle_paths(root)
    finished = [path for path in named if _is_file(path / ENVELOPE_NAME)]
    if finished:
        return tuple(BundleDirectory(path) for path in finished)
    if named:
        raise LayoutError(
            f"{ascii(named[0].name)[1:-1]}: expected a finished bundle, found none",
            hint=f"there is no {ENVELOPE_NAME}; pack it again",
        )
    raise LayoutError(
        f"{typed}: expected a bundle, found none",
        hint=f"is the stick mounted there? it holds {BUNDLES_DIRECTORY}/<channel>-<seq>",
    )


def _bundle_paths(root: Path) -> list[Path]:
    """Directories that are called like bundles, in order of name."""
    below = root / BUNDLES_DIRECTORY
    names = [
        *(below / name for name in _directories(below)),
        *(root / name for name in _directories(root) if name != BUNDLES_DIRECTORY),
    ]
    return sorted(path for path in names if _BUNDLE_NAME.fullmatch(path.name))


def _directories(path: Path) -> list[str]:
    """Names of the directories in a directory; none where it is none itself."""
    names: list[str] = []
    try:
        if path.is_symlink():
            return []
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    names.append(entry.name)
                if len(names) > _MAX_ENTRIES:
                    raise LayoutError(
                        f"medium: expected at most {_MAX_ENTRIES} directories, found more"
                    )
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise_io(error, path)
    return names


def _is_file(path: Path) -> bool:
    """Whether something stands there, whatever it is: opening it decides."""
    try:
        path.lstat()
    except OSError:
        return False
    return True
