"""What a trust root says: who may sign what, what is revoked, and how that is written.

A root is a TUF 1.0 Root with our roles in the top-level member ``satchel``, which TUF's tools
keep and ignore. Nothing here is trusted: `bundler.format.chain` says which roots count.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast

from bundler.format.digest import Digest
from bundler.format.envelope import KeyRole
from bundler.format.errors import KeyFileError, RootError
from bundler.format.keys import KeyId, PublicKey
from bundler.format.limits import (
    MAX_CHANNELS,
    MAX_REVOKED,
    MAX_ROOT_BYTES,
    MAX_ROOT_KEYS,
    MAX_ROOT_VERSIONS,
)
from bundler.format.statement import CHANNEL_PATTERN, TIME_PATTERN, parse_time
from bundler.format.strict import Reader, encode_json, parse_json

SPEC_VERSION: Final = "1.0.31"
BUNDLE_ROLE: Final = "bundle:"
OTHER_ROLES: Final = ("rollback", "approver", "device-ca")
EVERY_MODEL: Final = "*"
_TUF_ROLES: Final = ("snapshot", "targets", "timestamp")
_MODEL_PATTERN: Final = r"[A-Za-z0-9][A-Za-z0-9._/:-]{0,255}\*?|\*"
_KEY_ID_PATTERN: Final = r"[0-9a-f]{64}"
_RAW_PATTERN: Final = r"[0-9a-f]{64}"
_SPEC_PATTERN: Final = r"1\.\d{1,3}(\.\d{1,3})?"
_MAX_MODELS: Final = 256
_VERSION: Final = 1

Expired = Literal["warn", "refuse"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """One role of a root.

    Attributes:
        key_ids: sorted; each is among the root's keys.
        threshold: how many of them must sign.
        models: what a channel may install: names, beginnings that end in ``*``, or ``*``; empty
            for roles that are no channel's.
    """

    key_ids: tuple[KeyId, ...]
    threshold: int
    models: tuple[str, ...] = ()

    def allows(self, model: str) -> bool:
        """Whether a channel with this role may install a model of this short name."""
        return any(
            model.startswith(pattern[:-1]) if pattern.endswith("*") else model == pattern
            for pattern in self.models
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """What a trust root says.

    Attributes:
        version: 1 and up.
        issued: when it was made, as the statement writes times.
        expires: after this a reader warns.
        keys: every key that a role names.
        root: who may make the next root.
        roles: ``bundle:<channel>``, ``rollback``, ``approver``, ``device-ca``.
        min_seq: channel → the lowest sequence number that may come in.
        revoked_digests: statements that may not come in, and whose numbers do not count.
        revoked_keys: keys that may never be in a role again.
        expired: what to do with bundles past their date.
    """

    version: int
    issued: str
    expires: str
    keys: tuple[PublicKey, ...]
    root: Role
    roles: Mapping[str, Role] = field(default_factory=dict)
    min_seq: Mapping[str, int] = field(default_factory=dict)
    revoked_digests: frozenset[Digest] = frozenset()
    revoked_keys: frozenset[KeyId] = frozenset()
    expired: Expired = "warn"

    def key_role(self, role: Role) -> KeyRole:
        """A role with its keys instead of their ids."""
        by_id = {key.key_id: key for key in self.keys}
        keys = {key_id: by_id[key_id] for key_id in role.key_ids}
        return KeyRole(keys=keys, threshold=role.threshold)

    def channels(self) -> Mapping[str, Role]:
        """Channel → its role."""
        return {
            name.removeprefix(BUNDLE_ROLE): role
            for name, role in self.roles.items()
            if name.startswith(BUNDLE_ROLE)
        }


def parse_root(payload: bytes) -> Root:
    """Read the payload of a root's envelope. Only `chain` makes the result trusted.

    Raises:
        JsonError: not strict JSON, or over 512 KiB.
        RootError: a member is missing, unknown, or contradicts another.
    """
    members = parse_json(payload, max_bytes=MAX_ROOT_BYTES)
    with Reader(members, "", error=RootError) as reader:
        reader.choice("_type", ("root",))
        reader.text("spec_version", pattern=_SPEC_PATTERN)
        reader.boolean("consistent_snapshot")
        version = reader.integer("version", at_least=1, at_most=MAX_ROOT_VERSIONS)
        expires = _time(reader, "expires")
        keys = _keys(reader)
        known = frozenset(key.key_id for key in keys)
        top = reader.object("roles", lambda inner: _tuf_roles(inner, known))
        root = reader.object(
            "satchel",
            lambda inner: _read_satchel(
                inner, known, version=version, expires=expires, keys=keys, top=top
            ),
        )
    used = {key_id for role in (root.root, *root.roles.values()) for key_id in role.key_ids}
    if used & root.revoked_keys:
        raise RootError(
            at="satchel.revoked_keys", expected="no key of a role", found=min(used)[:12]
        )
    if known - used:
        raise RootError(at="keys", expected="keys that a role names", found=min(known - used)[:12])
    return root


def encode_root(root: Root) -> bytes:
    """The payload of a root, canonically; ``parse_root(encode_root(r)) == r``."""
    satchel = {
        "version": _VERSION,
        "issued": root.issued,
        "roles": {name: _encode_role(role) for name, role in root.roles.items()},
        "min_seq": dict(root.min_seq),
        "revoked_digests": sorted(str(one) for one in root.revoked_digests),
        "revoked_keys": sorted(root.revoked_keys),
        "policy": {"expired": root.expired},
    }
    members = {
        "_type": "root",
        "spec_version": SPEC_VERSION,
        "consistent_snapshot": False,
        "version": root.version,
        "expires": root.expires,
        "keys": {
            key.key_id: {
                "keytype": "ed25519",
                "scheme": "ed25519",
                "keyval": {"public": key.raw.hex()},
            }
            for key in root.keys
        },
        "roles": {
            "root": _encode_role(root.root),
            # TUF asks for these three; nobody may sign as one of them.
            **{name: {"keyids": [], "threshold": 1} for name in _TUF_ROLES},
        },
        "satchel": satchel,
    }
    return encode_json(members)


def _encode_role(role: Role) -> dict[str, Any]:
    members: dict[str, Any] = {"keyids": list(role.key_ids), "threshold": role.threshold}
    if role.models:
        members["models"] = list(role.models)
    return members


def _keys(reader: Reader) -> tuple[PublicKey, ...]:
    members = reader.anything("keys")
    if not 1 <= len(members) <= MAX_ROOT_KEYS:
        reader.refuse("keys", f"1 to {MAX_ROOT_KEYS} keys", members)
    with Reader(members, reader.path("keys"), error=RootError) as inner:
        keys = [inner.object(name, _key) for name in members]
    for name, key in zip(members, keys, strict=True):
        if key.key_id != name:
            reader.refuse("keys", f"the key's own id {key.key_id[:12]}", name)
    return tuple(sorted(keys, key=lambda key: key.key_id))


def _key(reader: Reader) -> PublicKey:
    reader.choice("keytype", ("ed25519",))
    reader.choice("scheme", ("ed25519",))
    raw = reader.object("keyval", lambda inner: inner.text("public", pattern=_RAW_PATTERN))
    try:
        return PublicKey(bytes.fromhex(raw))
    except KeyFileError:  # the pattern leaves nothing to refuse; a new scheme might
        reader.refuse("keyval", "an Ed25519 key", raw)


def _tuf_roles(reader: Reader, known: frozenset[KeyId]) -> Role:
    for name in _TUF_ROLES:
        reader.object(name, _nobody)
    return reader.object("root", lambda inner: _role(inner, known))


def _nobody(reader: Reader) -> None:
    reader.items("keyids", Reader.text, at_most=0)
    reader.integer("threshold", at_least=1, at_most=1)


def _role(reader: Reader, known: frozenset[KeyId]) -> Role:
    key_ids = reader.items(
        "keyids",
        lambda inner, name: KeyId(inner.text(name, pattern=_KEY_ID_PATTERN)),
        at_most=MAX_ROOT_KEYS,
        at_least=1,
    )
    if tuple(sorted(set(key_ids))) != key_ids:
        reader.refuse("keyids", "each key once, in order", list(key_ids))
    if not frozenset(key_ids) <= known:
        reader.refuse("keyids", "keys of this root", min(frozenset(key_ids) - known))
    threshold = reader.integer("threshold", at_least=1, at_most=len(key_ids))
    return Role(key_ids=key_ids, threshold=threshold)


def _channel_role(reader: Reader, known: frozenset[KeyId]) -> Role:
    models = reader.items(
        "models",
        lambda inner, name: inner.text(name, pattern=_MODEL_PATTERN, max_bytes=256),
        at_most=_MAX_MODELS,
        at_least=1,
    )
    role = _role(reader, known)
    return Role(key_ids=role.key_ids, threshold=role.threshold, models=models)


def _read_satchel(
    reader: Reader,
    known: frozenset[KeyId],
    *,
    version: int,
    expires: str,
    keys: tuple[PublicKey, ...],
    top: Role,
) -> Root:
    reader.integer("version", at_least=_VERSION, at_most=_VERSION)
    issued = _time(reader, "issued")
    roles = _roles(reader, known)
    digests = reader.items("revoked_digests", Reader.digest, at_most=MAX_REVOKED)
    revoked = reader.items(
        "revoked_keys",
        lambda inner, name: KeyId(inner.text(name, pattern=_KEY_ID_PATTERN)),
        at_most=MAX_REVOKED,
    )
    expired = reader.object("policy", lambda one: one.choice("expired", ("warn", "refuse")))
    return Root(
        version=version,
        issued=issued,
        expires=expires,
        keys=keys,
        root=top,
        roles=roles,
        min_seq=_floors(reader),
        revoked_digests=frozenset(digests),
        revoked_keys=frozenset(revoked),
        expired=cast("Expired", expired),
    )


def _roles(reader: Reader, known: frozenset[KeyId]) -> dict[str, Role]:
    members = reader.anything("roles")
    if len(members) > MAX_CHANNELS:
        reader.refuse("roles", f"at most {MAX_CHANNELS} roles", members)
    found: dict[str, Role] = {}
    with Reader(members, reader.path("roles"), error=RootError) as inner:
        for name in members:
            if name in OTHER_ROLES:
                found[name] = inner.object(name, lambda one: _role(one, known))
            elif re.fullmatch(BUNDLE_ROLE + CHANNEL_PATTERN, name, re.ASCII):
                found[name] = inner.object(name, lambda one: _channel_role(one, known))
    return found


def _floors(reader: Reader) -> dict[str, int]:
    members = reader.anything("min_seq")
    if len(members) > MAX_CHANNELS:
        reader.refuse("min_seq", f"at most {MAX_CHANNELS} channels", members)
    with Reader(members, reader.path("min_seq"), error=RootError) as inner:
        return {
            name: inner.integer(name, at_least=1)
            for name in members
            if re.fullmatch(CHANNEL_PATTERN, name, re.ASCII)
        }


def _time(reader: Reader, name: str) -> str:
    text = reader.text(name, pattern=TIME_PATTERN)
    try:
        parse_time(text)
    except ValueError:
        reader.refuse(name, "a time that exists", text)
    return text
