"""The chain of trust roots, in which each root is vouched for by the one before.

A root travels in a DSSE envelope. Pure: bytes in, values or refusals out.

Rules:
 * root N + 1 counts only if the threshold of N *and* its own threshold signed it;
 * the version rises by exactly one; revocations and floors of sequence numbers stay;
 * no bytes of a successor are parsed beyond its envelope before the keys of N vouched for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bundler.format.digest import Digest
from bundler.format.envelope import Envelope, check_role
from bundler.format.envelope import parse as parse_envelope
from bundler.format.errors import RootChainError
from bundler.format.limits import MAX_ROOT_BYTES, MAX_ROOT_VERSIONS
from bundler.format.root import Root, parse_root
from bundler.format.volume import ROOT_NAME

ROOT_PAYLOAD_TYPE: Final = "application/vnd.tuf+json"


@dataclass(frozen=True, slots=True)
class VerifiedRoot:
    """A root whose signatures were enough. Made by `verify_first` and `verify_next` only.

    Attributes:
        root: what it says.
        data: the envelope it came in.
        payload: the signed bytes.
    """

    root: Root
    data: bytes
    payload: bytes

    @property
    def digest(self) -> Digest:
        """Digest of the signed bytes: what people compare, and what a site pins."""
        return Digest.of(self.payload)


def file_name(version: int) -> str:
    """Name of a root's file, below ``root/`` and in a directory of roots."""
    return ROOT_NAME.format(version)


def parse_root_envelope(data: bytes) -> Envelope:
    """Read the envelope of a root. Nothing in the result is trusted.

    Raises:
        JsonError: not strict JSON.
        EnvelopeError: not an envelope of a root.
    """
    return parse_envelope(data, payload_type=ROOT_PAYLOAD_TYPE, max_payload_bytes=MAX_ROOT_BYTES)


def verify_first(data: bytes, *, digest: Digest | None = None) -> VerifiedRoot:
    """A root that people vouch for: pinned by its digest, signed by its own threshold.

    Args:
        data: the envelope.
        digest: what its payload must have, once it is pinned.

    Raises:
        FormatError: it is malformed.
        RootChainError: it is another root than the pinned one.
        TrustError: its own threshold did not sign it.
    """
    envelope = parse_root_envelope(data)
    if digest is not None and Digest.of(envelope.payload) != digest:
        raise RootChainError(
            f"trust root: expected {digest.short()}, found {Digest.of(envelope.payload).short()}"
        )
    root = parse_root(envelope.payload)
    check_role(envelope, root.key_role(root.root))
    return VerifiedRoot(root, data, envelope.payload)


def verify_next(current: VerifiedRoot, data: bytes) -> VerifiedRoot:
    """The successor of a root.

    Raises:
        FormatError: it is malformed.
        RootChainError: its version does not follow, or it takes a revocation or a floor back.
        TrustError: the threshold of the current root or its own did not sign it.
    """
    envelope = parse_root_envelope(data)
    check_role(envelope, current.root.key_role(current.root.root))
    root = parse_root(envelope.payload)
    check_follows(current.root, root)
    check_role(envelope, root.key_role(root.root))
    return VerifiedRoot(root, data, envelope.payload)


def walk(current: VerifiedRoot, read: Callable[[int], bytes | None]) -> tuple[VerifiedRoot, ...]:
    """Every root after the current one, each verified by the one before; often none.

    Args:
        current: where to begin.
        read: the envelope of a version, or ``None`` where there is none.

    Raises:
        BundleError: as `verify_next` says it; nothing of the chain may be kept then.
    """
    found: list[VerifiedRoot] = []
    for version in range(current.root.version + 1, MAX_ROOT_VERSIONS + 1):
        data = read(version)
        if data is None:
            break
        current = verify_next(current, data)
        found.append(current)
    return tuple(found)


def check_follows(old: Root, new: Root) -> None:
    """Refuse a root that does not continue the one before it, whoever signed it.

    Raises:
        RootChainError: its version is not the next, or it takes a revocation or a floor back.
    """
    if new.version != old.version + 1:
        raise RootChainError(f"trust root: expected version {old.version + 1}, found {new.version}")
    if not old.revoked_keys <= new.revoked_keys:
        raise RootChainError(f"trust root {new.version}: expected to keep every revoked key")
    if not old.revoked_digests <= new.revoked_digests:
        raise RootChainError(f"trust root {new.version}: expected to keep every revoked bundle")
    for channel, floor in old.min_seq.items():
        if new.min_seq.get(channel, 0) < floor:
            raise RootChainError(
                f"trust root {new.version}: min_seq of {channel}: expected at least {floor}, "
                f"found {new.min_seq.get(channel, 0)}"
            )
