"""``satchel rm`` and ``cp``: names of installed models. No server is needed."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from appliance.cli.frame import (
    ConfigOption,
    HostOption,
    JsonOption,
    StoreOption,
    installed,
    load_config,
    open_store,
    print_json,
    read_name,
    server,
)
from appliance.client import Client
from appliance.errors import ServerRefusedError, ServerUnreachableError

_UNLOAD_TIMEOUT_S = 10.0


def add_to(app: typer.Typer) -> None:
    """Register the verbs."""
    app.command("rm")(remove_command)
    app.command("cp")(copy_command)


def remove_command(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", autocompletion=installed)],
    store: StoreOption = None,
    config: ConfigOption = None,
    host: HostOption = None,
    json_: JsonOption = False,
) -> None:
    """Remove models, and the files nothing else uses."""
    loaded = load_config(config, store)
    client = replace(server(loaded, host), timeout_s=_UNLOAD_TIMEOUT_S)
    removed = []
    for text in models:
        name = read_name(text)
        _unload(client, text)
        freed_bytes = open_store(loaded).remove(name)
        removed.append({"name": name.short(), "freed_bytes": freed_bytes})
        if not json_:
            typer.echo(f"deleted '{text}'")
    if json_:
        print_json({"removed": removed})


def _unload(client: Client, model: str) -> None:
    """Ask the server to let go of a model; without a server there is nothing to let go of."""
    try:
        client.post("/api/generate", {"model": model, "keep_alive": 0})
    except ServerUnreachableError:
        return
    except ServerRefusedError as error:
        if error.status != 404:  # noqa: PLR2004 - the server uses another store, or it is gone
            typer.echo(f"satchel: warning: unable to stop model '{model}': {error}", err=True)


def copy_command(
    source: Annotated[str, typer.Argument(metavar="SOURCE", autocompletion=installed)],
    destination: Annotated[str, typer.Argument(metavar="DESTINATION")],
    store: StoreOption = None,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """Give a model one more name."""
    open_store(load_config(config, store)).copy(read_name(source), read_name(destination))
    if json_:
        print_json({"source": source, "destination": destination})
    else:
        typer.echo(f"copied '{source}' to '{destination}'")
