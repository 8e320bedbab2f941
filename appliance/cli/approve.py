"""``satchel approve``: several people agree before an import takes effect."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from appliance.approving import Standing, add_approval, go_on, reject, standings
from appliance.cli.bundles import print_receipt
from appliance.cli.frame import ConfigOption, JsonOption, StoreOption, load_config, print_json
from appliance.cli.screen import Screen
from appliance.errors import RequestError
from appliance.measuring import this_site
from appliance.policyfile import load_policy
from appliance.site import Site
from bundler.format.errors import KeyFileError
from bundler.format.fsio import read_bounded
from bundler.format.keys import SigningKey

_PASSPHRASE = "SATCHEL_KEY_PASSPHRASE"  # noqa: S105 - a name, not a secret
_MAX_KEY_BYTES = 64 << 10


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    app.command("approve")(approve_command)


def approve_command(
    bundle: Annotated[
        str, typer.Argument(metavar="[CHANNEL:SEQ]", help="Or the statement's digest.")
    ] = "",
    *,
    key: Annotated[Path | None, typer.Option(help="Private key file of an approver.")] = None,
    reject_: Annotated[bool, typer.Option("--reject", help="Forget the import.")] = False,
    store: StoreOption = None,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """Approve an import that waits, or list what waits; the last approval carries it out."""
    site = this_site(load_config(config, store))
    if bundle and (key is None) != reject_:
        raise RequestError("expected --key or --reject, found both or none")
    if not bundle and (key is not None or reject_):
        raise RequestError("expected CHANNEL:SEQ, found none", hint="see: satchel approve")
    if not bundle:
        _show_waiting(site, as_json=json_)
    elif key is not None:
        _approve(bundle, key, site, as_json=json_)
    else:
        gone = reject(bundle, site)
        if json_:
            print_json({"rejected": str(gone.statement)})
        else:
            typer.echo(f"rejected {gone.name}; satchel prune removes its files")


def _show_waiting(site: Site, *, as_json: bool) -> None:
    labels = load_policy(site.store.paths.trust).labels()
    shown = [_standing_json(one, labels) for one in standings(site)]
    if as_json:
        print_json({"waiting": shown})
        return
    if not shown:
        typer.echo("nothing waits for approval")
    for one in shown:
        typer.echo(_line(one))


def _approve(bundle: str, key: Path, site: Site, *, as_json: bool) -> None:
    standing = add_approval(bundle, _load(key), site)
    if not standing.enough:
        if as_json:
            print_json(_standing_json(standing, load_policy(site.store.paths.trust).labels()))
        else:
            have, need = len(standing.approved_by), standing.needed
            typer.echo(f"approved {standing.waiting.name}: {have} of {need}")
        return
    with Screen(site.machine, quiet=as_json) as screen:
        receipt = go_on(standing.waiting, site, screen)
    if as_json:
        print_json(receipt.to_json())
    else:
        print_receipt(receipt)


def _standing_json(one: Standing, labels: Any) -> dict[str, Any]:
    info = one.waiting.manifest.bundle
    return {
        "name": one.waiting.name,
        "statement": str(one.waiting.statement),
        "models": [model.name.short() for model in one.waiting.manifest.models],
        "notes": info.notes,
        "staged_at": one.waiting.asked.at,
        "approved_by": {key: labels.get(key, key) for key in sorted(one.approved_by)},
        "needed": one.needed,
    }


def _line(one: dict[str, Any]) -> str:
    have = len(one["approved_by"])
    named = ", ".join(one["models"])
    by = f" by {', '.join(one['approved_by'].values())}" if have else ""
    digest = one["statement"].removeprefix("sha256:")[:12]
    return f"{one['name']}  {digest}  {named}  approved {have} of {one['needed']}{by}"


def _load(path: Path) -> SigningKey:
    """An approver's key file; its passphrase comes from the environment or the terminal."""
    data = read_bounded(path.resolve(), max_bytes=_MAX_KEY_BYTES)
    if b"ENCRYPTED" not in data:
        if path.stat().st_mode & 0o077:
            raise KeyFileError(
                f"{path}: expected a key that only its owner can read", hint=f"chmod 600 {path}"
            )
        return SigningKey.load(data)
    if _PASSPHRASE in os.environ:
        return SigningKey.load(data, os.environb[_PASSPHRASE.encode()])
    if not sys.stdin.isatty():
        raise KeyFileError("passphrase: expected one, found none", hint=f"set {_PASSPHRASE}")
    asked: str = typer.prompt("passphrase", hide_input=True, err=True)
    return SigningKey.load(data, asked.encode())
