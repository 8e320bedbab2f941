"""Bring single damaged files back from a signed bundle, by the importer's own steps.

No name changes and no new content comes in: a file is taken only if a statement with enough
trusted signatures lists exactly the digest the store calls it by. That is why age, audience and
date of the bundle do not matter here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from appliance import copying, gate
from appliance.admission import known_policy, newer_roots, verify_envelope, with_roots
from appliance.choice import profile_of
from appliance.errors import AppError, ImportRefusedError
from appliance.intake import read_source
from appliance.journal import Journal
from appliance.local import check_local
from appliance.pushing import Tell, telling
from appliance.room import check_room
from appliance.site import Site
from appliance.staging import discard
from appliance.store import StoreWriter
from bundler.format.carried import read_images
from bundler.format.digest import Descriptor, Digest
from bundler.format.errors import BundleError
from bundler.format.manifest import Manifest
from bundler.format.volume import BundleDirectory, find_bundles


def repair(
    digests: Iterable[Digest], medium: Path, site: Site, tell: Tell
) -> tuple[tuple[Digest, ...], tuple[str, ...]]:
    """Write the damaged files anew that a trusted bundle on the medium holds.

    Args:
        digests: of the damaged files.
        medium: where bundles lie.
        site: the store, and whom it trusts.
        tell: told of each step.

    Returns:
        The files that are whole again, and why bundles could not help, a line each.

    Raises:
        BundleError: there is no bundle on the medium.
        NobodyTrustedError: no key is trusted here.
        StoreError: the store cannot be written.
        NoSpaceError: there is no room for a second copy of the file.
    """
    wanted = set(digests)
    policy = known_policy(site.store)
    bundles = find_bundles(medium)
    whole: list[Digest] = []
    refusals: list[str] = []
    with site.store.writing() as writer:
        for bundle in bundles:
            try:
                known = with_roots(policy, newer_roots(bundle, policy))
                manifest = verify_envelope(bundle, known, site.config.trust).manifest
                for digest in sorted(wanted):
                    if _renew(digest, _Holder(bundle, manifest), site, writer, tell):
                        wanted.remove(digest)
                        whole.append(digest)
            except (BundleError, ImportRefusedError) as error:
                refusals.append(f"{bundle.path.name}: {error}")
        if whole:
            Journal(site.store.paths.journal).record(
                "repaired", medium=ascii(medium.name)[1:-1], blobs=[str(one) for one in whole]
            )
    return tuple(whole), tuple(refusals)


@dataclass(frozen=True, slots=True)
class _Holder:
    """A bundle, and its statement, which enough trusted keys have signed."""

    bundle: BundleDirectory
    manifest: Manifest


def _renew(digest: Digest, holder: _Holder, site: Site, writer: StoreWriter, tell: Tell) -> bool:
    """Write one file anew if the statement lists it."""
    artifact = next((one for one in holder.manifest.artifacts if one.digest == digest), None)
    if artifact is not None:
        paths = site.store.paths
        check_room(paths, artifact.size_bytes, site.config.store.reserve_bytes)
        staged = paths.staged(digest)
        part = Descriptor(media_type=artifact.media, digest=digest, size_bytes=artifact.size_bytes)
        try:
            with telling(f"repairing {digest.short()}", part, tell) as advance:
                source = read_source(holder.bundle, artifact, holder.manifest, site.store)
                check_local(source, holder.manifest)
                gaps = copying.copy_artifact(source, staged, progress=advance)
            if gaps:
                raise next(iter(gaps.values()))
        except (AppError, BundleError):
            discard(staged)
            raise
        writer.commit(staged, digest)
        discard(staged)
        return True
    small = _small(digest, holder)
    if small is not None:
        tell({"status": f"repairing {digest.short()}"})
        writer.put(small)
    return small is not None


def _small(digest: Digest, holder: _Holder) -> bytes | None:
    """A layer, as the statement lists it; or a config, as the import makes it."""
    for blob in holder.manifest.blobs:
        if blob.digest == digest:
            return holder.bundle.read_blob(
                digest, max_bytes=blob.size_bytes, size_bytes=blob.size_bytes
            )
    configs = [image.config for image in read_images(holder.manifest.extensions)]
    configs += [
        gate.config_blob(profile_of(variant), variant.artifact)
        for model in holder.manifest.models
        for variant in model.variants
    ]
    return next((one for one in configs if Digest.of(one) == digest), None)
