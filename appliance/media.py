"""The media an operator put in: which bundle they carry, and what of it is still missing.

A bundle may be spread over several media, in any order, beside files and bundles of others. What
belongs together is told by the statement, not by names: directories whose envelopes carry the
same payload are one bundle. Nothing here is trusted; every byte is checked where it is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import SeveralBundlesError
from bundler.format import envelope
from bundler.format.digest import Digest
from bundler.format.errors import BundleError
from bundler.format.manifest import Manifest, volume_count
from bundler.format.volume import BundleDirectory, find_bundles

LABEL = "SATCHEL-{}"
"""What a volume is called: a label that FAT takes, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Media:
    """What the given places hold.

    Attributes:
        bundle: the one bundle, wherever its parts lie.
        foreign: names of other bundles beside it, which are not looked at.
    """

    bundle: BundleDirectory
    foreign: tuple[str, ...] = ()


def open_media(paths: Sequence[Path]) -> Media:
    """The one bundle on these media. A path that names its directory decides which it is.

    Raises:
        LayoutError: there is none, or only an unfinished one.
        MissingBlobError: there is no such path.
        MediumError: none of them can be read.
        SeveralBundlesError: there are several, and none was named.
    """
    found, named = _found(paths)
    groups: dict[Digest | Path, list[BundleDirectory]] = {}
    for bundle in found:
        groups.setdefault(_statement(bundle) or bundle.path, []).append(bundle)
    if len(groups) > 1:
        # A directory that was named decides; an envelope that cannot be read is no other bundle.
        chosen = {key for key, group in groups.items() if named.intersection(group)}
        chosen = chosen or {key for key in groups if isinstance(key, Digest)}
        if len(chosen) != 1:
            names = sorted({bundle.path.name for bundle in found})
            raise SeveralBundlesError(
                f"medium: expected one bundle, found {len(groups)}: {', '.join(names[:5])}",
                hint=f"name one of them: {found[-1].path}",
            )
        (key,) = chosen
    else:
        (key,) = groups
    first, *others = groups[key]
    return Media(
        bundle=BundleDirectory(first.path, tuple(one.path for one in others)),
        foreign=tuple(sorted({one.path.name for one in found if one not in groups[key]})),
    )


def _found(paths: Sequence[Path]) -> tuple[list[BundleDirectory], set[BundleDirectory]]:
    """Every bundle below these paths, once, and those of them that a path names itself."""
    found: list[BundleDirectory] = []
    named: set[BundleDirectory] = set()
    problem: BundleError | None = None
    for path in dict.fromkeys(paths):
        try:
            here = find_bundles(path)
        except BundleError as error:
            problem = problem or error
            continue
        found += [bundle for bundle in here if bundle not in found]
        if len(here) == 1 and here[0].path == path.resolve():
            named.update(here)
    if not found:
        assert problem is not None
        raise problem
    return found, named


def _statement(bundle: BundleDirectory) -> Digest | None:
    """Which statement an envelope carries, trusted or not; ``None`` if nobody can say."""
    try:
        return Digest.of(envelope.parse(bundle.read_envelope()).payload)
    except BundleError:
        return None


def more_of(paths: Sequence[Path], statement: Digest) -> BundleDirectory | None:
    """The parts of a bundle that lie on these media now, or ``None``.

    Args:
        paths: where to look; what cannot be read is passed over.
        statement: digest of the bundle's payload.
    """
    parts = [bundle.path for bundle in _all(paths) if _statement(bundle) == statement]
    return BundleDirectory(parts[0], tuple(parts[1:])) if parts else None


def _all(paths: Iterable[Path]) -> Iterator[BundleDirectory]:
    for path in dict.fromkeys(paths):
        try:
            yield from find_bundles(path)
        except BundleError:
            continue


def volumes_line(volumes: Iterable[int], manifest: Manifest) -> str:
    """Volumes by label, and of which bundle: ``SATCHEL-3 and SATCHEL-5 of 5 (main 42)``."""
    labels = [LABEL.format(number) for number in sorted(volumes)]
    text = " and ".join([", ".join(labels[:-1]), labels[-1]] if labels[1:] else labels)
    info = manifest.bundle
    return f"{text} of {volume_count(manifest)} ({info.channel} {info.seq})"
