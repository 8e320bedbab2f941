"""``satchel media``: what the service calls that a plugged-in medium starts."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from appliance.cli.frame import ConfigOption, StoreOption, load_config
from appliance.cli.screen import Screen
from appliance.config import Config
from appliance.errors import AppError, ApprovalMissingError, StoreBusyError
from appliance.importer import import_bundle
from appliance.measuring import this_site
from appliance.receipt import Receipt
from appliance.site import Request, Site
from appliance.verify import verify_bundle
from bundler.format.errors import BundleError, LayoutError, MissingVolumeError, printable
from bundler.format.volume import find_bundles

_TURN_S = 2.0
"""Between two looks whether another import has ended."""


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    app.command("media")(media_command)


def media_command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where the medium is mounted.")],
    *,
    label: Annotated[str, typer.Option(help="What to call the medium in messages.")] = "",
    wait: Annotated[float, typer.Option(help="Seconds to wait for another import.")] = 3600.0,
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    """Verify what is on a plugged-in medium, and install what is trusted.

    A medium without a bundle is one line. Bundles that are refused do not keep the others out.
    """
    loaded = load_config(config, store)
    name = label or directory.name
    policy = loaded.exchange.media
    if policy == "off":
        typer.echo(f"medium {name}: left alone, exchange.media is off")
        return
    try:
        bundles = find_bundles(directory)
    except LayoutError as error:
        typer.echo(f"medium {name}: not ours: {error}")
        return
    refused = 0
    for bundle in bundles:
        request = Request(medium=bundle.path)
        shown = f"medium {name}: bundle {printable(bundle.path.name)}"
        typer.echo(f"{shown}: {'verifying' if policy == 'verify' else 'importing'}")
        try:
            _take(request, loaded, shown, patience_s=wait, only_verify=policy == "verify")
        except (MissingVolumeError, ApprovalMissingError) as error:
            typer.echo(f"{shown}: kept, and waits: {error}")
        except (AppError, BundleError) as error:
            refused = refused or error.exit_code
            typer.echo(f"{shown}: refused: {error}")
            if error.hint:
                typer.echo(f"{shown}: hint: {error.hint}")
    typer.echo(f"medium {name}: done, it can be pulled out")
    if refused:
        raise typer.Exit(refused)


def _take(
    request: Request, config: Config, shown: str, *, patience_s: float, only_verify: bool
) -> None:
    site = this_site(config)
    if only_verify:
        with Screen(site.machine, quiet=False) as screen:
            report = verify_bundle(request, site, screen)
        if report.findings:
            raise report.findings[0]
        typer.echo(f"{shown}: in order; import it with: satchel import")
        return
    receipt = _import_in_turn(request, site, time.monotonic() + patience_s)
    names = ", ".join(entry.name for entry in receipt.installed)
    typer.echo(f"{shown}: {'installed' if receipt.changed else 'already installed'}: {names}")


def _import_in_turn(request: Request, site: Site, until_s: float) -> Receipt:
    """Import once no other import runs: sticks that are plugged in together take turns."""
    while True:
        try:
            with Screen(site.machine, quiet=False) as screen:
                return import_bundle(request, site, screen)
        except StoreBusyError:
            if time.monotonic() >= until_s:
                raise
            time.sleep(_TURN_S)
