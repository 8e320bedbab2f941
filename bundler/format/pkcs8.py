"""Encrypt a private key file so that its passphrase is slow to guess.

PKCS#8 with PBES2 (RFC 8018): PBKDF2 with HMAC-SHA-256, and AES-256-CBC. OpenSSL and the library
that reads our keys understand it. The library can write it too, but only with 2 048 rounds, which
a thief of the file tries a million times a second.
"""

from __future__ import annotations

import base64
import hashlib
import os
import textwrap
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7

ROUNDS: Final = 600_000
"""About a third of a second. Source: OWASP's advice for PBKDF2 with HMAC-SHA-256."""
_SALT_BYTES: Final = 16
_KEY_BYTES: Final = 32
_BLOCK_BITS: Final = 128
_LINE: Final = 64
_SHORT: Final = 0x80

_INTEGER, _OCTETS, _NULL, _OID, _SEQUENCE = 0x02, 0x04, 0x05, 0x06, 0x30
_PBES2: Final = bytes.fromhex("2a864886f70d01050d")
_PBKDF2: Final = bytes.fromhex("2a864886f70d01050c")
_HMAC_SHA256: Final = bytes.fromhex("2a864886f70d0209")
_AES_256_CBC: Final = bytes.fromhex("60864801650304012a")


def encrypted_pem(key: bytes, passphrase: bytes) -> bytes:
    """A PEM file ``ENCRYPTED PRIVATE KEY``.

    Args:
        key: the private key as DER PKCS#8, not encrypted.
        passphrase: what will be asked for.
    """
    salt, vector = os.urandom(_SALT_BYTES), os.urandom(_BLOCK_BITS // 8)
    secret = hashlib.pbkdf2_hmac("sha256", passphrase, salt, ROUNDS, _KEY_BYTES)
    padder = PKCS7(_BLOCK_BITS).padder()
    padded = padder.update(key) + padder.finalize()
    encryptor = Cipher(algorithms.AES256(secret), modes.CBC(vector)).encryptor()
    stored = encryptor.update(padded) + encryptor.finalize()
    derivation = _sequence(
        _item(_OID, _PBKDF2),
        _sequence(
            _item(_OCTETS, salt),
            _item(_INTEGER, ROUNDS.to_bytes(ROUNDS.bit_length() // 8 + 1)),
            _sequence(_item(_OID, _HMAC_SHA256), _item(_NULL, b"")),
        ),
    )
    cipher = _sequence(_item(_OID, _AES_256_CBC), _item(_OCTETS, vector))
    algorithm = _sequence(_item(_OID, _PBES2), _sequence(derivation, cipher))
    return _pem(_sequence(algorithm, _item(_OCTETS, stored)))


def _sequence(*items: bytes) -> bytes:
    return _item(_SEQUENCE, b"".join(items))


def _item(tag: int, content: bytes) -> bytes:
    """Tag, length and content, in DER."""
    length = len(content)
    if length < _SHORT:
        return bytes((tag, length)) + content
    size = length.to_bytes((length.bit_length() + 7) // 8)
    return bytes((tag, _SHORT | len(size))) + size + content


def _pem(der: bytes) -> bytes:
    text = base64.b64encode(der).decode("ascii")
    lines = "\n".join(textwrap.wrap(text, _LINE))
    return (
        f"-----BEGIN ENCRYPTED PRIVATE KEY-----\n{lines}\n-----END ENCRYPTED PRIVATE KEY-----\n"
    ).encode("ascii")
