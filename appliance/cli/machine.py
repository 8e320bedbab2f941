"""``satchel commission``: what a new machine calls at its start."""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path
from typing import Annotated

import typer

from appliance.cli.frame import ConfigOption, StoreOption, load_config, open_store
from appliance.commissioning import commission, read_credentials

_KEY_BYTES = 24


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    app.command("commission")(commission_command)


def commission_command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where the machine keeps it.")],
    image: Annotated[
        Path, typer.Option(help="Directory of what the image brings, such as satchel.root.")
    ] = Path("/usr/lib/satchel-image/commissioning"),
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    """Make what a new machine needs: an API key, trust, a site.

    Credentials the service manager passes on go before what the image brings.
    What is there already stays.
    """
    passed = os.environ.get("CREDENTIALS_DIRECTORY", "")
    given = read_credentials(*([Path(passed)] if passed else []), image)
    found = open_store(load_config(config, store))
    key = f"sk-{secrets.token_urlsafe(_KEY_BYTES)}"
    for line in commission(directory, found, given, new_key=key, now_s=time.time()):
        typer.echo(line)
