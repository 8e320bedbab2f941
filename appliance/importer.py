"""Import one bundle into the store.

Rules:
 * bytes leave the medium once: what was verified is what is stored;
 * nothing is parsed beyond the envelope before its signatures are accepted;
 * a blob becomes visible only by rename, after its digest is known;
 * the names move last; a crash earlier leaves files nobody sees, which the next import takes up
   or removes;
 * a refusal leaves the store as it was, but for a line in the journal.

The steps are those of docs/bundle-format.md, section 8. Each has its own refusals.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from appliance import copying, gate
from appliance.admission import (
    Admitted,
    check_admission,
    check_owner,
    known_policy,
    newer_roots,
    open_medium,
    with_roots,
)
from appliance.admission import verify_envelope as verify_signatures
from appliance.choice import Choice, Install, choose, profile_of, wish_for
from appliance.copying import Source
from appliance.errors import AppError, RequestError, store_io
from appliance.journal import Journal
from appliance.model import Origin, Provenance
from appliance.receipt import InstalledEntry, Receipt, last_receipt, write_receipt
from appliance.room import check_room
from appliance.site import Observer, Request, Site
from appliance.store import Store, StoreWriter
from appliance.trust import adopt_root, load_policy, save_policy
from bundler.format.carried import CarriedImage, read_images
from bundler.format.digest import Descriptor, Digest
from bundler.format.errors import BundleError, MediumError
from bundler.format.index import check_index, parse_index
from bundler.format.manifest import Artifact, Manifest, Variant
from bundler.format.name import ModelName
from bundler.format.root import VerifiedRoot
from bundler.format.volume import BundleDirectory


@dataclass(frozen=True, slots=True, kw_only=True)
class _Planned:
    """One name, and everything it needs."""

    name: ModelName
    variant: Variant
    artifact: Artifact
    companions: tuple[tuple[str, Artifact], ...]
    layers: tuple[tuple[Descriptor, bytes], ...]
    config: bytes
    manifest: bytes

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """Every large file, the weights first."""
        return (self.artifact, *(artifact for _, artifact in self.companions))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What is to be done: names to set, and of their weights those that are not here yet."""

    names: tuple[_Planned, ...]
    missing: tuple[Source, ...]

    @property
    def need_bytes(self) -> int:
        """Plain bytes that come from the medium."""
        small = sum(len(data) for planned in self.names for _, data in planned.layers)
        return sum(source.artifact.size_bytes for source in self.missing) + small


def import_bundle(request: Request, site: Site, observer: Observer) -> Receipt:
    """Carry out steps 1 to 9.

    Raises:
        BundleError: the bundle's bytes, form or signatures are wrong.
        AppError: the policy, the machine or the store says no; see docs/exit-codes.md.
    """
    # 1. Open: one bundle with sane names; and nobody else writes to the store.
    bundle = open_medium(request.medium)
    with site.store.writing() as writer:
        plan: _Plan | None = None
        try:
            admitted = _admit(bundle, request, site)  # 2 to 5
            observer.verified(admitted)
            plan = _plan(admitted, request, site, observer)  # 6
            _bring(plan, writer, observer)  # 7
        except (AppError, BundleError) as error:
            _undo(plan, writer, error)
            _record_refusal(site, bundle, error)
            raise
        try:
            return _install(plan, admitted, site, writer)  # 8 and 9
        except AppError:
            for planned in plan.names:
                with contextlib.suppress(AppError):
                    writer.release(planned.manifest)
            raise


def _admit(bundle: BundleDirectory, request: Request, site: Site) -> Admitted:
    policy = with_roots(known_policy(site.store), _follow_roots(bundle, site))
    # 2. The envelope; 3. its signatures; 4. the statement, from the same bytes.
    verified = verify_signatures(bundle, policy, site.config.trust)
    # 5. Release, site, dates, and the channel's counter.
    warnings = check_admission(
        verified,
        policy,
        site.config.trust,
        now=site.now,
        version=site.version,
        allow_rollback=request.allow_rollback,
    )
    warnings += check_owner(
        (
            model.name
            for model in verified.manifest.models
            if not request.wanted.models or model.name in request.wanted.models
        ),
        verified.manifest.bundle.channel,
        site.store,
        allowed=request.allow_channel,
    )
    return Admitted(bundle=bundle, verified=verified, policy=policy, warnings=warnings)


def _follow_roots(bundle: BundleDirectory, site: Site) -> tuple[VerifiedRoot, ...]:
    """Put newer trust roots in force, whatever becomes of the bundle: they may revoke its keys."""
    directory = site.store.paths.trust
    roots = newer_roots(bundle, load_policy(directory))
    if roots:
        adopt_root(directory, roots)
        Journal(site.store.paths.journal).record(
            "trust", action="root", version=roots[-1].root.version, digest=str(roots[-1].digest)
        )
    return roots


def read_source(bundle: BundleDirectory, artifact: Artifact) -> Source:
    """The checked chunk index of an artifact.

    Raises:
        FormatError: it is missing, damaged, or unlike the statement.
        MediumError: the medium cannot be read.
    """
    data = bundle.read_blob(
        artifact.index.digest,
        max_bytes=artifact.index.size_bytes,
        size_bytes=artifact.index.size_bytes,
    )
    index = parse_index(data)
    check_index(index, artifact)
    return Source(bundle=bundle, artifact=artifact, index=index)


def _plan(admitted: Admitted, request: Request, site: Site, observer: Observer) -> _Plan:
    # 6. Which variant, whether it is here already, its index, and room for it.
    manifest, wanted = admitted.manifest, request.wanted
    gate.check_layers(manifest)
    choices = tuple(
        choose(model, site.machine, wish_for(site.config, model.name), wanted)
        for model in manifest.models
        if not wanted.models or model.name in wanted.models
    )
    for choice in choices:
        observer.chosen(choice)
    names = tuple(_planned(admitted.bundle, manifest, choices))
    # Further variants take names of their own, which may be another channel's as well.
    channel, allowed = manifest.bundle.channel, request.allow_channel
    check_owner((one.name for one in names), channel, site.store, allowed=allowed)
    weights = {one.digest: one for planned in names for one in planned.artifacts}
    here = _present(site.store, weights.values(), observer)
    missing = tuple(
        read_source(admitted.bundle, artifact)
        for digest, artifact in weights.items()
        if digest not in here
    )
    plan = _Plan(names=names, missing=missing)
    for source in missing:
        for segment in source.artifact.segments:
            # Opened now so that a missing volume shows before gigabytes were copied.
            admitted.bundle.open_segment(segment.digest, size_bytes=segment.size_bytes).close()
    _check_room(plan, site)
    return plan


def _planned(
    bundle: BundleDirectory, manifest: Manifest, choices: tuple[Choice, ...]
) -> Iterable[_Planned]:
    taken: set[tuple[str, ...]] = set()
    images = {(one.model, one.variant): one for one in read_images(manifest.extensions)}
    for choice in choices:
        layers = gate.read_layers(bundle, manifest, choice.model)
        for install in choice.installs:
            if install.name.folded() in taken:
                raise RequestError(
                    f"{install.name.short()}: expected one model of this name, found two",
                    hint="import without --all and name the variant you want",
                )
            taken.add(install.name.folded())
            yield _planned_variant(
                install,
                manifest,
                layers,
                images.get((choice.model.name.short(), install.variant.id)),
            )


def _planned_variant(
    install: Install,
    manifest: Manifest,
    layers: tuple[tuple[Descriptor, bytes], ...],
    image: CarriedImage | None,
) -> _Planned:
    variant = install.variant
    artifact = manifest.artifact(variant.artifact)
    companions = gate.companions(manifest, variant)
    if image is not None:
        gate.check_image(image, artifact, companions, layers)
        config, written = image.config, image.manifest
    else:
        config = gate.config_blob(profile_of(variant), artifact.digest)
        written = gate.model_manifest(artifact, layers, config, companions)
    return _Planned(
        name=install.name,
        variant=variant,
        artifact=artifact,
        companions=companions,
        layers=layers,
        config=config,
        manifest=written,
    )


def _present(store: Store, artifacts: Iterable[Artifact], observer: Observer) -> set[Digest]:
    """The weights that are here already; their bytes are checked, not trusted."""
    here = set()
    for artifact in artifacts:
        described = Descriptor(
            media_type=artifact.media, digest=artifact.digest, size_bytes=artifact.size_bytes
        )
        if store.has_blob(described):
            observer.begins(f"checking {artifact.digest.short()}", artifact.size_bytes)
            path = store.paths.blob(artifact.digest)
            if copying.file_digest(path, progress=observer.advances) == artifact.digest:
                here.add(artifact.digest)
    return here


def _check_room(plan: _Plan, site: Site) -> None:
    if not plan.missing:
        return
    paths = site.store.paths
    staged = sum(_allocated(paths.staged(source.artifact.digest)) for source in plan.missing)
    check_room(paths, plan.need_bytes, site.config.store.reserve_bytes, taken_bytes=staged)


def _allocated(path: Path) -> int:
    """What an interrupted import's staging file already takes; it will be used again."""
    try:
        return path.stat().st_blocks * 512
    except OSError:
        return 0


def _bring(plan: _Plan, writer: StoreWriter, observer: Observer) -> None:
    # 7. Every file: read once, checked, unpacked, written, flushed, hashed whole; then the gate.
    paths = writer.store.paths
    _clean_staging(plan, writer)
    for source in plan.missing:
        staged = paths.staged(source.artifact.digest)
        observer.begins(f"importing {source.artifact.digest.short()}", source.artifact.size_bytes)
        copying.copy_artifact(source, staged, progress=observer.advances)
    staged_now = {source.artifact.digest for source in plan.missing}
    for planned in plan.names:
        for artifact in planned.artifacts:
            digest = artifact.digest
            path = paths.staged(digest) if digest in staged_now else paths.blob(digest)
            if artifact is planned.artifact:
                gate.check_weights(path, artifact, planned.variant)
            else:
                gate.check_companion(path, artifact, planned.variant)


def _clean_staging(plan: _Plan, writer: StoreWriter) -> None:
    """Remove what earlier imports left, except what this one takes up."""
    paths = writer.store.paths
    kept = {paths.staged(source.artifact.digest) for source in plan.missing}
    kept |= {copying.marker_of(path) for path in kept}
    with store_io("clean the staging directory"):
        for path in paths.staging.iterdir():
            if path not in kept and not path.is_dir():
                path.unlink(missing_ok=True)


def _undo(plan: _Plan | None, writer: StoreWriter, error: Exception) -> None:
    """Drop what was staged, unless only the medium failed: then the next try goes on from it."""
    if plan is None or isinstance(error, MediumError):
        return
    for source in plan.missing:
        with contextlib.suppress(AppError):
            copying.discard(writer.store.paths.staged(source.artifact.digest))


def _record_refusal(site: Site, bundle: BundleDirectory, error: AppError | BundleError) -> None:
    """A refusal is news, not a reason to fail twice: a full disk may refuse the line as well."""
    with contextlib.suppress(AppError):
        Journal(site.store.paths.journal).record(
            "refused",
            bundle=ascii(bundle.path.name)[1:-1],
            error=type(error).__name__,
            reason=str(error),
            exit_code=error.exit_code,
        )


def _install(plan: _Plan, admitted: Admitted, site: Site, writer: StoreWriter) -> Receipt:
    before = load_policy(site.store.paths.trust)
    changed = bool(plan.missing) or _names_change(plan, site.store)
    # 8. Blobs by rename; then the small files; then, last of all, the names.
    for source in plan.missing:
        staged = site.store.paths.staged(source.artifact.digest)
        writer.commit(staged, source.artifact.digest)
        copying.discard(staged)
    for planned in plan.names:
        for data in (planned.config, *(data for _, data in planned.layers)):
            writer.put(data)
    if changed:
        with writer.promising(planned.manifest for planned in plan.names):
            for planned in plan.names:
                origin = Origin(provenance=_provenance(planned, admitted, site))
                writer.point(planned.name, planned.manifest, origin=origin)
    # 9. The journal, the receipt, the channel's counter.
    info = admitted.manifest.bundle
    after = admitted.policy.accept(
        info.channel, info.seq, admitted.verified.digest, issued=info.issued
    )
    changed = changed or after != before
    receipt = _receipt(plan, admitted, site, changed=changed)
    if changed:
        Journal(site.store.paths.journal).record(
            "imported",
            bundle=info.id,
            channel=info.channel,
            seq=info.seq,
            receipt=receipt.number,
            names=[entry.name for entry in receipt.installed],
        )
        write_receipt(site.store.paths.receipts, receipt)
        # Last of all: a crash before this makes the next import of the bundle say it all again.
        save_policy(site.store.paths.trust, after)
        writer.counted()
    return receipt


def _names_change(plan: _Plan, store: Store) -> bool:
    """Whether some name does not yet stand for what the bundle says."""
    for planned in plan.names:
        try:
            model = store.resolve(planned.name)
        except AppError:
            return True
        if model.digest != Digest.of(planned.manifest) or not model.signed:
            return True
    return False


def _provenance(planned: _Planned, admitted: Admitted, site: Site) -> Provenance:
    info = admitted.manifest.bundle
    return Provenance(
        bundle_id=info.id,
        channel=info.channel,
        seq=info.seq,
        statement=str(admitted.verified.digest),
        signed_by=tuple(sorted(admitted.verified.signed_by)),
        variant=planned.variant.id,
        imported_at=site.now,
    )


def _receipt(plan: _Plan, admitted: Admitted, site: Site, *, changed: bool) -> Receipt:
    info = admitted.manifest.bundle
    labels = admitted.policy.labels()
    number, previous = last_receipt(site.store.paths.receipts)
    return Receipt(
        number=number + 1 if changed else 0,
        previous=previous if changed else "",
        changed=changed,
        bundle_id=info.id,
        channel=info.channel,
        seq=info.seq,
        statement=str(admitted.verified.digest),
        signed_by={key: labels[key] for key in sorted(admitted.verified.signed_by)},
        installed=tuple(
            InstalledEntry(
                name=planned.name.short(),
                variant=planned.variant.id,
                manifest=str(Digest.of(planned.manifest)),
                weights=str(planned.artifact.digest),
                size_bytes=planned.artifact.size_bytes,
            )
            for planned in plan.names
        ),
        copied_bytes=sum(source.artifact.size_bytes for source in plan.missing),
        at=site.now,
        version=site.version,
        warnings=admitted.warnings,
    )
