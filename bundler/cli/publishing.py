"""``satchel-bundle publish``: a finished bundle into a registry of the site."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from bundler.cli.frame import Json, print_json
from bundler.cli.inputs import logins
from bundler.errors import PackError
from bundler.format.volume import find_bundles
from bundler.progress import Silent
from bundler.publishing import names_of, publish
from bundler.screen import screen_progress
from bundler.signing import open_envelope
from bundler.source.registry import Registry

_PLACE = re.compile(r"([A-Za-z0-9.-]+(?::[0-9]{1,5})?)((?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*)/?")


def add_to(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("publish")(publish_command)


def publish_command(
    bundle: Annotated[Path, typer.Argument(help="Medium, or bundle directory.")],
    registry: Annotated[str, typer.Argument(metavar="HOST[/PREFIX]", help="The registry.")],
    *,
    authority: Annotated[
        Path | None,
        typer.Option("--ca", metavar="FILE", help="Certificates that alone may vouch for HOST."),
    ] = None,
    plain_http: Annotated[bool, typer.Option("--plain-http", help="Without TLS.")] = False,
    as_json: Json = False,
) -> None:
    """Put a bundle into a registry, from which satchel pull takes it."""
    place = _PLACE.fullmatch(registry)
    if place is None:
        raise PackError(f"registry: expected HOST[:PORT][/PREFIX], found {registry!r}")
    opened = open_envelope(bundle)
    names = names_of(opened.manifest, f"{place[2][1:]}/" if place[2] else "")
    (found,) = find_bundles(bundle)
    client = Registry(
        place[1], plain_http=plain_http, login=logins().get(place[1]), authority=authority
    )
    publish(found, opened.manifest, client, names, Silent() if as_json else screen_progress())
    if as_json:
        print_json(
            {
                "registry": place[1],
                "models": {name: f"{where}:{tag}" for name, (where, tag) in names.items()},
            }
        )
        return
    for name, (where, tag) in names.items():
        print(f"published {name} as {place[1]}/{where}:{tag}")
