"""``satchel show``: what one model is. No server is needed."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated

import typer

from appliance import human
from appliance.cli.describe import blocks, modelfile, parameter_lines
from appliance.cli.facts import model_json, revocations
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
from appliance.config import Config
from appliance.errors import RequestError
from appliance.evidence import kept_evidence, source_of
from appliance.model import InstalledModel


def add_to(app: typer.Typer) -> None:
    """Register the verbs."""
    app.command("show")(show_command)


def _revoked(model: InstalledModel, settings: Config) -> str:
    return revocations(open_catalogue(settings).paths, [model])[model.name.short()]


def show_command(
    model: ModelArgument,
    *,
    license_: Annotated[bool, typer.Option("--license", help="Only the licences.")] = False,
    modelfile_: Annotated[bool, typer.Option("--modelfile", help="Only the Modelfile.")] = False,
    parameters: Annotated[bool, typer.Option("--parameters", help="Only the parameters.")] = False,
    template: Annotated[bool, typer.Option("--template", help="Only the template.")] = False,
    system: Annotated[bool, typer.Option("--system", help="Only the system message.")] = False,
    provenance: Annotated[
        bool, typer.Option("--provenance", help="Where it came from, and what came with it.")
    ] = False,
    placement: Annotated[
        bool, typer.Option("--placement", help="How it would run on this machine now.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Metadata, tensors.")] = False,
    store: StoreOption = None,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """Show what a model is."""
    if sum((license_, modelfile_, parameters, template, system, placement, provenance)) > 1:
        raise RequestError(
            "expected one of --license, --modelfile, --parameters, --placement, --provenance, "
            "--system, --template, found several"
        )
    settings = load_config(config, store)
    catalogue = open_catalogue(settings)
    found = catalogue.resolve(read_name(model))
    if placement:
        _show_placement(found, settings, as_json=json_)
    elif provenance:
        _show_provenance(found, kept_evidence(catalogue.paths, found.digest), as_json=json_)
    elif license_:
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
        shown = model_json(found, revoked=_revoked(found, settings))
        print_json({**shown, "profile": found.profile.to_json()})
    else:
        typer.echo(blocks(found, verbose=verbose, revoked=_revoked(found, settings)))


def _show_provenance(
    model: InstalledModel, documents: Mapping[str, bytes], *, as_json: bool
) -> None:
    origin, source = model.provenance, source_of(documents)
    if as_json:
        kept = {name: len(data) for name, data in documents.items()}
        bundle = asdict(origin) if origin else None
        print_json({"bundle": bundle, "source": source or None, "documents": kept})
        return
    rows: list[tuple[str, object]] = []
    if origin is not None:
        rows += [
            ("bundle", f"{origin.channel} {origin.seq} ({origin.bundle_id})"),
            ("statement", origin.statement),
            *(("signed by", key) for key in origin.signed_by),
            ("variant", origin.variant),
            ("imported at", origin.imported_at),
        ]
    else:
        rows.append(("bundle", "none: nobody signed it, or it was made here"))
    rows += [(name, source[name]) for name in ("uri", "revision", "digest") if source.get(name)]
    licences = source.get("licences") or []
    rows += [("licence", one) for one in licences]
    rows += [("document", f"{name} ({human.size(len(data))})") for name, data in documents.items()]
    _echo("\n".join(f"{label:<12} {value}" for label, value in rows))


def _show_placement(model: InstalledModel, config: Config, *, as_json: bool) -> None:
    # Heavy, and rarely asked for.
    from appliance.placing import placed, placed_json, placed_lines  # noqa: PLC0415

    answer = placed(model, config)
    if as_json:
        print_json(placed_json(answer))
    else:
        _echo("\n".join(placed_lines(answer)))


def _echo(text: str) -> None:
    """Into a file or a pipe as it is; on a terminal without what could steer it."""
    typer.echo(human.printable(text) if sys.stdout.isatty() else text)
