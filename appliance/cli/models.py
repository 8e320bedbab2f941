"""``satchel list``, ``show``, ``rm`` and ``cp``: what is installed. No server is needed."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, replace
from typing import Annotated, Any

import typer

from appliance import human
from appliance.cli.describe import blocks, modelfile, parameter_lines
from appliance.cli.frame import (
    ConfigOption,
    HostOption,
    JsonOption,
    StoreOption,
    load_config,
    open_store,
    print_json,
    read_name,
    server,
)
from appliance.client import Client
from appliance.errors import RequestError, ServerRefusedError, ServerUnreachableError
from appliance.journal import timestamp
from appliance.model import InstalledModel

_UNLOAD_TIMEOUT_S = 10.0
NameArgument = Annotated[str, typer.Argument(metavar="MODEL")]


def add_to(app: typer.Typer) -> None:
    """Register the verbs."""
    app.command("list")(list_command)
    app.command("ls", hidden=True)(list_command)
    app.command("show")(show_command)
    app.command("rm")(remove_command)
    app.command("cp")(copy_command)


def list_command(
    prefix: Annotated[str, typer.Argument(help="Only names that begin like this.")] = "",
    store: StoreOption = None,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """List the installed models, the newest first."""
    survey = open_store(load_config(config, store)).survey()
    models = [
        model
        for model in survey.models
        if model.name.short().lower().startswith(prefix.strip().lower())
    ]
    if json_:
        print_json({"models": [_model_json(model) for model in models]})
    else:
        now_s = time.time()
        rows = [
            (
                model.name.short(),
                model.digest.short(),
                human.size(model.size_bytes),
                human.moment(model.modified_at_s, now_s=now_s),
            )
            for model in models
        ]
        typer.echo(human.table(("NAME", "ID", "SIZE", "MODIFIED"), rows))
    for fault in survey.faults:
        typer.echo(f"satchel: warning: {fault.path}: {fault.reason}", err=True)


def _model_json(model: InstalledModel) -> dict[str, Any]:
    origin = model.provenance
    return {
        "name": model.name.short(),
        "digest": model.digest.hex,
        "size": model.size_bytes,
        "modified_at": timestamp(model.modified_at_s),
        "weights": str(model.model_digest),
        "details": dict(model.config),
        "made_here": None if model.creation is None else asdict(model.creation),
        "bundle": None
        if origin is None
        else {
            "id": origin.bundle_id,
            "channel": origin.channel,
            "seq": origin.seq,
            "variant": origin.variant,
            "signed_by": list(origin.signed_by),
            "imported_at": origin.imported_at,
        },
    }


def show_command(
    model: NameArgument,
    *,
    license_: Annotated[bool, typer.Option("--license", help="Only the licences.")] = False,
    modelfile_: Annotated[bool, typer.Option("--modelfile", help="Only the Modelfile.")] = False,
    parameters: Annotated[bool, typer.Option("--parameters", help="Only the parameters.")] = False,
    template: Annotated[bool, typer.Option("--template", help="Only the template.")] = False,
    system: Annotated[bool, typer.Option("--system", help="Only the system message.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Metadata, tensors.")] = False,
    store: StoreOption = None,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """Show what a model is."""
    if sum((license_, modelfile_, parameters, template, system)) > 1:
        raise RequestError(
            "expected one of --license, --modelfile, --parameters, --system, --template, "
            "found several"
        )
    found = open_store(load_config(config, store)).resolve(read_name(model))
    if license_:
        _echo("\n".join(found.licenses))
    elif modelfile_:
        _echo(modelfile(found))
    elif parameters:
        _echo("\n".join(parameter_lines(found.parameters)))
    elif template:
        _echo(found.template or found.profile.chat_template or "")
    elif system:
        _echo(found.system)
    elif json_:
        print_json({**_model_json(found), "profile": found.profile.to_json()})
    else:
        typer.echo(blocks(found, verbose=verbose))


def _echo(text: str) -> None:
    """Into a file or a pipe as it is; on a terminal without what could steer it."""
    typer.echo(human.printable(text) if sys.stdout.isatty() else text)


def remove_command(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...")],
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
    source: Annotated[str, typer.Argument(metavar="SOURCE")],
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
