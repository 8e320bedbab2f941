"""DSSE envelopes: sign a payload, and verify one before anything in it is read.

Rules:
 * what is verified is what is parsed: one buffer, decoded once;
 * the scheme comes from the trusted key; the key id in the envelope is a hint for wording only;
 * distinct keys are counted, neither key ids nor signatures;
 * `verify` and `verify_channel` are the only makers of a `VerifiedManifest`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final, NoReturn

from bundler.format.digest import Digest
from bundler.format.errors import (
    BadSignatureError,
    ChannelRefusedError,
    EnvelopeError,
    FieldError,
    ThresholdError,
    UnsignedError,
    UntrustedKeyError,
)
from bundler.format.keys import KeyId, PublicKey, Signer
from bundler.format.limits import MAX_ENVELOPE_BYTES, MAX_PAYLOAD_BYTES, MAX_SIGNATURES
from bundler.format.manifest import Manifest
from bundler.format.statement import parse_manifest
from bundler.format.strict import Reader, encode_json, parse_json

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
_MAX_SIGNATURE_BYTES: Final = 8 << 10
"""Ed25519 needs 64; the largest reserved scheme (ML-DSA-87) 4 627."""


class _EnvelopeFieldError(FieldError, EnvelopeError):
    """A member of the envelope is wrong."""

    what = "malformed envelope"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRole:
    """Keys that may vouch for something, and how many of them must.

    Attributes:
        keys: by id; the ids are those of the keys themselves.
        threshold: at least 1.
    """

    keys: Mapping[KeyId, PublicKey]
    threshold: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """One signature: whose it says it is, and the bytes."""

    key_id: KeyId
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A parsed envelope. Its payload is not trusted: only `verify` gives a trusted one."""

    payload_type: str
    payload: bytes
    signatures: tuple[Signature, ...]


@dataclass(frozen=True, slots=True)
class VerifiedManifest:
    """A statement whose signatures were enough. Made in this module and nowhere else.

    Attributes:
        manifest: the statement.
        payload: the very bytes that were signed.
        signed_by: the trusted keys whose signatures verified.
    """

    manifest: Manifest
    payload: bytes
    signed_by: frozenset[KeyId]

    @property
    def digest(self) -> Digest:
        """Digest of the payload: the identity of the bundle, whoever signed it."""
        return Digest.of(self.payload)


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: what is signed."""
    kind = payload_type.encode("utf-8")
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign(payload: bytes, keys: Iterable[Signer]) -> bytes:
    """An envelope around a payload, signed by every key.

    Raises:
        EnvelopeError: the payload is too large.
    """
    empty = Envelope(payload_type=PAYLOAD_TYPE, payload=payload, signatures=())
    return encode(add_signatures(empty, keys))


def add_signatures(envelope: Envelope, keys: Iterable[Signer]) -> Envelope:
    """The envelope with one signature more per key; a key that signed before signs anew.

    Raises:
        EnvelopeError: the payload is too large, or there are too many signatures.
    """
    if len(envelope.payload) > MAX_PAYLOAD_BYTES:
        raise EnvelopeError(
            f"payload: expected at most {MAX_PAYLOAD_BYTES} bytes, found {len(envelope.payload)}"
        )
    message = pae(envelope.payload_type, envelope.payload)
    made = (Signature(key_id=key.public_key.key_id, signature=key.sign(message)) for key in keys)
    return with_signatures(envelope, made)


def with_signatures(envelope: Envelope, signatures: Iterable[Signature]) -> Envelope:
    """The envelope with these signatures more; of one key id the newer one stays. None is judged.

    Raises:
        EnvelopeError: there are too many signatures.
    """
    signed = {one.key_id: one for one in (*envelope.signatures, *signatures)}
    if len(signed) > MAX_SIGNATURES:
        raise EnvelopeError(f"signatures: expected at most {MAX_SIGNATURES}, found {len(signed)}")
    return Envelope(
        payload_type=envelope.payload_type,
        payload=envelope.payload,
        signatures=tuple(signed[key_id] for key_id in sorted(signed)),
    )


def encode(envelope: Envelope) -> bytes:
    """Write an envelope canonically; ``parse(encode(e)) == e``."""
    members = {
        "payload": base64.b64encode(envelope.payload).decode("ascii"),
        "payloadType": envelope.payload_type,
        "signatures": [
            {"keyid": one.key_id, "sig": base64.b64encode(one.signature).decode("ascii")}
            for one in envelope.signatures
        ],
    }
    return encode_json(members, max_string_bytes=MAX_ENVELOPE_BYTES)


def parse(
    data: bytes, *, payload_type: str = PAYLOAD_TYPE, max_payload_bytes: int = MAX_PAYLOAD_BYTES
) -> Envelope:
    """Read an envelope. Nothing in the result is trusted.

    Args:
        data: the bytes of the file.
        payload_type: the only type that is accepted.
        max_payload_bytes: most bytes of payload that are accepted.

    Raises:
        JsonError: not strict JSON, or over 8 MiB.
        EnvelopeError: not a DSSE envelope of that type.
    """
    members = parse_json(
        data, max_bytes=MAX_ENVELOPE_BYTES, max_depth=3, max_string_bytes=MAX_ENVELOPE_BYTES
    )
    with Reader(members, "", error=_EnvelopeFieldError) as reader:
        payload_type = reader.choice("payloadType", (payload_type,))
        payload = _base64(reader, "payload", max_bytes=max_payload_bytes)
        signatures = reader.objects("signatures", read_signature, at_most=MAX_SIGNATURES)
    return Envelope(payload_type=payload_type, payload=payload, signatures=signatures)


def read_signature(reader: Reader) -> Signature:
    """One member of ``signatures``; refuses what is none."""
    return Signature(
        key_id=KeyId(reader.text("keyid", pattern="[0-9a-f]{64}")),
        signature=_base64(reader, "sig", max_bytes=_MAX_SIGNATURE_BYTES),
    )


def _base64(reader: Reader, name: str, *, max_bytes: int) -> bytes:
    encoded = reader.text(name, max_bytes=max_bytes * 4 // 3 + 4)
    try:
        data = base64.b64decode(encoded.encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        reader.refuse(name, "base64", encoded)
    # Unused bits of the last character would give one payload several spellings.
    if base64.b64encode(data).decode("ascii") != encoded:
        reader.refuse(name, "canonical base64", encoded[-8:])
    if len(data) > max_bytes:
        reader.refuse(name, f"at most {max_bytes} bytes", len(data))
    return data


def verify(data: bytes, *, keys: Mapping[KeyId, PublicKey], threshold: int) -> VerifiedManifest:
    """Check the signatures of an envelope, and only then read its statement.

    Args:
        data: the bytes of ``bundle.dsse.json``.
        keys: the trusted keys.
        threshold: how many distinct trusted keys must have signed, at least 1.

    Raises:
        JsonError: the envelope or the statement is not strict JSON.
        EnvelopeError: not an envelope.
        UnsignedError: there is no signature.
        UntrustedKeyError: no signature is by a trusted key.
        BadSignatureError: a signature names a trusted key but does not verify.
        ThresholdError: too few trusted keys signed, or the threshold is below 1.
        ManifestError: the signed statement is malformed.
        UnsupportedError: it needs a newer release.
    """
    envelope = parse(data)
    signed_by = check_role(envelope, KeyRole(keys=keys, threshold=threshold))
    return _verified(envelope, signed_by)


def verify_channel(data: bytes, roles: Mapping[str, KeyRole]) -> VerifiedManifest:
    """Check the signatures of an envelope by the role of its channel.

    The channel stands in the statement, which nobody reads unsigned: so some channel's role must
    be satisfied first, and then the role of the very channel the statement names.

    Args:
        data: the bytes of ``bundle.dsse.json``.
        roles: channel → who may sign for it.

    Raises:
        ChannelRefusedError: nobody may sign for the channel it names.
        BundleError: as `verify` says it.
    """
    if not roles:
        raise ChannelRefusedError("bundle: expected a channel that the root names, found no role")
    envelope = parse(data)
    every = {key_id: key for role in roles.values() for key_id, key in role.keys.items()}
    signed_by = signers(envelope, every)
    if not signed_by:
        check_role(envelope, KeyRole(keys=every, threshold=1))
    # The role that lacks least has to be satisfied; its refusal is the one that helps.
    check_role(envelope, min(roles.values(), key=lambda role: _lacking(role, signed_by)))
    verified = _verified(envelope, signed_by)
    channel = verified.manifest.bundle.channel
    if channel not in roles:
        raise ChannelRefusedError(
            f"channel {channel}: expected one that the root names, found none of this name",
            hint="the root has to give the channel a role: satchel-bundle root add-key",
        )
    return replace(verified, signed_by=check_role(envelope, roles[channel]))


def _verified(envelope: Envelope, signed_by: frozenset[KeyId]) -> VerifiedManifest:
    """The statement of an envelope that enough keys signed: read now, and not before."""
    manifest = parse_manifest(envelope.payload)
    return VerifiedManifest(manifest, envelope.payload, signed_by)


def check_role(envelope: Envelope, role: KeyRole) -> frozenset[KeyId]:
    """Refuse an envelope that too few keys of a role have signed.

    Returns:
        The keys of the role that signed.

    Raises:
        UnsignedError: there is no signature.
        UntrustedKeyError: no signature is by a key of the role.
        BadSignatureError: a signature names such a key but does not verify.
        ThresholdError: too few of them signed, or the threshold is below 1.
    """
    if isinstance(role.threshold, bool) or role.threshold < 1:
        raise ThresholdError(f"threshold: expected an integer from 1, found {role.threshold}")
    signed_by = signers(envelope, role.keys)
    if len(signed_by) < role.threshold:
        _refuse(envelope, role.keys, signed_by, role.threshold)
    return signed_by


def _lacking(role: KeyRole, signed_by: frozenset[KeyId]) -> int:
    return role.threshold - len(signed_by & frozenset(role.keys))


def signers(envelope: Envelope, keys: Mapping[KeyId, PublicKey]) -> frozenset[KeyId]:
    """Ids of the distinct trusted keys that signed, each computed from the key itself."""
    message = pae(envelope.payload_type, envelope.payload)
    trusted = {key.key_id: key for key in keys.values()}
    signed_by: set[KeyId] = set()
    for one in envelope.signatures:
        hinted = trusted.get(one.key_id)
        if hinted is not None and hinted.verify(one.signature, message):
            signed_by.add(hinted.key_id)
            continue
        # The id is a hint: whoever carries the envelope must not be able to hide a signature.
        signed_by.update(
            key.key_id for key in trusted.values() if key.verify(one.signature, message)
        )
    return frozenset(signed_by)


def _refuse(
    envelope: Envelope,
    keys: Mapping[KeyId, PublicKey],
    signed_by: frozenset[KeyId],
    threshold: int,
) -> NoReturn:
    trusted = {key.key_id for key in keys.values()}
    named = [one.key_id for one in envelope.signatures]
    what = "bundle" if envelope.payload_type == PAYLOAD_TYPE else "trust root"
    if not named:
        raise UnsignedError(
            f"{what}: expected a signature, found none", hint="sign it with satchel-bundle sign"
        )
    bad = [key_id for key_id in named if key_id in trusted and key_id not in signed_by]
    if bad:
        raise BadSignatureError(
            f"signature of key {bad[0][:12]}: expected one over this {what}, found another",
            hint=f"the {what} was changed after it was signed; fetch it again from its source",
        )
    if not signed_by:
        raise UntrustedKeyError(
            f"signature: expected one of {len(trusted)} trusted keys, found {named[0][:12]}",
            hint="compare the key's words with its owner before you trust it",
        )
    raise ThresholdError(
        f"signatures: expected {threshold} trusted keys, found {len(signed_by)}",
        hint="another trusted key has to sign: satchel-bundle sign",
    )
