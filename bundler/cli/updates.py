"""``satchel-bundle trust``: roots for sites that get no bundle, on a medium or on paper."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bundler.cli.frame import Json, print_json
from bundler.cli.inputs import check_medium
from bundler.errors import PackError
from bundler.format.paper import DEFAULT_CHARACTERS, LEAST_CHARACTERS, MOST_CHARACTERS
from bundler.rooting.folder import open_roots
from bundler.rooting.printing import drawn, texts_of, write_pictures, write_update
from hwprobe.quantity import Bytes

Directory = Annotated[Path, typer.Argument(metavar="DIR", help="Directory of trust roots.")]

trust_app = typer.Typer(
    help="Carry revocations and new keys to sites without a bundle.",
    rich_markup_mode=None,
    no_args_is_help=True,
)


class Form(StrEnum):
    """How codes are written."""

    TERMINAL = "terminal"
    TEXT = "text"
    PNG = "png"
    SVG = "svg"


def add_to(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.add_typer(trust_app, name="trust")


@trust_app.command()
def pack(
    directory: Directory,
    out: Annotated[Path, typer.Option(help="Root of the medium to write to; must exist.")],
    as_json: Json = False,
) -> None:
    """Put the whole chain of roots on a medium, a few kilobytes."""
    check_medium(out)
    written, size_bytes = write_update(open_roots(directory), out)
    if as_json:
        print_json({"directory": str(written), "size": size_bytes})
        return
    print(f"{Bytes(size_bytes)} in {written}")
    print("on the target: satchel import, or satchel trust import")
    print(f"safe to remove: {out}")


@trust_app.command()
def qr(
    directory: Directory,
    *,
    since: Annotated[int, typer.Option(min=1, help="Version of the root that the site has.")] = 1,
    form: Annotated[Form, typer.Option("--as", help="How the codes are shown.")] = Form.TERMINAL,
    out: Annotated[Path | None, typer.Option(help="Directory for pictures.")] = None,
    characters: Annotated[
        int,
        typer.Option(
            min=LEAST_CHARACTERS, max=MOST_CHARACTERS, help="Most characters of one code."
        ),
    ] = DEFAULT_CHARACTERS,
) -> None:
    """Print the roots after a version as QR codes, for satchel trust scan."""
    if (form in (Form.PNG, Form.SVG)) != (out is not None):
        raise PackError("expected --out with --as png or svg, and only there")
    texts = texts_of(open_roots(directory), since=since, characters=characters)
    if out is not None:
        for path in write_pictures(texts, out, "png" if form is Form.PNG else "svg"):
            print(path)
        return
    for place, text in enumerate(texts, start=1):
        if form is Form.TEXT:
            print(text)
        else:
            print(f"code {place} of {len(texts)}")
            print(drawn(text))
