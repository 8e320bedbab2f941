"""What names stood for before: kept whole, so that an operator can go back.

Rules:
 * a former manifest is on disk before the name moves, and its files stay while it is kept;
 * a manifest that the name stands for again is no former one, whatever lies here;
 * who writes holds the store's lock.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import store_io
from appliance.layout import Paths
from appliance.model import MAX_MANIFEST_BYTES
from bundler.format import fsio
from bundler.format.digest import Digest
from bundler.format.errors import FormatError
from bundler.format.name import ModelName

_FILE = re.compile(r"([0-9]{6,})\.json")
_FILE_MODE = 0o644
_LEVELS = 4
"""Host, namespace, model, tag."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Former:
    """A manifest that a name stood for.

    Attributes:
        number: counts up; the highest was replaced last.
        manifest: its bytes.
        replaced_at_s: wall time at which it was replaced, in seconds since the epoch.
        path: where it is kept.
    """

    number: int
    manifest: bytes
    replaced_at_s: float
    path: Path

    @property
    def digest(self) -> Digest:
        """The id of the model."""
        return Digest.of(self.manifest)


def formers(paths: Paths, name: ModelName, *, now: bytes | None = None) -> tuple[Former, ...]:
    """What a name stood for before, the latest first.

    Args:
        paths: of the store.
        name: in the store's spelling.
        now: the manifest that the name stands for: it is left out.

    Raises:
        StoreAccessError: the files cannot be read.
    """
    found = []
    with store_io("read the previous versions"):
        try:
            entries = list(_folder(paths, name).iterdir())
        except FileNotFoundError:
            return ()
        for entry in entries:
            if match := _FILE.fullmatch(entry.name):
                data = fsio.read_bounded(entry, max_bytes=MAX_MANIFEST_BYTES)
                found.append(
                    Former(
                        number=int(match[1]),
                        manifest=data,
                        replaced_at_s=entry.stat().st_mtime,
                        path=entry,
                    )
                )
    latest = sorted(found, key=lambda one: one.number, reverse=True)
    return tuple(one for one in latest if one.manifest != now)


def names_with_formers(paths: Paths) -> tuple[ModelName, ...]:
    """Every name that something is kept of, in order."""
    found = []
    with store_io("read the previous versions"):
        for parts in sorted(_walk(paths.previous, _LEVELS)):
            host, namespace, model, tag = parts
            with contextlib.suppress(FormatError):
                found.append(ModelName(host=host, namespace=namespace, model=model, tag=tag))
    return tuple(found)


def every_former(paths: Paths) -> Iterator[Former]:
    """What every name stood for before."""
    for name in names_with_formers(paths):
        yield from formers(paths, name)


def keep(paths: Paths, name: ModelName, manifest: bytes) -> None:
    """Keep a manifest that is about to lose its name.

    Raises:
        NoSpaceError: there is no room.
        StoreAccessError: it cannot be written.
    """
    known = formers(paths, name)
    if known and known[0].manifest == manifest:
        return  # kept by a writer that crashed before the name moved
    number = known[0].number + 1 if known else 1
    folder = _folder(paths, name)
    with store_io(f"keep the previous version of {name.short()}"):
        folder.mkdir(parents=True, exist_ok=True)
        fsio.atomic_write(folder / f"{number:06d}.json", manifest, mode=_FILE_MODE)


def forget(former: Former, paths: Paths) -> None:
    """Keep it no longer; its files are the caller's to release.

    Raises:
        StoreAccessError: it cannot be removed.
    """
    with store_io("forget a previous version"):
        former.path.unlink(missing_ok=True)
        fsio.fsync_dir(former.path.parent)
        for parent in list(former.path.relative_to(paths.previous).parents)[:-1]:
            with contextlib.suppress(OSError):  # not empty
                (paths.previous / parent).rmdir()


def _folder(paths: Paths, name: ModelName) -> Path:
    return paths.previous / name.host / name.namespace / name.model / name.tag


def _walk(directory: Path, levels: int) -> Iterator[tuple[str, ...]]:
    try:
        entries = [entry for entry in directory.iterdir() if entry.is_dir()]
    except FileNotFoundError:
        return
    for entry in entries:
        if levels == 1:
            yield (entry.name,)
        else:
            for rest in _walk(entry, levels - 1):
                yield (entry.name, *rest)
