"""A directory of trust roots: a chain of finished ones, and at most one draft after it.

Rules:
 * a finished root is never changed, except that more signatures may come;
 * a draft loses its signatures when it is changed;
 * what readers would refuse is not written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from bundler.errors import PackError
from bundler.format import envelope, fsio
from bundler.format.chain import (
    ROOT_PAYLOAD_TYPE,
    VerifiedRoot,
    check_follows,
    file_name,
    parse_root_envelope,
    verify_first,
    verify_next,
)
from bundler.format.digest import Digest
from bundler.format.envelope import Envelope
from bundler.format.errors import MissingBlobError, TrustError
from bundler.format.keys import KeyId, PublicKey, Signer
from bundler.format.limits import MAX_ROOT_ENVELOPE_BYTES, MAX_ROOT_VERSIONS
from bundler.format.root import BUNDLE_ROLE, Role, Root, encode_root, parse_root

TOP: str = "root"
"""The role that signs roots."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A root that not enough keys have signed yet."""

    root: Root
    envelope: Envelope
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Roots:
    """What a directory of roots holds.

    Attributes:
        path: the directory.
        chain: finished roots from version 1, each verified by the one before.
        draft: the one after them, if it is begun.
    """

    path: Path
    chain: tuple[VerifiedRoot, ...]
    draft: Draft | None

    @property
    def newest(self) -> Root:
        """The draft, else the last finished root."""
        return self.draft.root if self.draft else self.chain[-1].root


def open_roots(path: Path) -> Roots:
    """Read a directory of roots; empty where nothing was begun.

    Raises:
        PackError: there is no such directory.
        FormatError: a file is malformed.
        TrustError: a finished root does not follow from the one before.
        MediumError: a file cannot be read.
    """
    if not path.is_dir():
        raise PackError(f"{path}: expected a directory of roots, found none")
    chain: list[VerifiedRoot] = []
    for version in range(1, MAX_ROOT_VERSIONS + 1):
        data = _read(path, version)
        if data is None:
            break
        try:
            chain.append(verify_next(chain[-1], data) if chain else verify_first(data))
        except TrustError as error:
            if _read(path, version + 1) is not None:
                raise
            found = parse_root_envelope(data)
            root = parse_root(found.payload)
            draft = Draft(root=root, envelope=found, reason=str(error))
            return Roots(path=path, chain=tuple(chain), draft=draft)
    return Roots(path=path, chain=tuple(chain), draft=None)


def _read(path: Path, version: int) -> bytes | None:
    try:
        return fsio.read_bounded(path / file_name(version), max_bytes=MAX_ROOT_ENVELOPE_BYTES)
    except MissingBlobError:
        return None


def begin(
    path: Path, keys: Iterable[PublicKey], *, threshold: int, issued: str, expires: str
) -> Roots:
    """Write version 1 as a draft.

    Raises:
        PackError: the directory holds roots already.
        RootError: the threshold does not fit the keys.
        BundleError: it cannot be written.
    """
    path.mkdir(parents=True, exist_ok=True)
    roots = open_roots(path)
    if roots.chain or roots.draft:
        raise PackError(
            f"{path}: expected no root, found version {roots.newest.version}",
            hint="change it with satchel-bundle root add-key, rotate or revoke",
        )
    by_id = {key.key_id: key for key in keys}
    root = Root(
        version=1,
        issued=issued,
        expires=expires,
        keys=tuple(by_id[key_id] for key_id in sorted(by_id)),
        root=Role(key_ids=tuple(sorted(by_id)), threshold=threshold),
    )
    return _write(roots, root)


def change(roots: Roots, edit: Callable[[Root], Root], *, issued: str) -> Roots:
    """Change the draft, or begin the next one from the last finished root.

    Raises:
        PackError: there is no root yet.
        FormatError: the result is no root a reader would take.
        RootChainError: it does not follow from the last finished one.
        BundleError: it cannot be written.
    """
    if not roots.chain and roots.draft is None:
        raise PackError(
            f"{roots.path}: expected a root, found none", hint="satchel-bundle root init"
        )
    base = roots.newest
    version = base.version if roots.draft else base.version + 1
    return _write(roots, _tidy(edit(replace(base, version=version, issued=issued))))


def sign(roots: Roots, keys: Iterable[Signer]) -> Roots:
    """Add signatures to the draft, or to the last finished root.

    Raises:
        PackError: there is no root yet, or a key has nothing to say about it.
        BundleError: it cannot be written.
    """
    if not roots.chain and roots.draft is None:
        raise PackError(
            f"{roots.path}: expected a root, found none", hint="satchel-bundle root init"
        )
    opened = roots.draft.envelope if roots.draft else parse_root_envelope(roots.chain[-1].data)
    wanted = set(roots.newest.root.key_ids)
    if len(roots.chain) >= 1:
        wanted |= set(roots.chain[-1].root.root.key_ids)
    keys = tuple(keys)
    for key in keys:
        if key.public_key.key_id not in wanted:
            raise PackError(
                f"key {key.public_key.key_id[:12]}: expected a root key, found another",
                hint="satchel-bundle root show lists the keys that sign roots",
            )
    signed = envelope.add_signatures(opened, keys)
    path = roots.path / file_name(roots.newest.version)
    fsio.atomic_write(path, envelope.encode(signed))
    return open_roots(roots.path)


def with_role_key(
    root: Root, name: str, key: PublicKey, *, threshold: int | None, models: tuple[str, ...]
) -> Root:
    """A root with a key in a role; the role is made where there is none."""
    old = _role(root, name) or Role(key_ids=(), threshold=1)
    shown = (models or old.models or ("*",)) if name.startswith(BUNDLE_ROLE) else ()
    role = Role(
        key_ids=tuple(sorted({*old.key_ids, key.key_id})),
        threshold=threshold or old.threshold,
        models=shown,
    )
    return _with_role(replace(root, keys=(*root.keys, key)), name, role)


def with_key_replaced(root: Root, name: str, old: KeyId, new: PublicKey) -> Root:
    """A root in which a new key stands where an old one stood in a role.

    Raises:
        PackError: the old key is not in the role.
    """
    role = _role(root, name)
    if role is None or old not in role.key_ids:
        raise PackError(f"role {name}: expected key {old[:12]} in it, found none")
    left = {one for one in role.key_ids if one != old}
    key_ids = tuple(sorted({*left, new.key_id}))
    changed = replace(root, keys=(*root.keys, new))
    return _with_role(changed, name, replace(role, key_ids=key_ids))


def without_key(root: Root, which: str) -> tuple[Root, KeyId]:
    """A root in which a key is in no role.

    Raises:
        PackError: no key or several match, or a role would fall below its threshold.
    """
    key_id = find_key(root, which)
    for name in (TOP, *root.roles):
        role = _role(root, name)
        if role is None or key_id not in role.key_ids:
            continue
        left = tuple(one for one in role.key_ids if one != key_id)
        if len(left) < role.threshold:
            raise PackError(
                f"role {name}: expected {role.threshold} keys, {len(left)} would be left",
                hint="add another key first: satchel-bundle root add-key",
            )
        root = _with_role(root, name, replace(role, key_ids=left))
    return root, key_id


def find_key(root: Root, which: str) -> KeyId:
    """The key of an id, or of its first eight digits.

    Raises:
        PackError: no key or several match.
    """
    least = 8
    found = [
        key.key_id for key in root.keys if len(which) >= least and key.key_id.startswith(which)
    ]
    if len(found) != 1:
        raise PackError(f"key: expected the id of one key of the root, found {len(found)}")
    return found[0]


def revoked(
    root: Root, *, keys: Iterable[KeyId], digests: Iterable[Digest], floors: dict[str, int]
) -> Root:
    """A root that revokes keys and bundles, and raises floors of sequence numbers."""
    raised = {**root.min_seq}
    for channel, floor in floors.items():
        raised[channel] = max(floor, raised.get(channel, 1))
    return replace(
        root,
        revoked_keys=root.revoked_keys | frozenset(keys),
        revoked_digests=root.revoked_digests | frozenset(digests),
        min_seq=raised,
    )


def _role(root: Root, name: str) -> Role | None:
    return root.root if name == TOP else root.roles.get(name)


def _with_role(root: Root, name: str, role: Role) -> Root:
    if name == TOP:
        return replace(root, root=role)
    return replace(root, roles={**root.roles, name: role})


def _tidy(root: Root) -> Root:
    """Only keys that a role names, each once, in order."""
    used = {key_id for role in (root.root, *root.roles.values()) for key_id in role.key_ids}
    by_id = {key.key_id: key for key in root.keys if key.key_id in used}
    return replace(root, keys=tuple(by_id[key_id] for key_id in sorted(by_id)))


def _write(roots: Roots, root: Root) -> Roots:
    payload = encode_root(root)
    parse_root(payload)  # what a reader refuses is not written
    if roots.chain:
        check_follows(roots.chain[-1].root, root)
    unsigned = Envelope(payload_type=ROOT_PAYLOAD_TYPE, payload=payload, signatures=())
    fsio.atomic_write(roots.path / file_name(root.version), envelope.encode(unsigned))
    return open_roots(roots.path)
