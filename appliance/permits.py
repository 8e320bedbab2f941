"""Permits for older bundles: a root with a role ``rollback`` asks for more than a word typed here.

Rules:
 * a permit names one statement, its channel and number, and what was accepted instead of it;
 * it is for named sites and ends on a day;
 * it counts once, and not at all once something newer than it knew was accepted.
"""

from __future__ import annotations

from appliance.config import TrustConfig
from appliance.errors import ExpiredError
from appliance.trust import TrustPolicy, check_audience
from bundler.format.consent import VerifiedPermit, verify_permit
from bundler.format.envelope import VerifiedManifest
from bundler.format.errors import OtherConsentError
from bundler.format.volume import BundleDirectory


def permit_for(
    bundle: BundleDirectory,
    verified: VerifiedManifest,
    policy: TrustPolicy,
    config: TrustConfig,
    *,
    now: str,
) -> VerifiedPermit | None:
    """The permit that lets an older bundle in; ``None`` where none is needed, or none is there.

    Args:
        bundle: where the permit lies.
        verified: the bundle's statement.
        policy: what was accepted before.
        config: names the site.
        now: the present, RFC 3339 in UTC.

    Raises:
        FormatError: the permit is malformed.
        TrustError: too few keys signed it, or it is for something else, or it was used.
        WrongSiteError: it is for other sites.
        ExpiredError: it has ended.
        MediumError: it cannot be read.
    """
    role = policy.rollback_role()
    info = verified.manifest.bundle
    if role is None or info.seq >= policy.newest(info.channel):
        return None
    data = bundle.read_permit()
    if data is None:
        return None
    found = verify_permit(data, role)
    permit = found.permit
    if (permit.statement, permit.channel, permit.seq) != (
        verified.digest,
        info.channel,
        info.seq,
    ):
        raise OtherConsentError(
            f"permit: expected one for {info.channel} {info.seq}, {verified.digest.short()}, "
            f"found one for {permit.channel} {permit.seq}, {permit.statement.short()}"
        )
    if permit.instead_of != policy.newest(info.channel):
        raise OtherConsentError(
            f"permit: expected one instead of {info.channel} {policy.newest(info.channel)}, "
            f"found one instead of {permit.instead_of}",
            hint="something newer was accepted since; ask for another permit",
        )
    if found.digest in policy.permits:
        raise OtherConsentError("permit: expected one that was not used, found a used one")
    check_audience(permit.audience, config.site)
    if policy.present(now) > permit.expires:
        raise ExpiredError(
            f"permit: expected one that ends after {policy.present(now)}, "
            f"found one until {permit.expires}"
        )
    return found
