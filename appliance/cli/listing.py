"""``satchel list``: what is installed. No server is needed."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from appliance import human
from appliance.cli.facts import model_json, revocations
from appliance.cli.frame import (
    ConfigOption,
    JsonOption,
    StoreOption,
    load_config,
    open_catalogue,
    print_json,
)
from appliance.cli.frame import installed as installed_names


def add_to(app: typer.Typer) -> None:
    """Register the verbs."""
    app.command("list")(list_command)
    app.command("ls", hidden=True)(list_command)


def list_command(
    prefix: Annotated[
        str, typer.Argument(help="Only names that begin like this.", autocompletion=installed_names)
    ] = "",
    store: StoreOption = None,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """List the installed models, the newest first."""
    catalogue = open_catalogue(load_config(config, store))
    survey = catalogue.survey()
    models = [
        model
        for model in survey.models
        if model.name.short().lower().startswith(prefix.strip().lower())
    ]
    reasons = revocations(catalogue.paths, models)
    if json_:
        shown = [model_json(one, revoked=reasons[one.name.short()]) for one in models]
        print_json({"models": shown})
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
    for model in models:
        if why := reasons[model.name.short()]:
            typer.echo(f"satchel: warning: {model.name.short()}: {why}", err=True)
    for fault in survey.faults:
        typer.echo(f"satchel: warning: {fault.path}: {fault.reason}", err=True)
