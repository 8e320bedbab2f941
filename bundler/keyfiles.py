"""Where signing keys come from: files with their passphrases, tokens with their PINs."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from bundler.format.errors import BundleError, KeyFileError
from bundler.format.fsio import atomic_write, create_new, read_bounded
from bundler.format.keys import PublicKey, Signer, SigningKey
from bundler.keyuri import KeyUri, is_key_uri, parse_key_uri
from bundler.tokens import open_token_key

PRIVATE_SUFFIX: Final = ".key"
PUBLIC_SUFFIX: Final = ".pub"
_MAX_KEY_BYTES: Final = 64 << 10
_MAX_PIN_BYTES: Final = 1_024


def make_pair(stem: Path, passphrase: bytes | None) -> tuple[Path, Path, PublicKey]:
    """Write ``<stem>.key``, readable by its owner only, and ``<stem>.pub``.

    Args:
        stem: path without suffix.
        passphrase: encrypts the private file; ``None`` leaves it open.

    Returns:
        the private file, the public file, and the public key.

    Raises:
        KeyFileError: one of the files exists, or cannot be written.
    """
    private = stem.with_name(stem.name + PRIVATE_SUFFIX)
    public = stem.with_name(stem.name + PUBLIC_SUFFIX)
    for path in (private, public):
        if path.exists() or path.is_symlink():
            raise KeyFileError(f"{path}: expected no file, found one", hint="choose another name")
    key = SigningKey.generate()
    pem = key.dump(passphrase)
    try:
        stem.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise KeyFileError(f"{stem.parent}: {error.strerror}") from error
    try:
        create_new(private, pem, mode=0o600)
        atomic_write(public, public_text(key.public_key, stem.name))
    except FileExistsError as error:
        raise KeyFileError(f"{private}: expected no file, found one") from error
    except KeyFileError:
        raise
    except BundleError as error:
        raise KeyFileError(str(error), hint=error.hint) from error
    return private, public, key.public_key


def check_private(path: Path) -> None:
    """Refuse a file with a secret that others on this computer can read.

    Raises:
        KeyFileError: they can, or there is no such file.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}") from error
    if mode & 0o077 and os.name == "posix":
        raise KeyFileError(
            f"{path}: expected a file that only its owner can read, found mode {mode:03o}",
            hint=f"chmod 600 {path}",
        )


def public_text(key: PublicKey, label: str) -> bytes:
    """Content of a public key file; `PublicKey.parse` reads it."""
    lines = (
        f"# satchel public key {label}".rstrip(),
        f"# key id {key.key_id}",
        f"# words  {key.words()}",
        key.text(),
    )
    return "".join(line + "\n" for line in lines).encode("utf-8")


def load_signer(
    text: str, *, passphrase: Callable[[], bytes | None], pin: Callable[[KeyUri], str]
) -> Signer:
    """The signing key that a command line names: a key file, or a ``pkcs11:`` URI.

    Args:
        text: path or URI.
        passphrase: asked for when a file is encrypted.
        pin: asked for when the key is on a token and its URI names no file with the PIN.

    Raises:
        KeyFileError: the key cannot be used.
    """
    if not is_key_uri(text):
        return load_signing_key(Path(text), passphrase)
    uri = parse_key_uri(text)
    return open_token_key(uri, lambda: _read_pin(Path(uri.pin_file)) if uri.pin_file else pin(uri))


def _read_pin(path: Path) -> str:
    check_private(path)
    try:
        # One line, as editors end it.
        pin = read_bounded(path, max_bytes=_MAX_PIN_BYTES).removesuffix(b"\n").decode()
    except (BundleError, UnicodeDecodeError) as error:
        raise KeyFileError(f"{path}: expected a PIN, found something else") from error
    if not pin or not pin.isprintable():
        raise KeyFileError(f"{path}: expected a PIN on one line, found none")
    return pin


def load_signing_key(path: Path, passphrase: Callable[[], bytes | None]) -> SigningKey:
    """Read a private key file; the passphrase is asked for only when it is encrypted.

    Raises:
        KeyFileError: missing, readable by others, damaged, or the passphrase is wrong.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        pem = read_bounded(path, max_bytes=_MAX_KEY_BYTES)
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}") from error
    except BundleError as error:
        raise KeyFileError(str(error), hint=error.hint) from error
    if _is_public(pem):
        raise KeyFileError(
            f"{path}: expected a private key, found a public one",
            hint=f"give the file that was made with it: {path.with_suffix('.key').name}",
        )
    encrypted = b"ENCRYPTED" in pem
    if mode & 0o077 and not encrypted and os.name == "posix":
        raise KeyFileError(
            f"{path}: expected a key that only its owner can read, found mode {mode:03o}",
            hint=f"chmod 600 {path}",
        )
    return SigningKey.load(pem, passphrase() if encrypted else None)


def _is_public(data: bytes) -> bool:
    try:
        PublicKey.parse(data.decode())
    except (BundleError, UnicodeDecodeError):
        return False
    return True
