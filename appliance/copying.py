"""Stream one artifact off the medium: read, check, unpack, write, hash; each byte read once.

Rules:
 * worker threads read ahead, check the stored digest, unpack, check the plain digest, and write;
   the caller's thread hashes the plain bytes in order, so the whole file's digest is known when
   the last chunk is;
 * memory is a fixed number of slots, whatever the size of the file;
 * what was read or written leaves no pages in memory that others could use better;
 * every 256 MiB the data is flushed and a marker says what is there; after a kill that part is
   read back from the disk, checked again, and only the rest is read from the medium;
 * a bad chunk is read three times, then from every other copy, before it is given up; the chunks
   after it are read all the same, so that the next medium, or a repair answer, brings only what
   parity does not give.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path

from appliance.errors import store_io
from appliance.reading import Source, plain_chunks
from appliance.rebuilding import rebuild
from appliance.staging import Progress, StagedFile
from bundler.format import fsio
from bundler.format.digest import Digest
from bundler.format.errors import BundleError, DamagedError, MediumError

SYNC_BYTES = 256 << 20
"""A pulled plug loses at most this much work, and the writeback queue never stalls others."""
_GIVE_UP = 64
"""So many chunks in a row that cannot be read: the medium is gone, and each try may take long."""
_READ_BACK_BYTES = 1 << 20


def copy_artifact(source: Source, staged: Path, *, progress: Progress) -> Mapping[int, BundleError]:
    """Bring what the media give of an artifact into a staging file.

    A staging file that an earlier import left is taken up where its marker says. When nothing is
    missing, the whole file's digest is right on return.

    Args:
        source: what to copy.
        staged: the staging file; a marker is kept beside it.
        progress: told of every byte, those of an earlier run included.

    Returns:
        Places of the records that could not be had, and why; empty when the file is whole.

    Raises:
        DamagedError: every chunk is as signed, and the file as a whole is not.
        NoSpaceError: the store's file system is full.
        StoreAccessError: the store cannot be written.
    """
    with StagedFile(staged, source.index, source.artifact.index.digest) as target:
        target.take_up(progress)
        gaps = _copy_missing(target, source, progress)
        if gaps and source.artifact.parity is not None:
            gaps = rebuild(target, source, gaps, progress)
        target.mark()
        if not gaps and target.whole_digest() != source.artifact.digest.raw:
            raise DamagedError(
                f"{source.artifact.digest}: expected a file of this digest, found another",
                hint="every chunk is as signed, the whole is not; ask who signed this bundle",
            )
    return gaps


def _copy_missing(target: StagedFile, source: Source, progress: Progress) -> dict[int, BundleError]:
    gaps: dict[int, BundleError] = {}
    wanted = target.missing()
    unreadable = 0
    chunks = plain_chunks(source, places=wanted, sink=target.descriptor)
    with contextlib.closing(chunks):
        for place, (record, plain) in zip(wanted, chunks, strict=False):
            if isinstance(plain, BundleError):
                gaps[place] = plain
                unreadable = unreadable + 1 if isinstance(plain, MediumError) else 0
                if unreadable >= _GIVE_UP:
                    break
                continue
            unreadable = 0
            target.wrote(place, plain)
            progress(record.plain_len)
            if target.unsynced_bytes >= SYNC_BYTES:
                target.mark()
    if gaps:
        last = next(reversed(gaps.values()))
        gaps.update((place, gaps.get(place, last)) for place in target.missing())
    return gaps


def file_digest(path: Path, *, progress: Progress) -> Digest:
    """Digest of a file of the store.

    Raises:
        StoreAccessError: it cannot be read.
    """
    hasher = hashlib.sha256()
    buffer = memoryview(bytearray(_READ_BACK_BYTES))
    with store_io("read a blob"), path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            hasher.update(buffer[:count])
            fsio.pass_over(file.fileno(), file.tell() - count, count)
            progress(count)
    return Digest(hasher.hexdigest())
