"""Leave out what a site holds already: which chunks are copied there, and which are sent as XOR.

The inventory says which chunks the site's files are made of. A chunk that is among them is not
stored at all. Of a relative - a file that the site holds and that lies here, too - a tensor of the
same name, type and shape is XORed with the new one where that compresses to less: a fine-tune
differs from its base in few bits. The signed digest of the plain chunk proves either on the target.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bundler.errors import PackError
from bundler.format.cutting import Cut
from bundler.format.digest import Digest
from bundler.format.fsio import read_bounded
from bundler.format.inventory import ReadInventory, read_inventory
from bundler.format.keys import PublicKey
from bundler.format.limits import MAX_ENVELOPE_BYTES
from bundler.format.manifest import BlobRef
from bundler.hashing import source_digest
from bundler.progress import Progress
from hwprobe.errors import GgufError
from hwprobe.gguf import GgufHeader, read_header

_MARK_BYTES: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the target finds bytes: an object it holds, and an offset in it."""

    object: BlobRef
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Relative:
    """A file that lies here and at the site.

    Attributes:
        path: where it lies here.
        object: what the site calls it.
        header: its tensors.
    """

    path: Path
    object: BlobRef
    header: GgufHeader


@dataclass(frozen=True, slots=True, kw_only=True)
class Against:
    """What a delta is made against.

    Attributes:
        read: the inventory.
        relatives: files for XOR, in the order they were given.
        digest: of the inventory's payload.
    """

    read: ReadInventory
    relatives: tuple[Relative, ...]
    digest: Digest


class Sources:
    """Numbers the objects a bundle copies from, in the order of their first use."""

    def __init__(self, against: Against) -> None:
        self._numbers: dict[BlobRef, int] = {}
        self._places: dict[tuple[int, bytes], list[Place]] = {}
        for held in against.read.inventory.objects:
            ref = BlobRef(digest=held.digest, size_bytes=held.size_bytes)
            for chunk in held.chunks():
                place = Place(object=ref, offset=chunk.offset)
                self._places.setdefault((chunk.size_bytes, chunk.mark), []).append(place)

    def copies(self, plain_digest: bytes, size_bytes: int) -> tuple[Place, ...]:
        """Every place where the site holds these bytes."""
        return tuple(self._places.get((size_bytes, plain_digest[:_MARK_BYTES]), ()))

    def number(self, object_: BlobRef) -> int:
        """The number of an object; it gets one if it has none."""
        return self._numbers.setdefault(object_, len(self._numbers))

    def choose(self, places: Sequence[Place]) -> Place:
        """One of several places: an object that is needed anyway, else the first by digest."""
        return min(places, key=lambda one: (self._numbers.get(one.object, len(self._numbers)),
                                            one.object.digest, one.offset))  # fmt: skip

    @property
    def objects(self) -> tuple[BlobRef, ...]:
        """What the target must hold, by number."""
        return tuple(self._numbers)


@dataclass(frozen=True, slots=True, kw_only=True)
class XorBase:
    """Bytes of a relative that stand where a chunk stands: an open file here, a place there."""

    descriptor: int
    place: Place


class FileDelta:
    """The delta of one file; made by `file_delta`."""

    def __init__(self, sources: Sources, bases: Mapping[int, tuple[XorBase, ...]]) -> None:
        self.sources = sources
        self._bases = bases

    def bases(self, cut: Cut) -> tuple[XorBase, ...]:
        """What a chunk can be XORed with."""
        return self._bases.get(cut.start, ())


@contextmanager
def file_delta(
    path: Path, cuts: Iterable[Cut], against: Against, sources: Sources
) -> Iterator[FileDelta]:
    """What of a file the site holds, and what stands in for the rest.

    Args:
        path: the file that is packed, a GGUF.
        cuts: where it is cut.
        against: the inventory and the relatives.
        sources: numbers that all files of a bundle share.

    Raises:
        PackError: a relative cannot be read.
    """
    header = read_header(path)
    descriptors: list[int] = []
    bases: dict[int, list[XorBase]] = {}
    try:
        for relative in against.relatives:
            try:
                descriptors.append(os.open(relative.path, os.O_RDONLY | os.O_CLOEXEC))
            except OSError as error:
                raise PackError(f"{relative.path}: {error.strerror}") from error
            for cut, offset in _alike(header, cuts, relative):
                place = Place(object=relative.object, offset=offset)
                base = XorBase(descriptor=descriptors[-1], place=place)
                bases.setdefault(cut.start, []).append(base)
        yield FileDelta(sources, {start: tuple(found) for start, found in bases.items()})
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _alike(
    header: GgufHeader, cuts: Iterable[Cut], relative: Relative
) -> Iterator[tuple[Cut, int]]:
    """Chunks whose tensor the relative has in the same form, and where its bytes stand there."""
    theirs = {
        (one.name, one.ggml_type, one.dimensions): one.offset_bytes
        for one in relative.header.tensors
    }
    base = relative.header.data_offset_bytes
    ours = sorted((one.offset_bytes, one.name, one) for one in header.tensors)
    place = 0
    for cut in cuts:
        at = cut.start - header.data_offset_bytes
        while place + 1 < len(ours) and ours[place + 1][0] <= at:
            place += 1
        if at < 0 or not ours:
            continue
        tensor = ours[place][2]
        start = theirs.get((tensor.name, tensor.ggml_type, tensor.dimensions))
        if start is None:
            continue
        offset = base + start + at - tensor.offset_bytes
        if offset + cut.size_bytes <= relative.object.size_bytes:
            yield cut, offset


def open_against(
    inventory: Path, relatives: Sequence[Path], device: PublicKey | None, progress: Progress
) -> Against:
    """Read an inventory, and the files that are to serve as relatives.

    Args:
        inventory: the file the site wrote.
        relatives: GGUF files that the site holds, too.
        device: the site's device key; `None` takes an inventory as it is.
        progress: where the reading of relatives is shown.

    Raises:
        PackError: it is not signed by that key, or a relative is not among the site's files.
        FormatError: it is no inventory.
        MediumError: a file cannot be read.
    """
    read = read_inventory(read_bounded(inventory, max_bytes=MAX_ENVELOPE_BYTES))
    if device is not None and not read.signed_by(device):
        raise PackError(
            f"{inventory}: expected the signature of {device.words()}, found "
            + ("another" if read.envelope.signatures else "none"),
            hint="the site's key is shown there by: satchel device",
        )
    held = {one.digest: one.size_bytes for one in read.inventory.objects}
    found = []
    for path in relatives:
        digest = source_digest(path, progress)
        if digest not in held:
            raise PackError(
                f"{path}: expected a file that the site holds, found {digest.short()}",
                hint="the inventory does not list it; leave it out, or take the site's own version",
            )
        try:
            header = read_header(path)
        except GgufError as error:
            raise PackError(f"{path}: {error}") from error
        ref = BlobRef(digest=digest, size_bytes=held[digest])
        found.append(Relative(path=path, object=ref, header=header))
    return Against(read=read, relatives=tuple(found), digest=Digest.of(read.envelope.payload))
