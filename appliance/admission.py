"""May this bundle come in? Steps 1 to 5 of the import, shared by ``import``, ``verify``, ``pull``.

Nothing here writes, and nothing beyond the envelope is read from the medium.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from appliance.catalogue import Catalogue
from appliance.config import TrustConfig
from appliance.errors import (
    AppError,
    OlderBundleError,
    OtherChannelError,
    RootBehindError,
)
from appliance.policyfile import load_policy
from appliance.trust import TrustPolicy, check_audience, check_expiry
from bundler.format import envelope
from bundler.format.chain import VerifiedRoot, walk
from bundler.format.consent import VerifiedPermit
from bundler.format.digest import Digest
from bundler.format.envelope import VerifiedManifest
from bundler.format.errors import ChannelRefusedError, FormatError, UnsupportedError
from bundler.format.manifest import Manifest
from bundler.format.name import ModelName
from bundler.format.volume import BundleDirectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """A bundle that passed steps 1 to 5.

    Attributes:
        bundle: where it lies.
        verified: its statement.
        policy: what the site trusts and accepted, installed models included.
        warnings: lines the operator should see.
        permit: what lets it in although it is older.
    """

    bundle: BundleDirectory
    verified: VerifiedManifest
    policy: TrustPolicy
    warnings: tuple[str, ...]
    permit: VerifiedPermit | None = None

    @property
    def manifest(self) -> Manifest:
        """The statement's fields."""
        return self.verified.manifest


def known_policy(catalogue: Catalogue) -> TrustPolicy:
    """What the site trusts, with the bundles of installed models counted as accepted.

    The counter moves after the last name; a crash in between would leave it behind, and an older
    bundle would then be let in. The records of origin close that gap, also when such a model was
    removed meanwhile.
    """
    policy = load_policy(catalogue.paths.trust)
    for origin in catalogue.origins():
        if origin.seq in policy.accepted.get(origin.channel, {}):
            continue
        try:
            policy = policy.accept(origin.channel, origin.seq, Digest.parse(origin.statement))
        except FormatError:
            continue  # a record of origin that was tampered with says nothing
    return policy


def newer_roots(bundle: BundleDirectory, policy: TrustPolicy) -> tuple[VerifiedRoot, ...]:
    """The trust roots of a medium that follow the one in force, each verified by the one before.

    Raises:
        FormatError: one of them is malformed.
        TrustError: one of them does not follow.
        MediumError: the medium cannot be read.
    """
    return walk(policy.root, bundle.read_root) if policy.root else ()


def with_roots(policy: TrustPolicy, roots: Sequence[VerifiedRoot]) -> TrustPolicy:
    """The policy with the last of these roots in force, if there is one."""
    return replace(policy, root=roots[-1]) if roots else policy


def verify_envelope(
    bundle: BundleDirectory, policy: TrustPolicy, config: TrustConfig
) -> VerifiedManifest:
    """Steps 2 to 4: read the envelope once, check its signatures, parse those same bytes.

    With a trust root in force the roles of its channels decide, without one the keys added here.

    Raises:
        FormatError: the envelope or the statement is malformed or unsupported.
        TrustError: the signatures are not enough.
        NobodyTrustedError: no key is trusted here.
        MediumError: the medium cannot be read.
    """
    if policy.root is not None:
        roles = policy.channel_roles(min_threshold=config.min_threshold)
        return envelope.verify_channel(bundle.read_envelope(), roles)
    keys = policy.active_keys()
    # 2. The envelope: bounded, read once, into memory.
    data = bundle.read_envelope()
    # 3. Enough distinct trusted keys; 4. and only then the statement, from the same bytes.
    threshold = max(policy.threshold, config.min_threshold)
    return envelope.verify(data, keys=keys, threshold=threshold)


def check_admission(
    verified: VerifiedManifest,
    policy: TrustPolicy,
    config: TrustConfig,
    *,
    now: str,
    version: str,
    allow_rollback: str = "",
    permit: VerifiedPermit | None = None,
) -> tuple[str, ...]:
    """Step 5: is it for this release and this site, and not older than what was accepted?

    Args:
        verified: the statement.
        policy: as `known_policy` gives it.
        config: site, and what to do with expired bundles.
        now: the present, RFC 3339 in UTC.
        version: of this release, such as ``0.1.0``.
        allow_rollback: ``channel:seq`` as the operator typed it; where the root says who may
            permit an older bundle, that is not enough.
        permit: that lets it in although it is older, from `appliance.permits`.

    Returns:
        Warnings.

    Raises:
        UnsupportedError: it needs a newer release.
        WrongSiteError: it is for other sites.
        ExpiredError: it is past its date and the site refuses such.
        RootBehindError: it asks for a newer trust root.
        ChannelRefusedError: its channel may not install that model.
        RevokedBundleError: the trust root revoked it.
        RolledBackError: its sequence number contradicts earlier imports.
    """
    manifest = verified.manifest
    _check_release(manifest, version)
    info = manifest.bundle
    warnings = list(_check_root(manifest, policy, now))
    now = policy.present(now)
    check_audience(info.audience, config.site)
    strict = policy.root is not None and policy.root.root.expired == "refuse"
    late = check_expiry(info.expires, now=now, policy="refuse" if strict else config.expired)
    _check_order(verified, policy, allow_rollback, permit)
    if permit is not None:
        warnings.append(f"older than {info.channel} {permit.permit.instead_of}, by a permit")
    warnings += [late] if late else []
    if info.refresh_by is not None and now > info.refresh_by:
        warnings.append(f"a newer bundle was due by {info.refresh_by}")
    if manifest.requires.engine is not None:
        warnings.append(f"the bundle asks for engine {manifest.requires.engine} or later")
    return tuple(warnings)


def _check_order(
    verified: VerifiedManifest,
    policy: TrustPolicy,
    allow_rollback: str,
    permit: VerifiedPermit | None,
) -> None:
    info = verified.manifest.bundle
    strict = policy.rollback_role() is not None
    try:
        policy.check_sequence(
            info.channel,
            info.seq,
            verified.digest,
            allow_rollback="" if strict else allow_rollback,
            permitted=permit is not None,
        )
    except OlderBundleError as error:
        if not strict:
            raise
        raise OlderBundleError(
            str(error), hint="the root asks for a permit beside it: satchel-bundle permit"
        ) from error


def _check_root(manifest: Manifest, policy: TrustPolicy, now: str) -> Iterator[str]:
    """What the trust root says of the bundle; yields warnings."""
    if now < policy.clock:
        yield f"the clock says {now}, and a bundle signed at {policy.clock} was accepted before"
    needed = manifest.requires.root_version
    if policy.root is None:
        if needed:
            yield "the bundle brings a trust root; this site has none pinned: satchel trust pin"
        return
    root = policy.root.root
    if needed > root.version:
        raise RootBehindError(
            f"trust root: expected version {needed}, this site has {root.version}",
            hint="the medium lacks root files; copy the bundle again with its root directory",
        )
    role = root.channels()[manifest.bundle.channel]
    for model in manifest.models:
        if not role.allows(model.name.short()):
            raise ChannelRefusedError(
                f"channel {manifest.bundle.channel}: expected a model it may install, "
                f"found {model.name.short()}",
                hint=f"trust root {root.version} lists: {', '.join(role.models)}",
            )
    if policy.present(now) > root.expires:
        yield f"trust root {root.version} was to be renewed by {root.expires}"


def check_owner(
    names: Iterable[ModelName], channel: str, catalogue: Catalogue, *, allowed: str = ""
) -> tuple[str, ...]:
    """Refuse to replace a model of another channel: the first one to install a name owns it.

    Channels count each for itself, so an old genuine bundle of another channel would otherwise
    be a way back.

    Args:
        names: what would be installed.
        channel: of the bundle.
        catalogue: what is installed.
        allowed: a channel that the operator typed: it may take names over, this once.

    Returns:
        Warnings: the names that are taken over.

    Raises:
        OtherChannelError: a name came on another channel.
    """
    taken = []
    for name in names:
        try:
            origin = catalogue.resolve(name).provenance
        except AppError:
            continue
        if origin is None or origin.channel == channel:
            continue
        if allowed != channel:
            raise OtherChannelError(
                f"{name.short()}: expected a bundle of channel {origin.channel}, which it came on, "
                f"found one of channel {channel}",
                hint=f"to let this channel take the name over: --allow-channel {channel}",
            )
        taken.append(f"{name.short()} came on channel {origin.channel}; now it is of {channel}")
    return tuple(taken)


def _check_release(manifest: Manifest, version: str) -> None:
    needed = manifest.requires.appliance
    if needed is not None and _numbers(needed) > _numbers(version):
        raise UnsupportedError(
            f"bundle: expected a release of at most {version}, found one for {needed}",
            hint="update satchel on this machine first",
        )


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version; what follows them (``.dev1``) is not compared."""
    numbers = []
    for part in version.split(".")[:3]:
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)
