"""Whom this site trusts, and what it accepted before.

Rules:
 * a key counts only if an operator added it here and nobody revoked it here;
 * per channel the highest accepted sequence number never falls; an older bundle needs the
   operator's typed consent, each time;
 * one sequence number stands for one content for ever;
 * a sequence number may not leap: a thief of a key could otherwise lock the channel;
 * once a trust root is pinned, its roles decide instead of the keys added here; a key revoked
   here counts for nothing all the same;
 * the latest signed time that was accepted is a lower bound of the present.

Pure: `appliance.policyfile` keeps the policy on disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta

from appliance.errors import (
    ExpiredError,
    KeyRefusedError,
    NobodyTrustedError,
    OlderBundleError,
    RequestError,
    RevokedBundleError,
    SequenceJumpError,
    SequenceReuseError,
    WrongSiteError,
)
from bundler.format.chain import VerifiedRoot
from bundler.format.digest import Digest
from bundler.format.envelope import KeyRole
from bundler.format.keys import KeyId, PublicKey
from bundler.format.statement import format_time, parse_time

MAX_SEQUENCE_STEP = 10_000
"""How far ahead of the last accepted number the next may be (threat 6, fast-forward)."""
MAX_CLOCK_STEP = timedelta(days=400)
"""How far one bundle moves the lower bound of the present (threat 23)."""
EVERYBODY = "*"
"""An audience that names every site."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedKey:
    """A key an operator added, under the label they gave it."""

    label: str
    key: PublicKey
    added_at: str

    @property
    def key_id(self) -> KeyId:
        """Id of the key itself."""
        return self.key.key_id


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustPolicy:
    """The state of trust.

    Attributes:
        keys: in the order they were added.
        threshold: how many of them must have signed a bundle.
        revoked: key ids that may never be added again.
        accepted: per channel, each accepted sequence number and the digest of its statement.
        root: the trust root in force, if one was pinned.
        clock: the latest accepted signed time, RFC 3339 in UTC; empty before the first.
        approvers: operators who may approve an import, where no root names them.
        approvals: how many of them have to; 0 for none.
        permits: digests of permits that let an older bundle in; each counts once.
    """

    keys: tuple[TrustedKey, ...] = ()
    threshold: int = 1
    revoked: frozenset[KeyId] = frozenset()
    accepted: Mapping[str, Mapping[int, Digest]] = field(default_factory=dict)
    root: VerifiedRoot | None = None
    clock: str = ""
    approvers: tuple[TrustedKey, ...] = ()
    approvals: int = 0
    permits: frozenset[Digest] = frozenset()

    def active_keys(self) -> Mapping[KeyId, PublicKey]:
        """The keys that count.

        Raises:
            NobodyTrustedError: there are none.
        """
        active = {key.key_id: key.key for key in self.keys if key.key_id not in self.revoked}
        if not active:
            raise NobodyTrustedError(
                "no key is trusted here yet",
                hint="compare the key's words with its owner, then: satchel trust add KEY.pub",
            )
        return active

    def channel_roles(self, *, min_threshold: int = 1) -> Mapping[str, KeyRole]:
        """Channel → whose signatures count, by the pinned root; empty without one.

        Args:
            min_threshold: a floor of this site, whatever the root says.
        """
        if self.root is None:
            return {}
        roles = {}
        for channel, role in self.root.root.channels().items():
            keys = self.root.root.key_role(role).keys
            kept = {key_id: key for key_id, key in keys.items() if key_id not in self.revoked}
            roles[channel] = KeyRole(keys=kept, threshold=max(role.threshold, min_threshold))
        return roles

    def labels(self) -> Mapping[KeyId, str]:
        """What the operator calls each key; keys of the root that nobody named go by words."""
        named = {key.key_id: key.label for key in (*self.approvers, *self.keys)}
        of_root = self.root.root.keys if self.root else ()
        return {key.key_id: key.words() for key in of_root} | named

    def counted(self, channel: str) -> Mapping[int, Digest]:
        """The accepted numbers of a channel; those of revoked bundles do not count."""
        revoked = self.root.root.revoked_digests if self.root else frozenset()
        accepted = self.accepted.get(channel, {})
        return {seq: digest for seq, digest in accepted.items() if digest not in revoked}

    def highest(self, channel: str) -> int | None:
        """The highest sequence number that counts on a channel."""
        return max(self.counted(channel), default=None)

    def present(self, now: str) -> str:
        """The present as far as is known: the clock, but never before a signed time."""
        return max(now, self.clock)

    def with_key(self, key: PublicKey, *, label: str, added_at: str) -> TrustPolicy:
        """The policy with one key more; a key that is there takes the new label.

        Raises:
            KeyRefusedError: the key was revoked here.
            RequestError: the label is empty, too long, or another key has it.
        """
        return replace(self, keys=self._with(self.keys, key, label, added_at))

    def with_approver(self, key: PublicKey, *, label: str, added_at: str) -> TrustPolicy:
        """The policy with one approver more; raises as `with_key`."""
        return replace(self, approvers=self._with(self.approvers, key, label, added_at))

    def _with(
        self, keys: tuple[TrustedKey, ...], key: PublicKey, label: str, added_at: str
    ) -> tuple[TrustedKey, ...]:
        if key.key_id in self.revoked:
            raise KeyRefusedError(f"key {key.key_id[:12]} was revoked at this site")
        if not label or len(label) > 64 or not label.isprintable():  # noqa: PLR2004 - a screen column
            raise RequestError(f"label: expected 1 to 64 printable characters, found {label!r}")
        others = tuple(other for other in keys if other.key_id != key.key_id)
        if any(other.label == label for other in others):
            raise RequestError(
                f"label {label!r} belongs to another key", hint="choose one with --label"
            )
        return (*others, TrustedKey(label=label, key=key, added_at=added_at))

    def without_approver(self, which: str) -> TrustPolicy:
        """The policy without the approver of this label or id.

        Raises:
            RequestError: no key or several match, or too few would be left.
        """
        gone = _named(self.approvers, which)
        left = tuple(key for key in self.approvers if key is not gone)
        return replace(self, approvers=left).with_approvals(self.approvals)

    def with_approvals(self, number: int) -> TrustPolicy:
        """The policy in which so many approvers have to approve an import.

        Raises:
            RequestError: it is negative, or there are not that many approvers.
        """
        if not 0 <= number <= len(self._approver_keys()):
            raise RequestError(
                f"approvals: expected 0 to {len(self._approver_keys())} (the number of "
                f"approvers), found {number}",
                hint="add approvers with: satchel trust approver KEY.pub",
            )
        return replace(self, approvals=number)

    def _approver_keys(self) -> Mapping[KeyId, PublicKey]:
        """Those of the root's role ``approver`` where it has one, else those added here."""
        role = self.root.root.roles.get("approver") if self.root else None
        if self.root is not None and role is not None:
            keys = dict(self.root.root.key_role(role).keys)
        else:
            keys = {key.key_id: key.key for key in self.approvers}
        return {key_id: key for key_id, key in keys.items() if key_id not in self.revoked}

    def approver_role(self) -> KeyRole | None:
        """Who may approve an import, and how many have to; ``None`` where nobody has to."""
        role = self.root.root.roles.get("approver") if self.root else None
        needed = max(self.approvals, role.threshold if role else 0)
        return KeyRole(keys=self._approver_keys(), threshold=needed) if needed else None

    def rollback_role(self) -> KeyRole | None:
        """Who may permit an older bundle; ``None`` where a word of the operator is enough."""
        role = self.root.root.roles.get("rollback") if self.root else None
        if self.root is None or role is None:
            return None
        keys = self.root.root.key_role(role).keys
        kept = {key_id: key for key_id, key in keys.items() if key_id not in self.revoked}
        return KeyRole(keys=kept, threshold=role.threshold)

    def newest(self, channel: str) -> int:
        """The number that a bundle of a channel must not be below; 0 before the first."""
        floor = self.root.root.min_seq.get(channel, 0) if self.root else 0
        return max(floor, self.highest(channel) or 0)

    def without_key(self, which: str, *, revoke: bool) -> tuple[TrustPolicy, TrustedKey]:
        """The policy without the key of this label or id (at least its first eight digits).

        Returns:
            The policy and the key that is gone.

        Raises:
            RequestError: no key or several match.
        """
        gone = _named(self.keys, which)
        left = tuple(key for key in self.keys if key is not gone)
        revoked = self.revoked | {gone.key_id} if revoke else self.revoked
        return replace(self, keys=left, revoked=revoked), gone

    def with_threshold(self, threshold: int) -> TrustPolicy:
        """The policy with another threshold.

        Raises:
            RequestError: it is below one, or there are not that many keys.
        """
        if not 1 <= threshold <= max(1, len(self.keys)):
            raise RequestError(
                f"threshold: expected 1 to {max(1, len(self.keys))} (the number of trusted keys), "
                f"found {threshold}"
            )
        return replace(self, threshold=threshold)

    def check_sequence(
        self,
        channel: str,
        seq: int,
        statement: Digest,
        *,
        allow_rollback: str = "",
        permitted: bool = False,
    ) -> None:
        """Refuse what contradicts earlier imports.

        Args:
            channel: the bundle's channel.
            seq: its number there.
            statement: digest of the signed bytes.
            allow_rollback: ``channel:seq`` as the operator typed it, or empty.
            permitted: a permit lets it in although it is older.

        Raises:
            RevokedBundleError: the root revoked this statement.
            SequenceReuseError: this number was accepted with other content.
            OlderBundleError: the root's floor is higher, or a higher one was accepted and the
                operator did not consent.
            SequenceJumpError: it is more than 10 000 ahead.
        """
        self._check_root(channel, seq, statement, permitted=permitted)
        accepted = self.counted(channel)
        highest = self.highest(channel)
        if seq in accepted and accepted[seq] != statement:
            raise SequenceReuseError(
                f"channel {channel}: sequence {seq} was accepted before with other content",
                hint="two bundles were signed under one number; ask who signed the second",
            )
        if highest is None:
            return
        if seq < highest and not permitted and allow_rollback != f"{channel}:{seq}":
            raise OlderBundleError(
                f"channel {channel}: expected sequence {highest} or later, found {seq}",
                hint=f"to install the older one all the same: --allow-rollback {channel}:{seq}",
            )
        if seq > highest + MAX_SEQUENCE_STEP:
            raise SequenceJumpError(
                f"channel {channel}: expected a sequence of at most "
                f"{highest + MAX_SEQUENCE_STEP}, found {seq}",
                hint="a number this far ahead would lock the channel; ask who signed it",
            )

    def _check_root(self, channel: str, seq: int, statement: Digest, *, permitted: bool) -> None:
        if self.root is None:
            return
        if statement in self.root.root.revoked_digests:
            raise RevokedBundleError(
                f"bundle {statement.short()}: expected one that counts, found a revoked one",
                hint=f"trust root {self.root.root.version} revokes it; ask for a newer bundle",
            )
        floor = self.root.root.min_seq.get(channel, 0)
        if seq < floor and not permitted:
            raise OlderBundleError(
                f"channel {channel}: expected sequence {floor} or later, found {seq}",
                hint=f"trust root {self.root.root.version} lets nothing older in",
            )

    def accept(
        self,
        channel: str,
        seq: int,
        statement: Digest,
        *,
        issued: str = "",
        permit: Digest | None = None,
    ) -> TrustPolicy:
        """The policy after this bundle was accepted.

        Args:
            channel: the bundle's channel.
            seq: its number there.
            statement: digest of the signed bytes.
            issued: its signed time; moves the clock's lower bound, the first time only.
            permit: what let it in although it is older; it is used up.
        """
        known = self.accepted.get(channel, {}).get(seq) == statement
        channels = {name: dict(numbers) for name, numbers in self.accepted.items()}
        channels.setdefault(channel, {})[seq] = statement
        clock = self.clock if known else ratchet(self.clock, issued)
        permits = self.permits | {permit} if permit else self.permits
        return replace(self, accepted=channels, clock=clock, permits=permits)


def _named(keys: tuple[TrustedKey, ...], which: str) -> TrustedKey:
    """The key of this label or id (at least its first eight digits)."""
    least = 8
    found = [
        key
        for key in keys
        if key.label == which or (len(which) >= least and key.key_id.startswith(which))
    ]
    if len(found) != 1:
        raise RequestError(
            f"expected the label or id of one trusted key, found {len(found)} for {which!r}",
            hint="see: satchel trust list",
        )
    return found[0]


def ratchet(clock: str, signed: str) -> str:
    """The lower bound of the present after a signed time was accepted.

    It never falls, and one bundle moves it by at most 400 days, the first one excepted: a lie
    about the date then costs a warning, never a site.

    Args:
        clock: the bound so far, RFC 3339 in UTC, or empty.
        signed: the accepted time, or empty.
    """
    if not clock or signed <= clock:
        return max(clock, signed)
    return min(signed, format_time(parse_time(clock) + MAX_CLOCK_STEP))


def check_audience(audience: tuple[str, ...], site: str) -> None:
    """Refuse a bundle that is meant for other sites.

    Raises:
        WrongSiteError: the audience names neither this site nor everybody.
    """
    if EVERYBODY in audience or (site and site in audience):
        return
    named = ", ".join(audience[:3]) + (", …" if len(audience) > 3 else "")  # noqa: PLR2004
    raise WrongSiteError(
        f"audience: expected {site or 'a bundle for every site'}, found {named or 'nobody'}",
        hint="this site's id is the setting trust.site",
    )


def check_expiry(expires: str | None, *, now: str, policy: str) -> str:
    """Compare the bundle's ``expires`` with the present; both are RFC 3339 in UTC.

    Args:
        expires: the signed date, or ``None``.
        now: the present.
        policy: ``warn`` or ``refuse``; a site without a clock should not be bricked by one.

    Returns:
        A warning, or an empty text.

    Raises:
        ExpiredError: it is past and the policy is ``refuse``.
    """
    if expires is None or now <= expires:
        return ""
    text = f"expires: expected a date after {now}, found {expires}"
    if policy == "refuse":
        raise ExpiredError(text, hint="the setting trust.expired decides; check the clock too")
    return text


def check_pin(current: VerifiedRoot | None, root: VerifiedRoot, *, replace: bool) -> bool:
    """Whether a root that an operator vouches for is still to be put in force.

    Raises:
        KeyRefusedError: another one is in force, and the operator did not say to replace it.
    """
    if current is None:
        return True
    if current.digest == root.digest:
        return False
    if not replace:
        raise KeyRefusedError(
            f"trust root: version {current.root.version} is pinned here, and this is another one",
            hint="newer roots come with bundles; to begin a new chain in person: --replace",
        )
    return True
