"""Roll a model back to what its name stood for before an import.

Rules:
 * the operator at the machine decides, and the journal says so; nothing on a medium can ask for it;
 * counters do not move: a bundle below the channel's floor or its last number is refused as before;
 * a version whose bundle the trust root has revoked since does not come back;
 * the version that is left is kept in its place, so that there is a way forward again.
"""

from __future__ import annotations

from dataclasses import dataclass

from appliance.errors import RequestError, RevokedBundleError, StoreCorruptError
from appliance.journal import Journal, timestamp
from appliance.model import Origin, parse_image
from appliance.policyfile import load_policy
from appliance.previous import Former, formers
from appliance.store import Store
from appliance.trust import TrustPolicy
from bundler.format.digest import Digest
from bundler.format.name import ModelName

_ID = 12
"""Digits of an id that ``list`` shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A model that a name stands for, or stood for.

    Attributes:
        digest: of its manifest; the first twelve digits are its id.
        origin: where it came from.
        replaced_at: wall time, RFC 3339; empty for the one in force.
    """

    digest: Digest
    origin: Origin
    replaced_at: str = ""

    @property
    def id(self) -> str:
        """The id that ``list`` shows."""
        return self.digest.hex[:_ID]

    @property
    def bundle(self) -> str:
        """The bundle it came in, as channel and number, or empty."""
        found = self.origin.provenance
        return "" if found is None else f"{found.channel} {found.seq}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RolledBack:
    """What a rollback did: from one version to another, and what the operator should know."""

    name: ModelName
    left: Version
    now: Version
    warnings: tuple[str, ...]


def versions(name: ModelName, store: Store) -> tuple[Version, ...]:
    """The model that a name stands for, and those it can be rolled back to, the latest first.

    Raises:
        ModelMissingError: there is no such name.
        StoreAccessError: the store cannot be read.
    """
    spelled = store.canonical(name)
    now = store.manifest(spelled)
    current = Version(digest=Digest.of(now), origin=store.origin(Digest.of(now)))
    return (current, *(_version(one, store) for one in formers(store.paths, spelled, now=now)))


def _version(former: Former, store: Store) -> Version:
    return Version(
        digest=former.digest,
        origin=store.origin(former.digest),
        replaced_at=timestamp(former.replaced_at_s),
    )


def roll_back(name: ModelName, store: Store, *, to: str = "", keep: int = 1) -> RolledBack:
    """Let a name stand for a version it stood for before.

    Args:
        name: the model.
        store: where it is installed.
        to: id of the version, at least six digits of it; empty means the one replaced last.
        keep: how many previous versions stay, the one that is left included.

    Raises:
        ModelMissingError: there is no such name.
        RequestError: no previous version is kept, or none, or several, with that id.
        RevokedBundleError: the trust root revoked the bundle it came in.
        StoreCorruptError: a file of it is missing.
        StoreError: the store cannot be written.
    """
    with store.writing() as writer:
        spelled = store.canonical(name)
        left = versions(spelled, store)[0]
        chosen = _chosen(spelled, store, to)
        version = _version(chosen, store)
        warnings = _check_policy(version, load_policy(store.paths.trust))
        _check_files(chosen, store)
        writer.point(spelled, chosen.manifest, keep=max(1, keep))
        Journal(store.paths.journal).record(
            "rolled-back",
            name=spelled.full(),
            left=str(left.digest),
            now=str(version.digest),
            left_bundle=left.bundle,
            now_bundle=version.bundle,
        )
        return RolledBack(name=spelled, left=left, now=version, warnings=warnings)


def _chosen(name: ModelName, store: Store, to: str) -> Former:
    kept = formers(store.paths, name, now=store.manifest(name))
    if not kept:
        raise RequestError(
            f"{name.short()}: expected a previous version, found none",
            hint="one is kept when an import replaces a model (store.previous)",
        )
    wanted = to.removeprefix("sha256:")
    found = [one for one in kept if one.digest.hex.startswith(wanted)]
    if (to and len(wanted) < 6) or len(found) < 1 or (to and len(found) > 1):  # noqa: PLR2004
        raise RequestError(
            f"to: expected the id of one previous version, found {to!r}",
            hint=f"see: satchel rollback {name.short()} --list",
        )
    return found[0]


def _check_policy(version: Version, policy: TrustPolicy) -> tuple[str, ...]:
    found = version.origin.provenance
    if found is None or policy.root is None:
        return ()
    root = policy.root.root
    if found.statement in {str(digest) for digest in root.revoked_digests}:
        raise RevokedBundleError(
            f"{version.id}: expected a version whose bundle counts, found a revoked one",
            hint=f"trust root {root.version} revokes {found.channel} {found.seq}",
        )
    floor = root.min_seq.get(found.channel, 0)
    if found.seq >= floor:
        return ()
    warning = (
        f"trust root {root.version} lets no bundle of channel {found.channel} below {floor} in; "
        f"this version came in {found.seq}, before that"
    )
    return (warning,)


def _check_files(chosen: Former, store: Store) -> None:
    for part in parse_image(chosen.manifest).parts:
        if not store.has_blob(part):
            raise StoreCorruptError(
                f"blob sha256-{part.digest.hex} of the previous version is missing",
                hint="import the bundle of that version again",
            )
