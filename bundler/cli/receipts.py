"""``satchel-bundle receipt``: what a site says it installed, checked in the office."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from bundler.cli.frame import Json, print_json
from bundler.cli.inputs import read_text
from bundler.errors import ReceiptRefusedError
from bundler.format.digest import Digest
from bundler.format.fsio import read_bounded
from bundler.format.keys import PublicKey
from bundler.format.receipt import ReadReceipt, chain_gaps, read_receipt, transcript
from bundler.signing import open_envelope

_MAX_FILE_BYTES: Final = 2 << 20

receipt_app = typer.Typer(
    help="Check receipts that came back from a site.",
    rich_markup_mode=None,
    no_args_is_help=True,
)


@receipt_app.callback()
def _group() -> None:
    """Keep ``verify`` a verb of its own, although it is the only one."""


def add_to(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.add_typer(receipt_app, name="receipt")


@receipt_app.command()
def verify(
    receipts: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Envelopes, N.receipt.dsse.json.")
    ],
    *,
    device: Annotated[Path, typer.Option(help="The site's device key (satchel device).")],
    bundle: Annotated[
        Path | None, typer.Option(help="Medium or bundle: one receipt must be of this bundle.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check the signature of each receipt, and that none is missing between them."""
    key = PublicKey.parse(read_text(device))
    found = [_read(path, key) for path in receipts]
    problems = chain_gaps(found)
    if bundle is not None:
        statement = str(Digest.of(open_envelope(bundle).envelope.payload))
        if statement not in {one.members["statement"] for one in found}:
            problems = (*problems, f"no receipt is of the bundle {statement}")
    if problems:
        raise ReceiptRefusedError(
            "; ".join(problems), hint="ask the site for the receipts: satchel receipts copy"
        )
    ordered = sorted(found, key=lambda one: one.number)
    if as_json:
        print_json({"signed_by": key.key_id, "receipts": [dict(one.members) for one in ordered]})
        return
    for one in ordered:
        print(transcript(one.members, one.digest))
    print(f"{len(ordered)} signed by {key.words()}")


def _read(path: Path, key: PublicKey) -> ReadReceipt:
    found = read_receipt(read_bounded(path, max_bytes=_MAX_FILE_BYTES))
    if not found.signed_by(key):
        what = "another signature" if found.envelope.signatures else "none"
        raise ReceiptRefusedError(
            f"{path}: expected the signature of {key.words()}, found {what}",
            hint="the site's key is shown there by: satchel device",
        )
    return found
