"""``satchel staging`` and ``repair-request``: imports that wait for another medium."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from appliance import human
from appliance.asking import repair_request
from appliance.cli.frame import (
    ConfigOption,
    JsonOption,
    StoreOption,
    load_config,
    open_store,
    print_json,
)
from appliance.device import device_key
from appliance.errors import RequestError
from appliance.journal import Journal
from appliance.layout import Paths
from appliance.measuring import this_site
from appliance.unfinished import Unfinished, chosen, drop, unfinished
from bundler.format import fsio
from bundler.format.repair import write_request


def add_to(app: typer.Typer) -> None:
    """Register the verbs."""
    app.command("staging")(staging_command)
    app.command("repair-request")(repair_request_command)


def staging_command(
    *,
    drop_: Annotated[
        str,
        typer.Option("--drop", metavar="CHANNEL:SEQ", help="Give an import up, or all of them."),
    ] = "",
    store: StoreOption = None,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """List the imports that wait for another medium."""
    found = open_store(load_config(config, store))
    if drop_:
        with found.writing():
            jobs = chosen(found.paths, drop_)
            rows = [_json(job, found.paths) for job in jobs]
            drop(found.paths, jobs)
            for job in jobs:
                Journal(found.paths.journal).record(
                    "dropped", bundle=job.bundle_id, label=job.label
                )
    else:
        jobs = unfinished(found.paths)
        rows = [_json(job, found.paths) for job in jobs]
    if json_:
        print_json({"dropped": bool(drop_), "imports": rows})
        return
    for job, row in zip(jobs, rows, strict=True):
        size = human.size(int(str(row["staged_bytes"])))
        typer.echo(f"{'dropped ' if drop_ else ''}{job.label}  {size} staged since {job.begun}")
        if job.needs and not drop_:
            typer.echo(f"  {job.needs}")
    if not jobs:
        typer.echo("no import waits")


def repair_request_command(
    label: Annotated[
        str, typer.Argument(metavar="[CHANNEL:SEQ]", help="Which import, if several wait.")
    ] = "",
    *,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write it here.")
    ] = None,
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    """Ask the connected side for just the chunks that an import lacks."""
    if out is None and sys.stdout.isatty():
        raise RequestError(
            "expected a file, found a terminal", hint="satchel repair-request > site.repair"
        )
    site = this_site(load_config(config, store))
    request = repair_request(label, site)
    key = device_key(site.store.paths)
    data = write_request(request, key)
    if out is None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        fsio.atomic_write(out, data)
    chunks = sum(len(file.places()) for file in request.files)
    signed = "signed by the device key" if key else "not signed"
    typer.echo(
        f"{chunks} chunk{'s' * (chunks != 1)} of {request.channel} {request.seq}; "
        f"{human.size(len(data))}, {signed}",
        err=True,
    )


def _json(job: Unfinished, paths: Paths) -> dict[str, object]:
    return {
        "channel": job.channel,
        "seq": job.seq,
        "bundle_id": job.bundle_id,
        "statement": job.statement,
        "begun": job.begun,
        "needs": job.needs,
        "staged_bytes": job.staged_bytes(paths),
        "missing_chunks": sum(end - first for file in job.files for first, end in file.missing),
    }
