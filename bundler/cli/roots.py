"""``satchel-bundle root``: its verbs stand in `bundler.rooting.cli`."""

from __future__ import annotations

import typer

from bundler.cli.signers import issued_now, signing_keys
from bundler.format.statement import format_time
from bundler.rooting.cli import Shell
from bundler.rooting.cli import app as root_app


def add_to(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.add_typer(root_app, name="root", callback=_shell)


def _shell(context: typer.Context) -> None:
    context.obj = Shell(signing_keys=signing_keys, now=lambda: format_time(issued_now()[0]))
