"""``satchel-bundle repair``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bundler.answering import answer
from bundler.cli.frame import Json, print_json
from bundler.cli.inputs import check_medium
from bundler.format.fsio import read_bounded
from bundler.format.limits import MAX_ENVELOPE_BYTES
from bundler.format.repair import read_request
from bundler.screen import screen_progress
from hwprobe.quantity import Bytes


def add_to(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(repair)


def repair(
    bundle: Annotated[
        list[Path],
        typer.Argument(metavar="DIR…", help="A good copy of the bundle: its medium or volumes."),
    ],
    *,
    request: Annotated[
        Path, typer.Option("--answer", metavar="REQUEST", help="File of satchel repair-request.")
    ],
    out: Annotated[Path, typer.Option(help="Root of the medium to write to; must exist.")],
    as_json: Json = False,
) -> None:
    """Pack only the chunks that a site asks for."""
    check_medium(out)
    asked = read_request(read_bounded(request.resolve(), max_bytes=MAX_ENVELOPE_BYTES))
    done = answer(asked, bundle, out, screen_progress())
    if as_json:
        print_json(
            {"directory": str(done.directory), "chunks": done.chunks, "size": done.size_bytes}
        )
        return
    chunks = f"{done.chunks} chunk{'s' * (done.chunks != 1)}"
    print(f"{chunks}, {Bytes(done.size_bytes)}, written and read back in {done.directory}")
    print(f"safe to remove: {out}")
