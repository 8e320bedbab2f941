"""``satchel-bundle keygen`` and ``public``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bundler.cli.frame import Json, PassphraseFile, print_json
from bundler.cli.signers import passphrase, signing_keys
from bundler.keyfiles import make_pair, public_text


def add_to(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command()(keygen)
    app.command()(public)


def keygen(
    name: Annotated[Path, typer.Argument(help="Writes NAME.key and NAME.pub.")],
    no_passphrase: Annotated[
        bool, typer.Option("--no-passphrase", help="Leave the private key unencrypted.")
    ] = False,
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """Make a signing key: NAME.key stays here, NAME.pub goes to the target."""
    secret = None if no_passphrase else passphrase(passphrase_file, confirm=True)
    private, public, key = make_pair(name, secret)
    if as_json:
        print_json(
            {
                "private_key": str(private),
                "public_key": str(public),
                "encrypted": bool(secret),
                "key_id": key.key_id,
                "words": key.words(),
            }
        )
        return
    print(f"private key  {private}" + ("" if secret else "  (not encrypted)"))
    print(f"public key   {public}")
    print(f"key id       {key.key_id}")
    print(f"words        {key.words()}")
    print("read the words aloud to whoever adds the public key on the target")


def public(
    key: Annotated[str, typer.Argument(metavar="KEY", help="Private key file or pkcs11: URI.")],
    label: Annotated[str, typer.Option(help="Name in the file's first comment.")] = "",
    passphrase_file: PassphraseFile = None,
) -> None:
    """Print the public half of a key, as the file for satchel trust add."""
    (signer,) = signing_keys([key], passphrase_file)
    print(public_text(signer.public_key, label).decode(), end="")
