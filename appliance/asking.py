"""Ask the connected side for just the chunks that an unfinished import lacks."""

from __future__ import annotations

from appliance.errors import RequestError
from appliance.site import Site
from appliance.unfinished import Unfinished, chosen, unfinished
from bundler.format.digest import Digest
from bundler.format.repair import LackedFile, RepairRequest, Run


def repair_request(label: str, site: Site) -> RepairRequest:
    """What to ask for.

    Args:
        label: ``CHANNEL:SEQ`` of the import, or empty if only one waits.
        site: where.

    Raises:
        RequestError: no such import waits, several do, or none of its media was read to the end.
    """
    job = _job(label, site)
    files = tuple(
        LackedFile(
            digest=Digest.parse(file.digest),
            index=Digest.parse(file.index),
            missing=tuple(Run(first=first, end=end) for first, end in file.missing),
        )
        for file in job.files
        if file.missing
    )
    if not files:
        raise RequestError(
            f"{job.label}: expected an import that says what it lacks, found one that was cut off",
            hint="import once more from the medium you have",
        )
    return RepairRequest(
        site=site.config.trust.site,
        made_at=site.now,
        statement=Digest.parse(job.statement),
        channel=job.channel,
        seq=job.seq,
        files=files,
    )


def _job(label: str, site: Site) -> Unfinished:
    jobs = chosen(site.store.paths, label) if label else unfinished(site.store.paths)
    if len(jobs) == 1:
        return jobs[0]
    there = ", ".join(job.label for job in jobs)
    raise RequestError(
        f"repair request: expected one import that waits, found {len(jobs)}",
        hint=f"name one of them: {there}" if jobs else "satchel import says what is wrong first",
    )
