"""May this bundle come in? Steps 1 to 5 of the import, shared by ``import`` and ``verify``.

Nothing here writes, and nothing beyond the envelope is read from the medium.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from appliance.catalogue import Catalogue
from appliance.config import TrustConfig
from appliance.errors import SeveralBundlesError
from appliance.trust import TrustPolicy, check_audience, check_expiry, load_policy
from bundler.format import envelope
from bundler.format.digest import Digest
from bundler.format.envelope import VerifiedManifest
from bundler.format.errors import FormatError, UnsupportedError
from bundler.format.manifest import Manifest
from bundler.format.volume import BundleDirectory, find_bundles


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """A bundle that passed steps 1 to 5.

    Attributes:
        bundle: where it lies.
        verified: its statement.
        policy: what the site trusts and accepted, installed models included.
        warnings: lines the operator should see.
    """

    bundle: BundleDirectory
    verified: VerifiedManifest
    policy: TrustPolicy
    warnings: tuple[str, ...]

    @property
    def manifest(self) -> Manifest:
        """The statement's fields."""
        return self.verified.manifest


def open_medium(path: Path) -> BundleDirectory:
    """Step 1: the one bundle below a path.

    Raises:
        LayoutError: there is none, or only an unfinished one.
        MissingBlobError: there is no such path.
        MediumError: it cannot be read.
        SeveralBundlesError: there are several.
    """
    bundles = find_bundles(path)
    if len(bundles) > 1:
        names = ", ".join(bundle.path.name for bundle in bundles[:5])
        raise SeveralBundlesError(
            f"medium: expected one bundle, found {len(bundles)}: {names}",
            hint=f"name one of them: {bundles[-1].path}",
        )
    return bundles[0]


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


def verify_envelope(
    bundle: BundleDirectory, policy: TrustPolicy, config: TrustConfig
) -> VerifiedManifest:
    """Steps 2 to 4: read the envelope once, check its signatures, parse those same bytes.

    Raises:
        FormatError: the envelope or the statement is malformed or unsupported.
        TrustError: the signatures are not enough.
        NobodyTrustedError: no key is trusted here.
        MediumError: the medium cannot be read.
    """
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
) -> tuple[str, ...]:
    """Step 5: is it for this release and this site, and not older than what was accepted?

    Args:
        verified: the statement.
        policy: as `known_policy` gives it.
        config: site, and what to do with expired bundles.
        now: the present, RFC 3339 in UTC.
        version: of this release, such as ``0.1.0``.
        allow_rollback: ``channel:seq`` as the operator typed it.

    Returns:
        Warnings.

    Raises:
        UnsupportedError: it needs a newer release.
        WrongSiteError: it is for other sites.
        ExpiredError: it is past its date and the site refuses such.
        RolledBackError: its sequence number contradicts earlier imports.
    """
    manifest = verified.manifest
    _check_release(manifest, version)
    info = manifest.bundle
    check_audience(info.audience, config.site)
    late = check_expiry(info.expires, now=now, policy=config.expired)
    policy.check_sequence(info.channel, info.seq, verified.digest, allow_rollback=allow_rollback)
    warnings = [late] if late else []
    if info.refresh_by is not None and now > info.refresh_by:
        warnings.append(f"a newer bundle was due by {info.refresh_by}")
    if manifest.requires.engine is not None:
        warnings.append(f"the bundle asks for engine {manifest.requires.engine} or later")
    return tuple(warnings)


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
