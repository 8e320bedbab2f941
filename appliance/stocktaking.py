"""Take stock: which chunks the store's large files are made of, for a packer that leaves them out.

Rules:
 * every file is read to its end and hashed by chunks, cut as a packer cuts it; what is damaged
   matches nothing, so it costs size and never correctness;
 * digests, sizes and counters only: no names, no prompts, nothing about who uses what;
 * memory is one buffer, whatever the size of a file, and what was read leaves no pages behind.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from appliance.admission import known_policy
from appliance.errors import RequestError, StoreCorruptError, store_io
from appliance.model import parse_image
from appliance.site import Observer, Site
from bundler.format import fsio
from bundler.format.cutting import Cut, cut_gguf
from bundler.format.digest import Descriptor
from bundler.format.errors import BundleError
from bundler.format.inventory import (
    MAX_INVENTORY_BYTES,
    Inventory,
    InventoryObject,
    chunk_table,
    encode_inventory,
)
from bundler.format.limits import CHUNK_BYTES
from bundler.format.name import ModelName
from hwprobe.errors import GgufError
from hwprobe.gguf import read_header

LARGE = ("model", "projector", "adapter")
"""Kinds of layer that bundles carry as artifacts."""


def take_stock(names: Sequence[ModelName], site: Site, observer: Observer) -> Inventory:
    """The inventory of a site.

    Args:
        names: models to list; empty means every model.
        site: the store.
        observer: told of the files and bytes that are read.

    Raises:
        ModelMissingError: one of the names is not installed.
        RequestError: the inventory would be larger than an envelope holds.
        StoreError: the store cannot be read.
    """
    policy = known_policy(site.store)
    parts = _large_files(names, site)
    objects = []
    for part in parts:
        path = site.store.paths.blob(part.digest)
        observer.begins(f"reading {part.digest.short()}", part.size_bytes)
        table = chunk_table(_hashed(path, _cuts(path, part.size_bytes), observer))
        objects.append(InventoryObject(digest=part.digest, size_bytes=part.size_bytes, table=table))
    with store_io("measure free space"):
        status = os.statvfs(site.store.paths.root)
    highest = {channel: policy.highest(channel) or 0 for channel in policy.accepted}
    inventory = Inventory(
        site=site.config.trust.site,
        made_at=site.now,
        appliance=site.version,
        root_version=policy.root.root.version if policy.root else 0,
        channels={channel: seq for channel, seq in sorted(highest.items()) if seq},
        free_bytes=status.f_bavail * status.f_frsize,
        objects=tuple(objects),
    )
    _check_size(inventory)
    return inventory


def _check_size(inventory: Inventory) -> None:
    try:
        size_bytes = len(encode_inventory(inventory))
    except BundleError:
        size_bytes = MAX_INVENTORY_BYTES + 1
    if size_bytes > MAX_INVENTORY_BYTES:
        raise RequestError(
            f"inventory: expected at most {MAX_INVENTORY_BYTES} bytes, found {size_bytes}",
            hint="name the models that are to be updated: satchel inventory MODEL...",
        )


def _large_files(names: Sequence[ModelName], site: Site) -> tuple[Descriptor, ...]:
    """Weights, projectors and adapters, each once, by digest."""
    store = site.store
    wanted = [store.resolve(name).name for name in names] or [one.name for one in store.list()]
    found = {
        part.digest: part
        for name in wanted
        for kind in LARGE
        for part in parse_image(store.manifest(name)).of(kind)
        if part.size_bytes
    }
    return tuple(found[digest] for digest in sorted(found))


def _cuts(path: Path, size_bytes: int) -> Sequence[Cut]:
    """Where a packer cuts the file; what is no GGUF is cut every 4 MiB."""
    try:
        with store_io("read the header of a blob"):
            return cut_gguf(read_header(path))
    except GgufError:
        starts = range(0, size_bytes, CHUNK_BYTES)
        return tuple(Cut(start=at, end=min(at + CHUNK_BYTES, size_bytes)) for at in starts)


def _hashed(path: Path, cuts: Sequence[Cut], observer: Observer) -> Iterator[tuple[int, bytes]]:
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with store_io("read a blob"), path.open("rb", buffering=0) as file:
        for cut in cuts:
            view = buffer[: cut.size_bytes]
            if os.preadv(file.fileno(), [view], cut.start) != cut.size_bytes:
                raise StoreCorruptError(
                    f"blob {path.name}: expected {cuts[-1].end} bytes, found fewer",
                    hint="check the store: satchel scrub",
                )
            yield cut.size_bytes, hashlib.sha256(view).digest()
            fsio.pass_over(file.fileno(), cut.start, cut.size_bytes)
            observer.advances(cut.size_bytes)
