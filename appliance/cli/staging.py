"""``satchel staging``: imports that wait for another medium."""

from __future__ import annotations

from typing import Annotated

import typer

from appliance import human
from appliance.cli.frame import (
    ConfigOption,
    JsonOption,
    StoreOption,
    load_config,
    open_store,
    print_json,
)
from appliance.journal import Journal
from appliance.layout import Paths
from appliance.unfinished import Unfinished, chosen, drop, unfinished


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    app.command("staging")(staging_command)


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
