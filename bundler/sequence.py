"""Which sequence number a bundle gets when nobody names one.

A target refuses a bundle whose number on its channel is not above the last one it accepted.
So the packer counts for each signing key: ``NAME.seq`` lies beside ``NAME.key`` and holds the
last number of each channel. It travels with the key, whatever medium is written. Keys on tokens
have no place beside them; their numbers stay on the packing machine.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Final

from bundler.errors import PackError
from bundler.format import envelope
from bundler.format.digest import Digest
from bundler.format.errors import BundleError
from bundler.format.fsio import atomic_write, raise_io, read_bounded
from bundler.format.statement import parse_manifest
from bundler.format.strict import parse_json
from bundler.format.volume import find_bundles
from bundler.plan import PackRequest
from bundler.recipe import recipe_digest

SUFFIX: Final = ".seq"
_MAX_COUNTER_BYTES: Final = 64 << 10


def with_sequence(request: PackRequest, source: Digest, counter: Path) -> PackRequest:
    """Give a request its number: that of the same bundle on the medium, else the next one.

    Args:
        request: what to pack; its ``seq`` is replaced.
        source: digest of the source file.
        counter: the file beside the key (`counter_file`).

    Raises:
        PackError: the counter file cannot be read.
    """
    last = read_counter(counter).get(request.channel, 0)
    for channel, seq, recipe in _on_medium(request.out):
        if channel != request.channel:
            continue
        candidate = dataclasses.replace(request, seq=seq)
        if recipe_digest(candidate, source) == recipe:
            return candidate
        last = max(last, seq)
    return dataclasses.replace(request, seq=last + 1)


def counter_file(key: Path) -> Path:
    """Where the numbers of a signing key are kept: ``NAME.seq`` beside ``NAME.key``."""
    return key.with_suffix(SUFFIX)


def read_counter(path: Path) -> dict[str, int]:
    """Channel → last number given out; empty when nothing was packed yet.

    Raises:
        PackError: the file is there and cannot be used.
    """
    if not path.exists():
        return {}
    try:
        found = parse_json(
            read_bounded(path, max_bytes=_MAX_COUNTER_BYTES), max_bytes=_MAX_COUNTER_BYTES
        )
    except BundleError as error:
        raise PackError(f"{path}: {error}", hint="name the number with --seq") from error
    bad = [name for name, value in found.items() if type(value) is not int or value < 1]
    if bad:
        raise PackError(
            f"{path}: {bad[0]}: expected a sequence number, found {found[bad[0]]!r}",
            hint="name the number with --seq",
        )
    return found


def remember(path: Path, channel: str, seq: int) -> None:
    """Note a number that was given out; the file only ever counts up.

    Raises:
        BundleError: the file cannot be written.
    """
    known = read_counter(path)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise_io(error, path.parent)
    known[channel] = max(seq, known.get(channel, 0))
    atomic_write(path, json.dumps(known, sort_keys=True).encode() + b"\n")


def _on_medium(out: Path) -> list[tuple[str, int, Digest]]:
    """Channel, number and recipe of each finished bundle; what cannot be read is no bundle."""
    found = []
    try:
        directories = find_bundles(out) if out.is_dir() else ()
    except BundleError:
        return []
    for directory in directories:
        try:
            manifest = parse_manifest(envelope.parse(directory.read_envelope()).payload)
        except BundleError:
            continue
        found.append((manifest.bundle.channel, manifest.bundle.seq, manifest.builder.recipe))
    return found
