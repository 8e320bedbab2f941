"""``satchel-bundle copy``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bundler.cli.frame import Json, print_json
from bundler.cli.inputs import check_medium
from bundler.copying import copy_bundle
from bundler.errors import PackError
from bundler.format.volume import find_bundles
from bundler.proving import prove_capacity
from bundler.screen import screen_progress
from hwprobe.quantity import Bytes


def add_to(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(copy)


def copy(
    bundle: Annotated[Path, typer.Argument(help="Medium, volume or bundle directory.")],
    *,
    out: Annotated[Path, typer.Option(help="Root of the medium to write to; must exist.")],
    prove: Annotated[
        bool,
        typer.Option(
            "--prove-capacity", help="First fill the medium and read it back (takes long)."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Copy a bundle, or one volume of it, to a medium, and read it back."""
    check_medium(out)
    found = find_bundles(bundle)
    if len(found) > 1:
        raise PackError(
            f"{bundle}: expected one bundle, found {len(found)}",
            hint=f"name one of them: {found[-1].path}",
        )
    if prove:
        prove_capacity(out, screen_progress())
    copied = copy_bundle(found[0], out, screen_progress())
    if as_json:
        print_json(
            {
                "directory": str(copied.directory),
                "volumes": list(copied.volumes),
                "size": copied.size_bytes,
            }
        )
        return
    print(f"copied and read back: {Bytes(copied.size_bytes)} in {copied.directory}")
    print(f"safe to remove: {out}")
