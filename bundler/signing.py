"""Add a signature to a finished bundle. Only the envelope is needed, not the weights.

The key may live on a machine that never sees the bundle: `emit` writes the envelope out, a few
kilobytes; it is signed there; `attach` brings the signatures back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bundler.errors import PackError, SignaturesError
from bundler.format import envelope, fsio
from bundler.format.errors import LayoutError
from bundler.format.keys import KeyId, Signer
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


def emit(opened: OpenedEnvelope, path: Path) -> int:
    """Write the envelope to a new file, for a signer elsewhere.

    Returns:
        its size in bytes.

    Raises:
        PackError: the file exists already.
        MediumError: it cannot be written.
        NoSpaceError: there is no room.
    """
    try:
        fsio.create_new(path, opened.data, mode=0o644)
    except FileExistsError as error:
        raise PackError(f"{path}: expected no file, found one") from error
    return len(opened.data)


def attach(opened: OpenedEnvelope, path: Path) -> tuple[KeyId, ...]:
    """Take over the signatures of an envelope that was signed elsewhere.

    They are not judged here, where nobody is trusted; a target counts those of trusted keys.

    Returns:
        the ids of all signatures that the envelope then carries.

    Raises:
        SignaturesError: the file is of another bundle, or carries no signature.
        EnvelopeError: it is no envelope, or there are too many signatures.
        MediumError: a file cannot be read or written; the old envelope is as it was.
    """
    found = envelope.parse(fsio.read_bounded(path, max_bytes=MAX_ENVELOPE_BYTES))
    if found.payload != opened.envelope.payload:
        raise SignaturesError(
            f"{path}: expected signatures of this bundle, found those of another",
            hint="the bundle was packed again since; emit its envelope again and sign that",
        )
    if not found.signatures:
        raise SignaturesError(f"{path}: expected a signature, found none", hint="sign it first")
    written = envelope.encode(envelope.with_signatures(opened.envelope, found.signatures))
    if written != opened.data:
        fsio.atomic_write(opened.path, written)
    return tuple(one.key_id for one in envelope.parse(written).signatures)


def add_signature(opened: OpenedEnvelope, keys: Sequence[Signer]) -> tuple[KeyId, ...]:
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
