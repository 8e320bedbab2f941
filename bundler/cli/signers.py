"""Whose signature: private keys with their passphrases, and the time of signing."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import typer

from bundler.cli.frame import MAX_TEXT_BYTES, PASSPHRASE_VARIABLE
from bundler.errors import PackError
from bundler.format.errors import KeyFileError
from bundler.format.fsio import read_bounded
from bundler.format.keys import SigningKey
from bundler.keyfiles import check_private, load_signing_key


def signing_keys(paths: list[Path], passphrase_file: Path | None) -> tuple[SigningKey, ...]:
    """Private keys from their files, each decrypted with the one passphrase."""
    return tuple(
        load_signing_key(path, lambda: passphrase(passphrase_file, confirm=False)) for path in paths
    )


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
