"""``satchel trust import`` and ``scan``: trust roots that come without a bundle."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from appliance.cli.frame import (
    ConfigOption,
    JsonOption,
    StoreOption,
    load_config,
    open_store,
    print_json,
)
from appliance.updating import Updated, update_trust
from bundler.format.errors import LayoutError
from bundler.format.keys import KeyId, key_words
from bundler.format.paper import MAX_PARTS, MOST_CHARACTERS, join
from bundler.format.update import parse_update
from bundler.format.volume import find_update

_MAX_TYPED = 2 * MAX_PARTS
"""Lines read from a scanner: every code twice."""


def add_to(app: typer.Typer) -> None:
    """Register the verbs below ``satchel trust``."""
    app.command("import")(import_command)
    app.command("scan")(scan_command)


def import_command(
    medium: Annotated[
        Path, typer.Argument(metavar="DIR", help="The medium, or a directory of roots.")
    ],
    store: StoreOption = None,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """Follow the trust roots of a medium; no model is installed."""
    found = find_update(medium)
    if found is None:
        raise LayoutError(
            f"{medium}: expected trust roots, found none", hint="is the stick mounted there?"
        )
    kept = open_store(load_config(config, store))
    report(update_trust(kept, found.read_root, source="medium"), as_json=json_)


def scan_command(
    text: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TEXT]...", help="Texts of the codes; else typed or scanned."),
    ] = None,
    store: StoreOption = None,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """Follow trust roots from printed codes, in any order; a hand scanner types their texts."""
    texts = text or _typed()
    roots = parse_update(join(texts))
    kept = open_store(load_config(config, store))
    report(update_trust(kept, roots.get, source="paper"), as_json=json_)


def _typed() -> list[str]:
    """Lines of standard input, until an empty one or the end."""
    if sys.stdin.isatty():
        typer.echo("scan the codes in any order; an empty line ends", err=True)
    lines: list[str] = []
    while len(lines) < _MAX_TYPED:
        line = sys.stdin.readline(MOST_CHARACTERS + 64)
        if not line.strip():
            break
        lines.append(line)
    return lines


def update_json(updated: Updated) -> dict[str, Any]:
    """For machines."""
    root = updated.now.root
    return {
        "version": root.version,
        "followed": [one.root.version for one in updated.roots],
        "digest": str(updated.now.digest),
        "words": key_words(KeyId(updated.now.digest.hex)),
        "revoked_keys": sorted(root.revoked_keys),
        "revoked_bundles": sorted(str(one) for one in root.revoked_digests),
        "min_seq": dict(root.min_seq),
    }


def report(updated: Updated, *, as_json: bool, done: bool = True) -> None:
    """Say what an update did, or would do."""
    if as_json:
        print_json(update_json(updated))
        return
    root, before = updated.now.root, updated.before.root
    if not updated.roots:
        typer.echo(f"root {root.version} is in force already; the update holds nothing newer")
        return
    would = "" if done else "would be "
    typer.echo(f"root {before.version} {would}followed to root {root.version}")
    for key_id in sorted(root.revoked_keys - before.revoked_keys):
        typer.echo(f"revoked  key {key_id[:16]} {key_words(key_id)}")
    for digest in sorted(root.revoked_digests - before.revoked_digests):
        typer.echo(f"revoked  bundle {digest}")
    for channel, floor in sorted(root.min_seq.items()):
        if floor > before.min_seq.get(channel, 0):
            typer.echo(f"channel {channel}: nothing older than sequence {floor} comes in")
