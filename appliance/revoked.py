"""Installed models that would not come in any more: their bundle or their keys were revoked since.

A root stops imports, never a site: such a model goes on answering unless the site says otherwise
(`trust.revoked`). It is marked wherever models are shown.
"""

from __future__ import annotations

import threading

from appliance.layout import Paths
from appliance.model import InstalledModel, Provenance
from appliance.policyfile import POLICY_FILE, load_policy
from appliance.trust import TrustPolicy


def why_revoked(origin: Provenance | None, policy: TrustPolicy) -> str:
    """What was revoked of a model, in one sentence; empty where nothing was.

    A key counts as revoked if the root or this site revoked it. One revoked key of several takes
    nothing away while those that are left would be enough.

    Args:
        origin: the bundle it came in; a model that nobody signed cannot be revoked.
        policy: of the site.
    """
    if origin is None:
        return ""
    root = policy.root.root if policy.root else None
    if root and origin.statement in {str(digest) for digest in root.revoked_digests}:
        return f"its bundle {origin.channel} {origin.seq} was revoked by trust root {root.version}"
    gone = policy.revoked | (root.revoked_keys if root else frozenset())
    left = [key for key in origin.signed_by if key not in gone]
    role = root.channels().get(origin.channel) if root else None
    needed = role.threshold if role else policy.threshold
    if len(left) < len(origin.signed_by) and len(left) < needed:
        key = next(key for key in origin.signed_by if key in gone)
        return f"key {key[:12]}, which signed its bundle, was revoked"
    return ""


class Revocations:
    """The policy of a store, read again when its file changes."""

    def __init__(self, paths: Paths) -> None:
        self._directory = paths.trust
        self._lock = threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._policy = TrustPolicy()

    def why(self, model: InstalledModel) -> str:
        """`why_revoked` of a model.

        Raises:
            StoreError: the policy cannot be read.
        """
        return why_revoked(model.provenance, self._current())

    def _current(self) -> TrustPolicy:
        try:
            status = (self._directory / POLICY_FILE).stat()
        except FileNotFoundError:
            return TrustPolicy()
        stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
        with self._lock:
            if stamp != self._seen:
                self._policy = load_policy(self._directory)
                self._seen = stamp
            return self._policy
