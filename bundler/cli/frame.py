"""What the verbs share: options that mean the same everywhere, and the form of the output."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer

PROGRAM: Final = "satchel-bundle"
PASSPHRASE_VARIABLE: Final = "SATCHEL_KEY_PASSPHRASE"  # noqa: S105 - a name, not a secret
MAX_TEXT_BYTES: Final = 4 << 20
"""Most that is read of a licence, a template or a passphrase."""

PassphraseFile = Annotated[
    Path | None,
    typer.Option(help=f"File with the key's passphrase; else {PASSPHRASE_VARIABLE}, else asked."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
PIN_VARIABLE: Final = "SATCHEL_TOKEN_PIN"
Keys = Annotated[
    list[str] | None,
    typer.Option("--key", metavar="KEY", help="Private key file or pkcs11: URI; may be repeated."),
]
"""A URI names a key on a token (docs/operating.md); its PIN comes from the file that the URI names,
from `PIN_VARIABLE`, or from the terminal."""


def print_json(value: Any) -> None:
    """Print a document for machines."""
    print(json.dumps(value, indent=2))


def warn(text: str) -> None:
    """One line on stderr that changes nothing."""
    print(f"{PROGRAM}: warning: {text}", file=sys.stderr)
