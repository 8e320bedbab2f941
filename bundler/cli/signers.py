"""Whose signature: private keys with their passphrases or PINs, and the time of signing."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import typer

from bundler.cli.frame import MAX_TEXT_BYTES, PASSPHRASE_VARIABLE, PIN_VARIABLE
from bundler.errors import PackError
from bundler.format.errors import KeyFileError
from bundler.format.fsio import read_bounded
from bundler.format.keys import Signer
from bundler.keyfiles import check_private, load_signer
from bundler.keyuri import KeyUri, is_key_uri
from bundler.sequence import SUFFIX, counter_file


def signing_keys(keys: list[str], passphrase_file: Path | None) -> tuple[Signer, ...]:
    """Private keys from their files, each decrypted with the one passphrase, or on their tokens."""
    return tuple(
        load_signer(key, passphrase=lambda: passphrase(passphrase_file, confirm=False), pin=_pin)
        for key in keys
    )


def counter_of(keys: list[str], signers: tuple[Signer, ...]) -> Path:
    """Where the sequence numbers of the first key are kept.

    Beside a key file; for a key on a token, and for bundles that are signed later, below the
    user's directory of state.
    """
    if keys and not is_key_uri(keys[0]):
        return counter_file(Path(keys[0]))
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    name = signers[0].public_key.key_id[:16] if signers else "unsigned"
    return state / "satchel" / f"{name}{SUFFIX}"


def _pin(uri: KeyUri) -> str:
    if PIN_VARIABLE in os.environ:
        return os.environ[PIN_VARIABLE]
    if not sys.stdin.isatty():
        raise KeyFileError(
            f"{uri.shown()}: expected its PIN, found none",
            hint=f"set {PIN_VARIABLE}, or name a file with &pin-source=/path in the URI",
        )
    asked: str = typer.prompt(f"PIN of {uri.shown()}", hide_input=True, err=True)
    return asked


def passphrase(file: Path | None, *, confirm: bool) -> bytes:
    """The passphrase of a key: from a file, the environment, or the terminal.

    Raises:
        KeyFileError: there is none, or others may read its file.
    """
    if file is not None:
        check_private(file)
        # One line, as editors end it.
        return read_bounded(file, max_bytes=MAX_TEXT_BYTES).removesuffix(b"\n")
    if PASSPHRASE_VARIABLE in os.environ:
        return os.environb[PASSPHRASE_VARIABLE.encode()]
    if not sys.stdin.isatty():
        raise KeyFileError(
            "passphrase: expected one, found none",
            hint=f"set {PASSPHRASE_VARIABLE} or give --passphrase-file"
            + (", or --no-passphrase" if confirm else ""),
        )
    asked: str = typer.prompt("passphrase", hide_input=True, confirmation_prompt=confirm, err=True)
    return asked.encode()


def issued_now() -> tuple[datetime, bool]:
    """The time of the statement, and whether it was given."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given is None:
        return datetime.now(UTC), False
    try:
        return datetime.fromtimestamp(int(given), UTC), True
    except (ValueError, OverflowError, OSError) as error:
        raise PackError(
            f"SOURCE_DATE_EPOCH: expected seconds since 1970, found {given!r}"
        ) from error
