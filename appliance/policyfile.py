"""The trust policy on disk: one file, and beside it the trust roots it names.

Rules:
 * the file is replaced whole or not at all;
 * a root's file is there before the policy names it, and no other root is written over it;
 * what cannot be read whole is refused: then nobody is trusted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from appliance.errors import StoreCorruptError, store_io
from appliance.trust import TrustedKey, TrustPolicy
from bundler.format import fsio
from bundler.format.chain import VerifiedRoot, verify_first
from bundler.format.digest import Digest
from bundler.format.errors import BundleError, MissingBlobError
from bundler.format.keys import KeyId, PublicKey
from bundler.format.limits import MAX_ROOT_ENVELOPE_BYTES
from bundler.format.statement import format_time, parse_time
from bundler.format.strict import encode_json, parse_json

POLICY_FILE = "policy.json"
_MAX_FILE_BYTES = 4 << 20
_VERSION = 3
_OLDER: dict[int, dict[str, Any]] = {
    1: {"root": None, "clock": "", "approvers": [], "approvals": 0, "permits": []},
    2: {"approvers": [], "approvals": 0, "permits": []},
}
"""Version → what it did not have: 1 knew only pinned keys, 2 no approvers and no permits."""


def load_policy(directory: Path) -> TrustPolicy:
    """Read the policy; none yet means that nobody is trusted.

    Raises:
        StoreCorruptError: the file is damaged; nothing is trusted then.
        StoreAccessError: it cannot be read.
    """
    path = directory / POLICY_FILE
    try:
        try:
            with store_io("read the trust policy"):
                data = fsio.read_bounded(path, max_bytes=_MAX_FILE_BYTES)
        except MissingBlobError:
            return TrustPolicy()
        return _decode(parse_json(data, max_bytes=_MAX_FILE_BYTES), directory)
    except (BundleError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreCorruptError(
            f"trust policy {path}: damaged: {error}",
            hint="restore it from a backup; removing it forgets keys and accepted bundles",
        ) from error


def save_policy(directory: Path, policy: TrustPolicy) -> None:
    """Write the policy durably; the caller holds the store's lock.

    Raises:
        StoreAccessError: it cannot be written; the old one is as it was.
        NoSpaceError: likewise.
    """
    with store_io("write the trust policy"):
        fsio.atomic_write(directory / POLICY_FILE, encode_json(_encode(policy)) + b"\n", mode=0o644)


def adopt_root(directory: Path, roots: Sequence[VerifiedRoot]) -> None:
    """Put the last of these roots in force, durably; the caller holds the store's lock.

    The files come first and the policy names the one in force: a crash in between leaves files
    that nothing refers to, and the next time writes them again.

    Args:
        directory: of the trust policy.
        roots: verified, in order; the earlier ones are kept for the record.

    Raises:
        StoreAccessError: a file cannot be written; the old root is in force.
        NoSpaceError: likewise.
    """
    with store_io("write the trust root"):
        for one in roots:
            fsio.atomic_write(
                directory / _root_file(one.root.version, one.digest), one.data, mode=0o644
            )
    save_policy(directory, replace(load_policy(directory), root=roots[-1]))


def _encode(policy: TrustPolicy) -> dict[str, Any]:
    return {
        "version": _VERSION,
        "threshold": policy.threshold,
        "keys": _encode_keys(policy.keys),
        "approvers": _encode_keys(policy.approvers),
        "approvals": policy.approvals,
        "permits": sorted(str(one) for one in policy.permits),
        "revoked": sorted(policy.revoked),
        "root": policy.root
        and {"version": policy.root.root.version, "digest": str(policy.root.digest)},
        "clock": policy.clock,
        "accepted": {
            channel: {str(seq): str(digest) for seq, digest in numbers.items()}
            for channel, numbers in policy.accepted.items()
        },
    }


def _root_file(version: int, digest: Digest) -> str:
    # The digest keeps chains apart: a replaced root's file is never written over.
    return f"root-{version:06d}-{digest.hex[:16]}.dsse.json"


def _load_root(directory: Path, value: dict[str, Any] | None) -> VerifiedRoot | None:
    if value is None:
        return None
    digest = Digest.parse(value["digest"])
    path = directory / _root_file(value["version"], digest)
    data = fsio.read_bounded(path, max_bytes=MAX_ROOT_ENVELOPE_BYTES)
    return verify_first(data, digest=digest)


def _decode(value: dict[str, Any], directory: Path) -> TrustPolicy:
    if value["version"] in _OLDER:
        value = {**value, **_OLDER[value["version"]], "version": _VERSION}
    if value["version"] != _VERSION:
        raise ValueError(f"version: expected {_VERSION}, found {value['version']!r}")
    threshold = value["threshold"]
    if not isinstance(threshold, int) or isinstance(threshold, bool) or threshold < 1:
        raise ValueError(f"threshold: expected an integer from 1, found {threshold!r}")
    approvals = value["approvals"]
    if not isinstance(approvals, int) or isinstance(approvals, bool) or approvals < 0:
        raise ValueError(f"approvals: expected an integer from 0, found {approvals!r}")
    return TrustPolicy(
        keys=_decode_keys(value["keys"]),
        approvers=_decode_keys(value["approvers"]),
        approvals=approvals,
        permits=frozenset(Digest.parse(text) for text in value["permits"]),
        threshold=threshold,
        revoked=frozenset(KeyId(key_id) for key_id in value["revoked"]),
        accepted={
            channel: {int(seq): Digest.parse(digest) for seq, digest in numbers.items()}
            for channel, numbers in value["accepted"].items()
        },
        root=_load_root(directory, value["root"]),
        clock=_clock(value["clock"]),
    )


def _encode_keys(keys: Sequence[TrustedKey]) -> list[dict[str, str]]:
    return [{"label": key.label, "key": key.key.text(), "added": key.added_at} for key in keys]


def _decode_keys(value: list[dict[str, str]]) -> tuple[TrustedKey, ...]:
    return tuple(
        TrustedKey(label=key["label"], key=PublicKey.parse(key["key"]), added_at=key["added"])
        for key in value
    )


def _clock(text: str) -> str:
    return format_time(parse_time(text)) if text else ""
