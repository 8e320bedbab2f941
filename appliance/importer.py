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
from dataclasses import dataclass

from appliance import gate
from appliance.accepting import Accepted, accept
from appliance.admission import (
    Admitted,
    check_admission,
    check_owner,
    known_policy,
    newer_roots,
    with_roots,
)
from appliance.admission import verify_envelope as verify_signatures
from appliance.bringing import bring, hold
from appliance.errors import AppError, ApprovalMissingError, NotAcceptedError
from appliance.evidence import keep_evidence
from appliance.intake import Arrival, Intake, plan_intake
from appliance.journal import Journal
from appliance.media import open_media
from appliance.model import Origin, Provenance
from appliance.permits import permit_for
from appliance.policyfile import adopt_root, load_policy, save_policy
from appliance.receipt import AcceptedEntry, InstalledEntry, Receipt, last_receipt, write_receipt
from appliance.site import Observer, Request, Site
from appliance.staging import discard
from appliance.store import Store, StoreWriter
from appliance.unfinished import drop, unfinished
from appliance.waiting import Asked, approved_by, forget, keep
from bundler.format.chain import VerifiedRoot
from bundler.format.digest import Digest
from bundler.format.envelope import parse as parse_envelope
from bundler.format.errors import BundleError, DamagedError
from bundler.format.keys import KeyId
from bundler.format.volume import ENVELOPE_NAME, BundleDirectory


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checked:
    """What was asked of machine and people before the names move.

    Attributes:
        accepted: acceptance checks that were run.
        approved: keys of the operators who approved.
    """

    accepted: Accepted
    approved: frozenset[KeyId]


def import_bundle(request: Request, site: Site, observer: Observer) -> Receipt:
    """Carry out steps 1 to 9.

    Raises:
        BundleError: the bundle's bytes, form or signatures are wrong.
        AppError: the policy, the machine or the store says no; see docs/exit-codes.md.
    """
    # 1. Open: one bundle with sane names; and nobody else writes to the store.
    bundle = open_media(request.media).bundle
    with site.store.writing() as writer:
        plan: Intake | None = None
        waiting = False
        try:
            admitted = _admit(bundle, request, site)  # 2 to 5
            observer.verified(admitted)
            plan = plan_intake(admitted, request, site, observer)  # 6
            problem = bring(plan, admitted, request, site, writer=writer, observer=observer)  # 7
            if problem is not None:
                waiting = True
                raise problem
            _check_staged(plan, site)
            accepted = accept(plan, request, site, observer)
        except (AppError, BundleError) as error:
            if plan is not None and isinstance(error, NotAcceptedError):
                hold(plan, admitted, site, str(error))
            elif plan is not None and not waiting:
                _undo(plan, admitted, writer)
            _record_refusal(site, bundle, error)
            raise
        role = admitted.policy.approver_role()
        approved: frozenset[KeyId] = frozenset()
        if role is not None and (plan.missing or _names_change(plan, site.store)):
            approved = approved_by(
                site.store.paths, admitted.verified.digest, role, site=site.config.trust.site
            )
            if len(approved) < role.threshold:
                _wait(plan, admitted, request, writer, site=site)
                raise _waits(admitted, site, have=len(approved), need=role.threshold)
        try:
            who = _Checked(accepted=accepted, approved=approved)
            return _install(plan, who, admitted, site, writer)  # 8 and 9
        except AppError:
            for planned in plan.names:
                with contextlib.suppress(AppError):
                    writer.release(planned.manifest)
            _undo(plan, admitted, writer)
            raise


def _admit(bundle: BundleDirectory, request: Request, site: Site) -> Admitted:
    policy = with_roots(known_policy(site.store), _follow_roots(bundle, site))
    # 2. The envelope; 3. its signatures; 4. the statement, from the same bytes.
    verified = verify_signatures(bundle, policy, site.config.trust)
    # 5. Release, site, dates, and the channel's counter.
    permit = permit_for(bundle, verified, policy, site.config.trust, now=site.now)
    warnings = check_admission(
        verified,
        policy,
        site.config.trust,
        now=site.now,
        version=site.version,
        allow_rollback=request.allow_rollback,
        permit=permit,
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
    return Admitted(
        bundle=bundle, verified=verified, policy=policy, warnings=warnings, permit=permit
    )


def _wait(
    plan: Intake, admitted: Admitted, request: Request, writer: StoreWriter, *, site: Site
) -> None:
    """Keep what was verified until enough operators have approved it; no name changes."""
    _commit_weights(plan, writer)
    data = admitted.bundle.read_envelope()
    if parse_envelope(data).payload != admitted.verified.payload:
        raise DamagedError(f"{ENVELOPE_NAME}: expected the bytes that were verified, found others")
    keep(
        site.store.paths,
        admitted.verified.digest,
        envelope=data,
        files=[data for planned in plan.names for _, data in planned.layers],
        permit=admitted.bundle.read_permit() if admitted.permit else None,
        asked=Asked(
            models=tuple(name.full() for name in request.wanted.models),
            variants=request.wanted.variants,
            all_variants=request.wanted.all_variants,
            allow_rollback=request.allow_rollback,
            allow_channel=request.allow_channel,
            at=site.now,
        ),
    )
    _undo(plan, admitted, writer)  # nothing is staged any more: the weights are blobs


def _waits(admitted: Admitted, site: Site, *, have: int, need: int) -> ApprovalMissingError:
    info = admitted.manifest.bundle
    name = f"{info.channel}:{info.seq}"
    Journal(site.store.paths.journal).record(
        "staged",
        bundle=info.id,
        channel=info.channel,
        seq=info.seq,
        statement=str(admitted.verified.digest),
        approvals=have,
        needed=need,
    )
    return ApprovalMissingError(
        f"{name} is verified and staged; approvals: expected {need}, found {have}",
        hint=f"an approver goes on with: satchel approve {name} --key KEY",
    )


def _commit_weights(plan: Intake, writer: StoreWriter) -> None:
    for source in plan.missing:
        staged = writer.store.paths.staged(source.artifact.digest)
        writer.commit(staged, source.artifact.digest)
        discard(staged)


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


def _check_staged(plan: Intake, site: Site) -> None:
    """The static gate, on every file, staged or already here."""
    paths = site.store.paths
    staged = {source.artifact.digest for source in plan.missing}
    for planned in plan.names:
        for artifact in planned.artifacts:
            digest = artifact.digest
            path = paths.staged(digest) if digest in staged else paths.blob(digest)
            if artifact is planned.artifact:
                gate.check_weights(path, artifact, planned.variant)
            else:
                gate.check_companion(path, artifact, planned.variant)


def _undo(plan: Intake, admitted: Admitted, writer: StoreWriter) -> None:
    """Drop what was staged: the next try would meet the same refusal."""
    paths = writer.store.paths
    statement = str(admitted.verified.digest)
    with contextlib.suppress(AppError):
        for source in plan.missing:
            discard(paths.staged(source.artifact.digest))
        drop(paths, (one for one in unfinished(paths) if one.statement == statement))


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


def _install(
    plan: Intake, who: _Checked, admitted: Admitted, site: Site, writer: StoreWriter
) -> Receipt:
    before = load_policy(site.store.paths.trust)
    changed = bool(plan.missing) or _names_change(plan, site.store)
    # 8. Blobs by rename; then the small files; then, last of all, the names.
    _commit_weights(plan, writer)
    for planned in plan.names:
        for data in (planned.config, *(data for _, data in planned.layers)):
            writer.put(data)
    keep = site.config.store.previous
    if changed:
        with writer.promising(planned.manifest for planned in plan.names):
            for planned in plan.names:
                keep_evidence(site.store.paths, Digest.of(planned.manifest), planned.documents)
                origin = Origin(provenance=_provenance(planned, admitted, site))
                writer.point(planned.name, planned.manifest, origin=origin, keep=keep)
    # 9. The journal, the receipt, the channel's counter.
    info = admitted.manifest.bundle
    after = admitted.policy.accept(
        info.channel,
        info.seq,
        admitted.verified.digest,
        issued=info.issued,
        permit=admitted.permit.digest if admitted.permit else None,
    )
    changed = changed or after != before
    receipt = _receipt(plan, who, admitted, site, changed=changed)
    if changed:
        Journal(site.store.paths.journal).record(
            "imported",
            bundle=info.id,
            channel=info.channel,
            seq=info.seq,
            receipt=receipt.number,
            names=[entry.name for entry in receipt.installed],
            approved_by=sorted(who.approved),
        )
        write_receipt(site.store.paths.receipts, receipt, site.device)
        # Last of all: a crash before this makes the next import of the bundle say it all again.
        save_policy(site.store.paths.trust, after)
        writer.counted()
    _tidy_up(admitted, writer)
    forget(site.store.paths, admitted.verified.digest)
    return receipt


def _tidy_up(admitted: Admitted, writer: StoreWriter) -> None:
    """Give up what waited for bundles that cannot come in any more: this one, and older ones."""
    info = admitted.manifest.bundle
    paths = writer.store.paths
    drop(
        paths,
        (one for one in unfinished(paths) if one.channel == info.channel and one.seq <= info.seq),
    )


def _names_change(plan: Intake, store: Store) -> bool:
    """Whether some name does not yet stand for what the bundle says."""
    for planned in plan.names:
        try:
            model = store.resolve(planned.name)
        except AppError:
            return True
        if model.digest != Digest.of(planned.manifest) or not model.signed:
            return True
    return False


def _provenance(planned: Arrival, admitted: Admitted, site: Site) -> Provenance:
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


def _receipt(
    plan: Intake, who: _Checked, admitted: Admitted, site: Site, *, changed: bool
) -> Receipt:
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
        approved_by={key: labels[key] for key in sorted(who.approved)},
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
        warnings=(*admitted.warnings, *who.accepted.warnings),
        acceptance=tuple(
            AcceptedEntry(
                name=name, check=one.id, kind=one.kind, expected=one.expected, found=one.found
            )
            for name, one in who.accepted.results
        ),
    )
