"""Trust updates: newer roots that come without a bundle, on a medium or on paper.

Rules:
 * every root is vouched for by the one before it, beginning with the one that is pinned here;
 * the whole chain is verified before anything is kept;
 * an update that holds nothing newer changes nothing, and is no error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from appliance.errors import NobodyTrustedError
from appliance.journal import Journal
from appliance.policyfile import adopt_root, load_policy
from appliance.store import Store
from appliance.trust import TrustPolicy
from bundler.format.chain import VerifiedRoot, walk

ReadRoot = Callable[[int], bytes | None]
"""Version → the envelope of that root, or ``None``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Updated:
    """What an update did.

    Attributes:
        before: the root that was in force.
        roots: those that followed, in order; the last one is in force now. Often none.
    """

    before: VerifiedRoot
    roots: tuple[VerifiedRoot, ...]

    @property
    def now(self) -> VerifiedRoot:
        """The root in force."""
        return self.roots[-1] if self.roots else self.before


def check_update(policy: TrustPolicy, read: ReadRoot) -> Updated:
    """What an update would do; nothing is written.

    Raises:
        NobodyTrustedError: no root is pinned here, so none can follow.
        FormatError: a root is malformed.
        TrustError: a root does not follow from the one before.
        MediumError: the medium cannot be read.
    """
    if policy.root is None:
        raise NobodyTrustedError(
            "no trust root is pinned here, so none can follow",
            hint="compare the root's words with its owner, then: satchel trust pin",
        )
    return Updated(before=policy.root, roots=walk(policy.root, read))


def update_trust(store: Store, read: ReadRoot, *, source: str) -> Updated:
    """Put the last root of an update in force, durably.

    Args:
        store: whose trust is updated.
        read: gives the roots.
        source: ``medium`` or ``paper``, for the journal.

    Raises:
        BundleError: as `check_update` says it; the old root is in force.
        AppError: likewise, or the store cannot be written.
    """
    with store.writing():
        updated = check_update(load_policy(store.paths.trust), read)
        if updated.roots:
            adopt_root(store.paths.trust, updated.roots)
            Journal(store.paths.journal).record(
                "trust",
                action="root",
                version=updated.now.root.version,
                digest=str(updated.now.digest),
                source=source,
            )
    return updated
