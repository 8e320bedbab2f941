"""What a delta needs of the store: is all of it here, before the medium is read?

Chunks that are copied are read and hashed where they lie, so that a refusal names the chunk and
comes before gigabytes were carried over. What is mixed with the medium's bytes is proved by the
digest of the result only; here it must be there, and as long as it was signed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from appliance.errors import AppError, LocalObjectMissingError, store_io
from appliance.reading import Source
from appliance.site import Observer
from bundler.format import fsio
from bundler.format.index import ChunkRecord, Codec
from bundler.format.manifest import BlobRef, Manifest

_HINT = (
    "install the model it belongs to again; or take stock anew with satchel inventory, "
    "and ask for a bundle packed against that"
)


def check_local(source: Source, manifest: Manifest, observer: Observer | None = None) -> None:
    """Refuse a delta whose other half is not here.

    Args:
        source: an artifact that is to be read.
        manifest: the statement, with its required objects.
        observer: told what is read.

    Raises:
        LocalObjectMissingError: an object is missing, of another size, or a chunk of it is not
            what the bundle was made against; it says which.
        StoreAccessError: it cannot be read.
    """
    for number in source.used:
        needed = manifest.requires.objects[number]
        records = [one for one in source.index.records if _uses(one, number)]
        path = source.objects[number]
        _check_there(path, needed, records, manifest, source)
        copied = [one for one in records if one.codec is Codec.COPY]
        if observer is not None and copied:
            size_bytes = sum(one.plain_len for one in copied)
            observer.begins(f"checking {needed.digest.short()}", size_bytes)
        _check_chunks(path, needed, copied, observer)


def _uses(record: ChunkRecord, number: int) -> bool:
    return record.codec in (Codec.COPY, Codec.XOR) and record.source == number


def _check_there(
    path: Path, needed: BlobRef, records: list[ChunkRecord], manifest: Manifest, source: Source
) -> None:
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        found = -1
    except OSError as error:
        raise _missing(f"{needed.digest}: cannot be read: {error.strerror}") from error
    if found == needed.size_bytes:
        return
    what = "no such file" if found < 0 else f"one of {found}"
    raise _missing(
        f"{needed.digest}: expected a file of {needed.size_bytes} bytes in the store, found "
        f"{what}; {len(records)} of {len(source.index.records)} chunks of "
        f"{_belongs_to(source, manifest)} need it, the first at {records[0].plain_off}"
    )


def _belongs_to(source: Source, manifest: Manifest) -> str:
    digest = source.artifact.digest
    for model in manifest.models:
        for variant in model.variants:
            if digest in variant.artifacts():
                return f"{model.name.short()} {variant.id}"
    return digest.short()


def _check_chunks(
    path: Path, needed: BlobRef, copied: Iterable[ChunkRecord], observer: Observer | None
) -> None:
    buffer = memoryview(bytearray(max((one.plain_len for one in copied), default=0)))
    with store_io("read a file the bundle copies from"), path.open("rb", buffering=0) as file:
        for record in copied:
            view = buffer[: record.plain_len]
            got = os.preadv(file.fileno(), [view], record.source_off)
            if got != len(view) or hashlib.sha256(view).digest() != record.plain_digest:
                raise _missing(
                    f"{needed.digest}: the chunk at {record.source_off} is not what the bundle "
                    f"was made against; the chunk at {record.plain_off} would be copied from it",
                    hint="the installed file is damaged: satchel scrub; or ask for a full bundle",
                )
            fsio.pass_over(file.fileno(), record.source_off, got)
            if observer is not None:
                observer.advances(record.plain_len)


def _missing(message: str, *, hint: str = _HINT) -> AppError:
    return LocalObjectMissingError(message, hint=hint)
