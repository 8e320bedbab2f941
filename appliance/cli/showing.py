"""``satchel show``: what one model is. No server is needed."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from appliance import human
from appliance.cli.describe import blocks, modelfile, parameter_lines
from appliance.cli.facts import model_json
from appliance.cli.frame import (
    ConfigOption,
    JsonOption,
    ModelArgument,
    StoreOption,
    load_config,
    open_catalogue,
    print_json,
    read_name,
)
from appliance.errors import RequestError


def add_to(app: typer.Typer) -> None:
    """Register the verbs."""
    app.command("show")(show_command)


def show_command(
    model: ModelArgument,
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
    found = open_catalogue(load_config(config, store)).resolve(read_name(model))
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
        print_json({**model_json(found), "profile": found.profile.to_json()})
    else:
        typer.echo(blocks(found, verbose=verbose))


def _echo(text: str) -> None:
    """Into a file or a pipe as it is; on a terminal without what could steer it."""
    typer.echo(human.printable(text) if sys.stdout.isatty() else text)
