"""Signed consents: operators approve an import, and a root's keys let an older bundle in. Pure.

Each is a DSSE envelope of a payload type of its own, so that nobody's signature under one kind of
document counts for another. What is verified is what is parsed.

    approval   {"approves":"sha256:…","site":"site-0007","at":"2026-11-22T10:00:00Z"}
    permit     {"permits":"sha256:…","channel":"prod","seq":7,"instead_of":9,
                "audience":["site-0007"],"issued":"…","expires":"…"}
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, TypeVar

from bundler.format.digest import Digest
from bundler.format.envelope import Envelope, KeyRole, add_signatures, check_role, encode, parse
from bundler.format.errors import ConsentError, OtherConsentError
from bundler.format.keys import KeyId, Signer
from bundler.format.limits import MAX_STRING_BYTES
from bundler.format.statement import CHANNEL_PATTERN, SITE_PATTERN, TIME_PATTERN, parse_time
from bundler.format.strict import Reader, encode_json, parse_json

APPROVAL_TYPE: Final = "application/vnd.satchel.approval+json"
PERMIT_TYPE: Final = "application/vnd.satchel.permit+json"
_MAX_SITES: Final = 1_024

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """An operator's consent to one import at one site.

    Attributes:
        statement: digest of the bundle's signed bytes.
        site: the site's name, or empty where it has none.
        at: when it was given, RFC 3339 in UTC.
    """

    statement: Digest
    site: str
    at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Permit:
    """That one older bundle may come in, once.

    Attributes:
        statement: digest of its signed bytes.
        channel: its channel.
        seq: its number there.
        instead_of: the highest number that the site has accepted there.
        audience: site names, or ``("*",)``.
        issued: when it was made, RFC 3339 in UTC.
        expires: when it ends.
    """

    statement: Digest
    channel: str
    seq: int
    instead_of: int
    audience: tuple[str, ...]
    issued: str
    expires: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedPermit:
    """A permit whose signatures were enough.

    Attributes:
        permit: what it says.
        digest: of its signed bytes; it counts once.
        signed_by: the keys that signed.
    """

    permit: Permit
    digest: Digest
    signed_by: frozenset[KeyId]


def approve(approval: Approval, keys: Iterable[Signer]) -> bytes:
    """The envelope of an approval, signed."""
    members = {"approves": str(approval.statement), "site": approval.site, "at": approval.at}
    empty = Envelope(payload_type=APPROVAL_TYPE, payload=encode_json(members), signatures=())
    return encode(add_signatures(empty, keys))


def verify_approval(
    data: bytes, role: KeyRole, *, statement: Digest, site: str
) -> frozenset[KeyId]:
    """The approvers who consented to exactly this import.

    Args:
        data: an envelope.
        role: the approvers; its threshold is not looked at.
        statement: what is to be imported.
        site: where.

    Raises:
        FormatError: it is malformed.
        TrustError: no approver signed it.
        OtherConsentError: it approves something else.
    """
    envelope = parse(data, payload_type=APPROVAL_TYPE, max_payload_bytes=MAX_STRING_BYTES)
    signed_by = check_role(envelope, KeyRole(keys=role.keys, threshold=1))
    found = _read(envelope.payload, _approval)
    if (found.statement, found.site) != (statement, site):
        raise OtherConsentError(
            f"approval: expected one of {statement.short()} at {site or 'this site'}, "
            f"found one of {found.statement.short()} at {found.site or 'a site without name'}"
        )
    return signed_by


def permit(value: Permit, keys: Iterable[Signer]) -> bytes:
    """The envelope of a permit, signed."""
    members = {
        "permits": str(value.statement),
        "channel": value.channel,
        "seq": value.seq,
        "instead_of": value.instead_of,
        "audience": list(value.audience),
        "issued": value.issued,
        "expires": value.expires,
    }
    empty = Envelope(payload_type=PERMIT_TYPE, payload=encode_json(members), signatures=())
    return encode(add_signatures(empty, keys))


def verify_permit(data: bytes, role: KeyRole) -> VerifiedPermit:
    """A permit that enough keys of a root's role ``rollback`` signed.

    Raises:
        FormatError: it is malformed.
        TrustError: too few keys of the role signed it.
    """
    envelope = parse(data, payload_type=PERMIT_TYPE, max_payload_bytes=MAX_STRING_BYTES)
    signed_by = check_role(envelope, role)
    return VerifiedPermit(
        permit=parse_permit(envelope.payload),
        digest=Digest.of(envelope.payload),
        signed_by=signed_by,
    )


def parse_permit(payload: bytes) -> Permit:
    """Read the payload of a permit's envelope. Only `verify_permit` makes the result trusted.

    Raises:
        FormatError: it is malformed.
    """
    return _read(payload, _permit)


def _read(payload: bytes, read: Callable[[Reader], T]) -> T:
    with Reader(parse_json(payload, max_bytes=MAX_STRING_BYTES), "", error=ConsentError) as reader:
        return read(reader)


def _approval(reader: Reader) -> Approval:
    return Approval(
        statement=reader.digest("approves"),
        site=reader.text("site", pattern=f"(?:{SITE_PATTERN})?", empty=True),
        at=_time(reader, "at"),
    )


def _permit(reader: Reader) -> Permit:
    return Permit(
        statement=reader.digest("permits"),
        channel=reader.text("channel", pattern=CHANNEL_PATTERN),
        seq=reader.integer("seq", at_least=1),
        instead_of=reader.integer("instead_of", at_least=1),
        audience=reader.items(
            "audience",
            lambda inner, name: inner.text(name, pattern=SITE_PATTERN),
            at_least=1,
            at_most=_MAX_SITES,
        ),
        issued=_time(reader, "issued"),
        expires=_time(reader, "expires"),
    )


def _time(reader: Reader, name: str) -> str:
    text = reader.text(name, pattern=TIME_PATTERN)
    try:
        parse_time(text)
    except ValueError:
        reader.refuse(name, "a time that exists", text)
    return text
