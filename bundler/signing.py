"""Add a signature to a finished bundle. Only the envelope is needed, not the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bundler.format import envelope, fsio
from bundler.format.errors import LayoutError
from bundler.format.keys import KeyId, SigningKey
from bundler.format.limits import MAX_ENVELOPE_BYTES
from bundler.format.manifest import Manifest
from bundler.format.statement import parse_manifest
from bundler.format.volume import ENVELOPE_NAME, find_bundles


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedEnvelope:
    """An envelope whose signatures were not looked at, and what it says. Not trusted."""

    path: Path
    data: bytes
    envelope: envelope.Envelope
    manifest: Manifest


def open_envelope(path: Path) -> OpenedEnvelope:
    """Read the envelope of a medium, a bundle directory, or an envelope file.

    Raises:
        LayoutError: there is none, or several bundles.
        FormatError: it is malformed.
        MediumError: it cannot be read.
    """
    if path.is_dir():
        bundles = find_bundles(path)
        if len(bundles) > 1:
            names = ", ".join(bundle.path.name for bundle in bundles)
            raise LayoutError(
                f"{path}: expected one bundle, found {names}", hint="give one of them"
            )
        path = bundles[0].path / ENVELOPE_NAME
    data = fsio.read_bounded(path, max_bytes=MAX_ENVELOPE_BYTES)
    parsed = envelope.parse(data)
    return OpenedEnvelope(
        path=path, data=data, envelope=parsed, manifest=parse_manifest(parsed.payload)
    )


def add_signature(opened: OpenedEnvelope, keys: Sequence[SigningKey]) -> tuple[KeyId, ...]:
    """Sign what was opened, and put the envelope back whole.

    Returns:
        the ids of all signatures that the envelope then carries.

    Raises:
        EnvelopeError: there are too many signatures.
        MediumError: the envelope cannot be written; the old one is as it was.
    """
    signed = envelope.add_signatures(opened.envelope, keys)
    written = envelope.encode(signed)
    if written != opened.data:
        fsio.atomic_write(opened.path, written)
    return tuple(one.key_id for one in signed.signatures)
