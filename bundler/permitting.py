"""Permit an older bundle: a consent of a root's role ``rollback``, beside the bundle's envelope."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bundler.errors import PackError
from bundler.format import envelope, fsio
from bundler.format.consent import PERMIT_TYPE, Permit, parse_permit, permit
from bundler.format.digest import Digest
from bundler.format.errors import MissingBlobError
from bundler.format.keys import KeyId, Signer
from bundler.format.limits import MAX_PERMIT_BYTES
from bundler.format.volume import ENVELOPE_NAME, PERMIT_NAME
from bundler.signing import OpenedEnvelope


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a new permit shall say.

    Attributes:
        instead_of: the number that the site has accepted.
        audience: sites.
        issued: RFC 3339 in UTC.
        expires: likewise.
    """

    instead_of: int
    audience: tuple[str, ...]
    issued: str
    expires: str


def write_permit(
    opened: OpenedEnvelope, wish: Wish | None, keys: Sequence[Signer]
) -> tuple[Permit, tuple[KeyId, ...]]:
    """Write a permit beside an envelope, or sign the one that is there.

    Args:
        opened: the older bundle.
        wish: a new permit; ``None`` signs the one that is there.
        keys: of the root's role ``rollback``.

    Returns:
        the permit, and the ids of all keys that signed it.

    Raises:
        PackError: there is no permit to sign, or one of another kind, or one already.
        FormatError: the one that is there is malformed.
        BundleError: it cannot be written.
    """
    path = opened.path.with_name(PERMIT_NAME)
    if opened.path.name != ENVELOPE_NAME:
        raise PackError(f"{opened.path}: expected a bundle directory, found an envelope alone")
    try:
        there = fsio.read_bounded(path, max_bytes=MAX_PERMIT_BYTES)
    except MissingBlobError:
        there = None
    if wish is None:
        if there is None:
            raise PackError(
                f"{path}: expected a permit to sign, found none", hint="make one with --instead-of"
            )
        parsed = envelope.parse(there, payload_type=PERMIT_TYPE)
        data = envelope.encode(envelope.add_signatures(parsed, keys))
    else:
        if there is not None:
            raise PackError(
                f"{path}: expected no permit, found one",
                hint="sign it with --key alone, or remove it first",
            )
        info = opened.manifest.bundle
        if info.seq >= wish.instead_of:
            raise PackError(
                f"instead-of: expected a number above {info.seq}, found {wish.instead_of}"
            )
        value = Permit(
            statement=Digest.of(opened.envelope.payload),
            channel=info.channel,
            seq=info.seq,
            instead_of=wish.instead_of,
            audience=wish.audience,
            issued=wish.issued,
            expires=wish.expires,
        )
        data = permit(value, keys)
    found = envelope.parse(data, payload_type=PERMIT_TYPE)
    said = parse_permit(found.payload)  # what a reader refuses is not written
    if said.statement != Digest.of(opened.envelope.payload):
        raise PackError(f"{path}: expected a permit for this bundle, found one for another")
    fsio.atomic_write(path, data)
    return said, tuple(one.key_id for one in found.signatures)
