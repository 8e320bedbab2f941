"""``satchel-bundle plan`` and ``prove``: what a bundle would take, and what a medium gives."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from bundler.cli.frame import Json, print_json
from bundler.cli.inputs import check_medium
from bundler.forecast import forecast, forecast_json, forecast_lines, read_room
from bundler.format.errors import NoSpaceError
from bundler.format.name import ModelName
from bundler.plan import PackRequest, make_plan, nearest_existing
from bundler.proving import measure_speed, prove_capacity
from bundler.removable import is_removable
from bundler.screen import screen_progress
from bundler.source.gguf_file import open_gguf
from bundler.volumes import parse_size
from hwprobe.quantity import Bytes


def add_to(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command()(plan)
    app.command()(prove)


def plan(
    source: Annotated[Path, typer.Argument(help="GGUF file.")],
    *,
    out: Annotated[Path, typer.Option(help="Root of the medium; must exist.")],
    quantize: Annotated[
        str, typer.Option(help="Variants to make, such as Q8_0,Q4_K_M.", metavar="TYPES")
    ] = "",
    include_source: Annotated[
        bool, typer.Option("--include-source", help="Carry SOURCE itself as a variant too.")
    ] = False,
    volume_size: Annotated[str, typer.Option(metavar="SIZE", help="Spread it, as pack does.")] = "",
    parity: Annotated[
        bool | None, typer.Option(help="[default: for volumes and removable media]")
    ] = None,
    projector: Annotated[Path | None, typer.Option(help="Multimodal projector.")] = None,
    adapter: Annotated[
        list[Path] | None, typer.Option(help="LoRA adapter; may be repeated.")
    ] = None,
    work: Annotated[Path | None, typer.Option(help="Directory for quantized files.")] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Try the medium's speed with a file that goes again.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say how large a bundle gets, on how many volumes, and how long it takes; write nothing."""
    check_medium(out)
    volume_bytes = parse_size(volume_size) if volume_size else 0
    request = PackRequest(
        source=source,
        name=ModelName.parse("planned"),
        out=out,
        channel="main",
        seq=1,
        quantizations=tuple(one for one in quantize.split(",") if one.strip()),
        include_source=include_source,
        keys=(),
        unsigned=True,
        issued=datetime.fromtimestamp(0, UTC),
        projector=projector,
        adapters=tuple(adapter or ()),
        volume_bytes=volume_bytes,
        parity=(bool(volume_size) or is_removable(out)) if parity is None else parity,
        work=work or Path(tempfile.gettempdir()),
    )
    opened = open_gguf(source)
    made = make_plan(request, opened.profile, chunks=len(opened.cuts))
    room = read_room(out, nearest_existing(request.work))
    found = forecast(made, volume_bytes, room, measure_speed(out) if measure else None)
    if as_json:
        print_json(forecast_json(found))
    else:
        print("\n".join(forecast_lines(found)))
    if found.lacks:
        raise NoSpaceError(found.lacks[0], hint="take a larger medium, or fewer variants")


def prove(
    medium: Annotated[Path, typer.Argument(help="Directory on the medium.")],
    as_json: Json = False,
) -> None:
    """Fill a medium's free space, read it back, and empty it again: is it as large as it says?"""
    check_medium(medium)
    proved = prove_capacity(medium, screen_progress())
    if as_json:
        print_json({"proved_bytes": proved})
        return
    print(f"{Bytes(proved)} were written and came back: {medium}")
