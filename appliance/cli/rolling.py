"""``satchel rollback``: back to the version before. No server is needed; a running one notices."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from appliance.cli.frame import (
    ConfigOption,
    JsonOption,
    StoreOption,
    load_config,
    open_store,
    print_json,
    read_name,
)
from appliance.errors import RequestError
from appliance.rolling import Version, roll_back, versions


def add_to(app: typer.Typer) -> None:
    """Register the verbs."""
    app.command("rollback")(rollback_command)


def rollback_command(
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    *,
    to: Annotated[
        str, typer.Option("--to", metavar="ID", help="This version, not the one before.")
    ] = "",
    list_: Annotated[
        bool, typer.Option("--list", help="Only say which versions are here.")
    ] = False,
    store: StoreOption = None,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """Let a model be again what it was before an import replaced it.

    The version that is left is kept, so that the next rollback goes forward again. Sequence
    numbers do not move: importing the newer bundle again brings its version back, too.
    """
    name = read_name(model)
    loaded = load_config(config, store)
    found = open_store(loaded)
    if list_:
        if to:
            raise RequestError("expected --list or --to, found both")
        known = versions(name, found)
        if json_:
            print_json({"versions": [_json(one) for one in known]})
            return
        for one in known:
            when = f"replaced {one.replaced_at}" if one.replaced_at else "in force"
            typer.echo(f"{one.id}  {one.bundle or 'no bundle':<16}  {when}")
        return
    done = roll_back(name, found, to=to, keep=loaded.store.previous)
    if json_:
        print_json(
            {
                "model": done.name.short(),
                "left": _json(done.left),
                "now": _json(done.now),
                "warnings": list(done.warnings),
            }
        )
        return
    for warning in done.warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(
        f"{done.name.short()} is {done.now.id} ({done.now.bundle or 'no bundle'}) again, "
        f"no longer {done.left.id} ({done.left.bundle or 'no bundle'})"
    )


def _json(version: Version) -> dict[str, Any]:
    origin = version.origin.provenance
    return {
        "digest": str(version.digest),
        "channel": origin.channel if origin else None,
        "seq": origin.seq if origin else None,
        "replaced_at": version.replaced_at or None,
    }
