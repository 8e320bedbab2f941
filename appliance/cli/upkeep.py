"""``satchel prune``: the store's upkeep. No server is needed."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from appliance import duration, human
from appliance.cli.frame import (
    ConfigOption,
    JsonOption,
    StoreOption,
    load_config,
    open_store,
    print_json,
)
from appliance.errors import RequestError
from appliance.pruning import UnusedBlob, past_grace, prune, trim, unused


def add_to(app: typer.Typer) -> None:
    """Register the verbs."""
    app.command("prune")(prune_command)


def prune_command(
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Only say what would be removed.")
    ] = False,
    grace: Annotated[
        str,
        typer.Option(
            "--grace", metavar="DURATION", help="Keep what was used within it; else store.grace."
        ),
    ] = "",
    previous: Annotated[
        int | None,
        typer.Option(
            "--previous", metavar="N", min=0, help="Keep at most N previous versions per model."
        ),
    ] = None,
    store: StoreOption = None,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """Remove the blobs that no model uses.

    What satchel rollback goes back to stays, unless --previous says how much of it may.
    """
    loaded = load_config(config, store)
    grace_s = _seconds(grace) if grace else loaded.store.grace_s
    found = open_store(loaded)
    if previous is not None:
        if dry_run:
            raise RequestError("expected --dry-run or --previous, found both")
        freed_bytes = trim(found, keep=previous)
        if not json_:
            typer.echo(f"removed previous versions beyond {previous}, {human.size(freed_bytes)}")
    if dry_run:
        gone = past_grace(unused(found, now_s=time.time()), grace_s)
    else:
        gone = prune(found, now_s=time.time(), grace_s=grace_s)
    if json_:
        print_json({"removed": not dry_run, "blobs": [_json(blob) for blob in gone]})
        return
    verb = "would remove" if dry_run else "removed"
    for blob in gone:
        idle = human.span(blob.idle_s)
        typer.echo(f"{verb} {blob.digest} ({human.size(blob.size_bytes)}, unused for {idle})")
    total = human.size(sum(blob.size_bytes for blob in gone))
    typer.echo(f"{verb} {len(gone)} blob{'s' * (len(gone) != 1)}, {total}")


def _seconds(text: str) -> float:
    try:
        return max(0.0, duration.parse_lenient(text))
    except ValueError as error:
        raise RequestError(f"grace: {error}") from error


def _json(blob: UnusedBlob) -> dict[str, object]:
    return {
        "digest": str(blob.digest),
        "size": blob.size_bytes,
        "idle_seconds": round(blob.idle_s),
    }
