"""``satchel inventory``, ``device`` and ``receipts``: what this site says about itself."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from appliance import human
from appliance.cli.frame import (
    ConfigOption,
    JsonOption,
    StoreOption,
    load_config,
    open_store,
    print_json,
    read_name,
)
from appliance.cli.screen import Screen
from appliance.device import device_key, make_device_key
from appliance.errors import RequestError
from appliance.measuring import this_site
from appliance.receipt import carry_out, kept_receipts, read_kept
from appliance.stocktaking import take_stock
from bundler.format import fsio
from bundler.format.inventory import Inventory, write_inventory
from bundler.format.keys import PublicKey

receipts_app = typer.Typer(
    help="What each import did: list the receipts, show one as a page, carry them out.",
    rich_markup_mode=None,
    no_args_is_help=True,
)
NumberArgument = Annotated[int, typer.Argument(metavar="N", min=1, help="Number of the receipt.")]


def add_to(app: typer.Typer) -> None:
    """Register the verbs."""
    app.command("inventory")(inventory_command)
    app.command("device")(device_command)
    app.add_typer(receipts_app, name="receipts")


def inventory_command(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL...]", help="Only these models.")
    ] = None,
    *,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write it here, not to stdout.")
    ] = None,
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    """Say which pieces of which files are here, so that an update carries only the others.

    Every file is read and hashed. The inventory holds digests and sizes, the site's name, the
    last number of each channel and the free space: no model names, no prompts. It is signed by
    the device key, if there is one.

    The connected side packs against it: satchel-bundle pack --against FILE.
    """
    if out is None and sys.stdout.isatty():
        raise RequestError("expected a file, found a terminal", hint="satchel inventory > site.inv")
    site = this_site(load_config(config, store))
    names = [read_name(text) for text in models or []]
    key = device_key(site.store.paths)
    with Screen(site.machine, quiet=False) as screen:
        inventory = take_stock(names, site, screen)
    data = write_inventory(inventory, key)
    if out is None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        fsio.atomic_write(out, data)
    typer.echo(_summary(inventory, key.public_key if key else None, len(data)), err=True)


def _summary(inventory: Inventory, key: PublicKey | None, size_bytes: int) -> str:
    held = sum(one.size_bytes for one in inventory.objects)
    chunks = sum(1 for one in inventory.objects for _ in one.chunks())
    signed = f"signed by {key.words()}" if key else "not signed: satchel device --make makes a key"
    files = f"{len(inventory.objects)} file{'s' * (len(inventory.objects) != 1)}"
    return (
        f"{files}, {human.size(held)} in {chunks} chunks; "
        f"inventory of {human.size(size_bytes)}, {signed}"
    )


def device_command(
    *,
    make: Annotated[bool, typer.Option("--make", help="Make the key; once per machine.")] = False,
    store: StoreOption = None,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """Show the public half of the key that signs this machine's receipts and inventories.

    The output is a public key file: carry it to the connected side, and compare the words.
    """
    found = open_store(load_config(config, store))
    if make:
        key = make_device_key(found)
    else:
        private = device_key(found.paths)
        if private is None:
            raise RequestError(
                "device key: expected one, found none", hint="make it with: satchel device --make"
            )
        key = private.public_key
    if json_:
        print_json({"key_id": key.key_id, "words": key.words(), "public_key": key.text()})
        return
    for line in ("# satchel device key", f"# key id {key.key_id}", f"# words  {key.words()}"):
        typer.echo(line)
    typer.echo(key.text())


@receipts_app.command("list")
def receipts_list(
    *,
    store: StoreOption = None,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """List the receipts, the oldest first."""
    found = kept_receipts(open_store(load_config(config, store)).paths.receipts)
    if json_:
        listed = [{**one.members, "signed": bool(one.envelope)} for one in found]
        print_json({"receipts": listed})
        return
    for one in found:
        names = ", ".join(entry["name"] for entry in one.members["installed"])
        bundle = f"{one.members['channel']} {one.members['seq']}"
        signed = "signed" if one.envelope else "not signed"
        line = f"{one.number:06d}  {one.members['at']}  {bundle:<16}  {signed:<10}  {names}"
        typer.echo(human.printable(line))


@receipts_app.command("show")
def receipts_show(
    number: NumberArgument,
    *,
    store: StoreOption = None,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """Show a receipt as a page."""
    loaded = load_config(config, store)
    one = read_kept(open_store(loaded).paths.receipts, number)
    if json_:
        print_json({**one.members, "signed": bool(one.envelope)})
        return
    typer.echo(one.transcript(loaded.trust.site), nl=False)


@receipts_app.command("copy")
def receipts_copy(
    medium: Annotated[Path, typer.Argument(metavar="DIR", help="The medium; it must be there.")],
    *,
    number: Annotated[
        list[int] | None, typer.Option("--number", metavar="N", help="Only this one; repeatable.")
    ] = None,
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    """Write receipts to a medium, each as a signed envelope and as a page."""
    loaded = load_config(config, store)
    directory = open_store(loaded).paths.receipts
    if number:
        chosen = tuple(read_kept(directory, one) for one in number)
    else:
        chosen = kept_receipts(directory)
    for path in carry_out(chosen, medium, loaded.trust.site):
        typer.echo(str(path))
