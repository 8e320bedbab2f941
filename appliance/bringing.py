"""Step 7 of an import: bring the files in, from as many media as it takes.

Rules:
 * what one medium cannot give is asked of the next one, and waits in the staging directory
   meanwhile, across media and restarts;
 * what waits for other bundles is left alone; what belongs to nothing is removed;
 * the operator is told which volume is missing, by its label.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from appliance import copying
from appliance.admission import Admitted
from appliance.errors import store_io
from appliance.intake import Intake
from appliance.media import more_of, volumes_line
from appliance.site import Observer, Request, Site
from appliance.staging import marker_of, ranges
from appliance.store import StoreWriter
from appliance.unfinished import Unfinished, WaitingFile, check_quota, drop, note, unfinished
from bundler.format.digest import Digest
from bundler.format.errors import BundleError, MissingBlobError, MissingVolumeError
from bundler.format.manifest import volume_count

_Gaps = Mapping[Digest, Mapping[int, BundleError]]


def bring(
    plan: Intake,
    admitted: Admitted,
    request: Request,
    site: Site,
    *,
    writer: StoreWriter,
    observer: Observer,
) -> BundleError | None:
    """Put together every file that is not here yet; each is right, as a whole, on return.

    Returns:
        What is missing, when the media cannot give it and the operator has no other: what was
        read waits then. ``None`` when nothing is.

    Raises:
        DamagedError: every chunk is as signed, and a file as a whole is not.
        NoSpaceError: the store is full, or unfinished imports would take too much of it.
        StoreAccessError: the store cannot be written.
    """
    paths = writer.store.paths
    job = _job(plan, admitted, site)
    _clean_staging(plan, writer)
    if not plan.missing:
        return None
    check_quota(paths, job, site.config.store.staging_limit_bytes)
    note(paths, job)
    todo = plan.missing
    while True:
        gaps: dict[Digest, Mapping[int, BundleError]] = {}
        for source in todo:
            digest = source.artifact.digest
            observer.begins(f"importing {digest.short()}", source.artifact.size_bytes)
            gaps[digest] = copying.copy_artifact(
                source, paths.staged(digest), progress=observer.advances
            )
        todo = tuple(source for source in todo if gaps[source.artifact.digest])
        if not todo:
            return None
        problem = _problem(plan, admitted, gaps)
        note(paths, _still(job, gaps, str(problem)))
        if not observer.asks(str(problem)):
            if all(
                len(gaps.get(source.artifact.digest, ())) == len(source.index.records)
                for source in plan.missing
            ):
                drop(paths, (job,))  # not one chunk could be had: there is nothing to keep
            return problem
        more = more_of(request.media, admitted.verified.digest)
        if more is not None:
            todo = tuple(replace(source, bundle=more) for source in todo)


def hold(plan: Intake, admitted: Admitted, site: Site, reason: str) -> None:
    """Let what was put together wait, although nothing is missing: the model was not accepted.

    Raises:
        NoSpaceError: there is no room to say so.
        StoreAccessError: it cannot be written.
    """
    if plan.missing:
        note(site.store.paths, replace(_job(plan, admitted, site), needs=reason))


def _job(plan: Intake, admitted: Admitted, site: Site) -> Unfinished:
    info = admitted.manifest.bundle
    before = {job.statement: job for job in unfinished(site.store.paths)}
    statement = str(admitted.verified.digest)
    return Unfinished(
        statement=statement,
        channel=info.channel,
        seq=info.seq,
        bundle_id=info.id,
        begun=before[statement].begun if statement in before else site.now,
        files=tuple(
            WaitingFile(
                digest=str(source.artifact.digest),
                index=str(source.artifact.index.digest),
                size_bytes=source.artifact.size_bytes,
            )
            for source in plan.missing
        ),
    )


def _still(job: Unfinished, gaps: _Gaps, needs: str) -> Unfinished:
    """The record with what is missing now."""
    files = tuple(
        replace(file, missing=tuple(ranges(sorted(gaps.get(Digest.parse(file.digest), ())))))
        for file in job.files
    )
    return replace(job, needs=needs, files=files)


def _problem(plan: Intake, admitted: Admitted, gaps: _Gaps) -> BundleError:
    """The first thing that is wrong; or, if whole segments are elsewhere, on which volumes."""
    manifest = admitted.manifest
    errors = [error for found in gaps.values() for error in found.values()]
    others = [error for error in errors if not isinstance(error, MissingBlobError)]
    if volume_count(manifest) == 1:
        return (others or errors)[0]
    volumes = {
        source.artifact.segments[source.index.records[place].segment].volume
        for source in plan.missing
        for place, error in gaps.get(source.artifact.digest, {}).items()
        if isinstance(error, MissingBlobError)
    }
    if not volumes:
        return others[0]
    return MissingVolumeError(
        f"medium: put in {volumes_line(volumes, manifest)}",
        hint="import again from it, in any order: what was read is kept (satchel staging)",
    )


def _clean_staging(plan: Intake, writer: StoreWriter) -> None:
    """Remove what earlier imports left, except what this one takes up or others wait for."""
    paths = writer.store.paths
    kept = {paths.staged(source.artifact.digest) for source in plan.missing}
    kept |= {marker_of(path) for path in kept}
    for job in unfinished(paths):
        kept |= {*job.paths(paths), job.record(paths)}
    with store_io("clean the staging directory"):
        for path in paths.staging.iterdir():
            if path not in kept and not path.is_dir():
                path.unlink(missing_ok=True)
