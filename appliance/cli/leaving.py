"""``satchel export``: installed models for other tools. No server is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from appliance import human
from appliance.cli.frame import (
    ConfigOption,
    JsonOption,
    StoreOption,
    installed,
    load_config,
    open_store,
    print_json,
    read_name,
)
from appliance.cli.steps import Steps
from appliance.errors import RequestError
from appliance.exporting import FORMS, export


def add_to(app: typer.Typer) -> None:
    """Register the verbs."""
    app.command("export")(export_command)


def export_command(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", autocompletion=installed)],
    *,
    as_: Annotated[
        str,
        typer.Option(
            "--as",
            metavar="FORM",
            help="gguf, ollama or oci; see below.",
            autocompletion=lambda: FORMS,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where to; it must be there.")],
    store: StoreOption = None,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """Copy models out for other tools, every file checked on its way.

    gguf writes NAME.gguf, beside it projector and adapters, and NAME.Modelfile, which makes the
    model again. ollama writes a store that Ollama reads, with the same ids. oci writes an OCI
    image layout in the form of ModelPack.

    Nothing is written over; a store or layout that is there already gets the models added.

    None of them is signed. A signed bundle is made on the connected side, where the keys are:
    export --as ollama, and there satchel-bundle pack --from ollama:NAME --store DIR.
    """
    form = next((one for one in FORMS if one == as_), None)
    if form is None:
        raise RequestError(f"as: expected {', '.join(FORMS)}, found {as_!r}")
    names = [read_name(text) for text in models]
    found = open_store(load_config(config, store))
    with Steps(quiet=json_) as steps:
        done = export(names, form, out, found, steps.tell)
    if json_:
        print_json(
            {
                "form": form,
                "models": [
                    {
                        "name": one.name,
                        "size": one.size_bytes,
                        "files": [str(path) for path in one.files],
                    }
                    for one in done
                ],
            }
        )
        return
    for one in done:
        typer.echo(f"exported {one.name} ({human.size(one.size_bytes)})")
        for path in one.files:
            typer.echo(f"  {path}")
