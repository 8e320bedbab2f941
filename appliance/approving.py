"""Approve an import that waits, and carry it out once enough operators have.

An approval is a signature by an approver's key over the bundle's digest and the site's name: it
says nothing about other bundles, and nothing at other sites.
"""

from __future__ import annotations

from dataclasses import dataclass

from appliance import waiting
from appliance.choice import Wanted
from appliance.errors import KeyRefusedError, RequestError
from appliance.importer import import_bundle
from appliance.journal import Journal
from appliance.policyfile import load_policy
from appliance.receipt import Receipt
from appliance.site import Observer, Request, Site
from appliance.waiting import Waiting
from bundler.format.consent import Approval, approve
from bundler.format.envelope import KeyRole
from bundler.format.keys import KeyId, Signer
from bundler.format.name import ModelName


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How far an import that waits is.

    Attributes:
        waiting: which one.
        approved_by: approvers whose approvals count.
        needed: how many have to.
    """

    waiting: Waiting
    approved_by: frozenset[KeyId]
    needed: int

    @property
    def enough(self) -> bool:
        """Whether it may go on."""
        return len(self.approved_by) >= self.needed


def standings(site: Site) -> tuple[Standing, ...]:
    """Every import that waits.

    Raises:
        StoreError: what waits, or the policy, cannot be read.
    """
    role = load_policy(site.store.paths.trust).approver_role()
    return tuple(_standing(one, role, site) for one in waiting.all_waiting(site.store.paths))


def _standing(one: Waiting, role: KeyRole | None, site: Site) -> Standing:
    if role is None:
        return Standing(waiting=one, approved_by=frozenset(), needed=0)
    approved = waiting.approved_by(
        site.store.paths, one.statement, role, site=site.config.trust.site
    )
    return Standing(waiting=one, approved_by=approved, needed=role.threshold)


def add_approval(which: str, key: Signer, site: Site) -> Standing:
    """Approve an import with a key.

    Raises:
        RequestError: nothing of that name waits.
        KeyRefusedError: the key is no approver's.
        StoreError: the approval cannot be written.
    """
    paths = site.store.paths
    with site.store.writing():
        one = waiting.find(paths, which)
        role = load_policy(paths.trust).approver_role()
        key_id = key.public_key.key_id
        if role is None:
            raise RequestError(
                "approval: expected a site that asks for approvals, found one that does not",
                hint="import it again; nothing waits there",
            )
        if key_id not in role.keys:
            raise KeyRefusedError(
                f"key {key_id[:12]}: expected an approver's, found another",
                hint="see: satchel trust list",
            )
        site_name = site.config.trust.site
        approval = Approval(statement=one.statement, site=site_name, at=site.now)
        waiting.add_approval(paths, one.statement, key_id, approve(approval, [key]))
        standing = _standing(one, role, site)
        Journal(paths.journal).record(
            "approved",
            bundle=one.manifest.bundle.id,
            statement=str(one.statement),
            by=key_id,
            approvals=len(standing.approved_by),
            needed=standing.needed,
        )
        return standing


def reject(which: str, site: Site) -> Waiting:
    """Forget an import that waits; its files go when the store is pruned.

    Raises:
        RequestError: nothing of that name waits.
        StoreError: it cannot be removed.
    """
    with site.store.writing():
        one = waiting.find(site.store.paths, which)
        waiting.forget(site.store.paths, one.statement)
        Journal(site.store.paths.journal).record(
            "rejected", bundle=one.manifest.bundle.id, statement=str(one.statement)
        )
        return one


def go_on(one: Waiting, site: Site, observer: Observer) -> Receipt:
    """Carry out an import that waited: every check again, but nothing from the medium.

    Raises:
        AppError: approvals are missing, or something has changed since.
        BundleError: what was staged is damaged.
    """
    wanted = Wanted(
        models=tuple(ModelName.parse(name) for name in one.asked.models),
        variants=one.asked.variants,
        all_variants=one.asked.all_variants,
    )
    request = Request(
        medium=one.path,
        wanted=wanted,
        allow_rollback=one.asked.allow_rollback,
        allow_channel=one.asked.allow_channel,
    )
    return import_bundle(request, site, observer)
