"""``satchel inventory`` and ``satchel device``: what this site says about itself."""

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
from appliance.stocktaking import take_stock
from bundler.format import fsio
from bundler.format.inventory import Inventory, write_inventory
from bundler.format.keys import PublicKey


def add_to(app: typer.Typer) -> None:
    """Register the verbs."""
    app.command("inventory")(inventory_command)
    app.command("device")(device_command)


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
