"""Signing keys and public keys (Ed25519), their files and what people read aloud.

The key id is the SHA-256 of the DER SubjectPublicKeyInfo: `openssl pkey -pubin -outform DER |
sha256sum` prints it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import Final, NewType, Protocol

from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from bundler.format.errors import KeyFileError
from bundler.format.pkcs8 import encrypted_pem

KeyId = NewType("KeyId", str)
"""64 lower-case hexadecimal digits."""

_SCHEME: Final = "ed25519"
_RAW_BYTES: Final = 32
_MAX_FILE_CHARACTERS: Final = 64 << 10
# RFC 8410: the fixed head of an Ed25519 SubjectPublicKeyInfo; the 32 raw bytes follow.
_SPKI_HEAD: Final = bytes.fromhex("302a300506032b6570032100")
# Proquint alphabet: five letters carry 16 bits and can be said over a telephone.
_CONSONANTS: Final = "bdfghjklmnprstvz"
_VOWELS: Final = "aiou"
_WORDS: Final = 8


@dataclass(frozen=True, slots=True)
class PublicKey:
    """The public half of a signing key; equal when the key itself is equal.

    Attributes:
        raw: the 32 bytes of the Ed25519 key.
    """

    raw: bytes

    def __post_init__(self) -> None:
        """Refuse anything but 32 bytes."""
        if len(self.raw) != _RAW_BYTES:
            raise KeyFileError(f"public key: expected {_RAW_BYTES} bytes, found {len(self.raw)}")

    @classmethod
    def parse(cls, text: str) -> PublicKey:
        """Read the first key of a public key file: a line ``ed25519:<base64>``, or PEM.

        Lines that start with ``#`` are comments, as is anything after the key on its line.

        Raises:
            KeyFileError: there is no Ed25519 public key.
        """
        if len(text) > _MAX_FILE_CHARACTERS:
            raise KeyFileError("public key: expected a short text, found a large one")
        if "PRIVATE KEY" in text:
            raise KeyFileError(
                "public key: expected the public half, found a private key",
                hint="use the file that ends in .pub, and keep the private one to yourself",
            )
        if "-----BEGIN PUBLIC KEY-----" in text:
            return cls._from_pem(text)
        for line in text.splitlines():
            words = line.split()
            if words and not words[0].startswith("#"):
                return cls._from_word(words[0])
        raise KeyFileError("public key: expected ed25519:<base64>, found no key")

    @classmethod
    def _from_word(cls, word: str) -> PublicKey:
        scheme, _, encoded = word.partition(":")
        if scheme != _SCHEME:
            raise KeyFileError(f"public key: expected ed25519:<base64>, found {word[:40]!r}")
        try:
            raw = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError) as error:
            raise KeyFileError(f"public key: expected base64, found {encoded[:60]!r}") from error
        return cls(raw)

    @classmethod
    def _from_pem(cls, text: str) -> PublicKey:
        try:
            key = serialization.load_pem_public_key(text.encode("utf-8"))
        except (ValueError, UnsupportedAlgorithm) as error:
            raise KeyFileError("public key: expected PEM, found a damaged one") from error
        if not isinstance(key, Ed25519PublicKey):
            raise KeyFileError("public key: expected an Ed25519 key, found another kind")
        return cls(key.public_bytes_raw())

    @property
    def key_id(self) -> KeyId:
        """SHA-256 of the DER SubjectPublicKeyInfo, in hex."""
        return KeyId(hashlib.sha256(_SPKI_HEAD + self.raw).hexdigest())

    def text(self) -> str:
        """One line without white space; ``PublicKey.parse(k.text()) == k``."""
        return f"{_SCHEME}:{base64.b64encode(self.raw).decode('ascii')}"

    def pem(self) -> str:
        """The key for other tools."""
        encoded = Ed25519PublicKey.from_public_bytes(self.raw).public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return encoded.decode("ascii")

    def words(self) -> str:
        """Eight words for comparing keys by voice: the first 128 bits of the key id."""
        return key_words(self.key_id)

    def verify(self, signature: bytes, data: bytes) -> bool:
        """Whether this key signed exactly these bytes."""
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, data)
        except (InvalidSignature, ValueError):
            return False
        return True


class Signer(Protocol):
    """Whatever makes signatures of one key: a key in memory, or one on a token."""

    @property
    def public_key(self) -> PublicKey:
        """The public half."""

    def sign(self, data: bytes) -> bytes:
        """64 bytes that `public_key` verifies; raises KeyFileError where it cannot."""


class SigningKey:
    """A private Ed25519 key. It is never shown and never pickled."""

    __slots__ = ("_key",)

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def generate(cls) -> SigningKey:
        """Make a key from the system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> SigningKey:
        """The key that belongs to 32 bytes; for test vectors, whose keys are public."""
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def load(cls, pem: bytes, passphrase: bytes | None = None) -> SigningKey:
        """Read a private key file (PKCS#8 PEM).

        Raises:
            KeyFileError: damaged, another kind of key, or the passphrase is missing or wrong.
        """
        try:
            key = serialization.load_pem_private_key(pem, passphrase or None)
        except TypeError as error:
            if passphrase:
                # The library tells us: a passphrase was given, the key needs none.
                return cls.load(pem)
            raise KeyFileError(
                "signing key: expected a passphrase, found none",
                hint="set SATCHEL_KEY_PASSPHRASE or give --passphrase-file",
            ) from error
        except (ValueError, UnsupportedAlgorithm, InternalError) as error:
            # The last one: OpenSSL itself found a well-formed file with an impossible key in it.
            if passphrase and b"ENCRYPTED" in pem:
                raise KeyFileError("signing key: wrong passphrase, or a damaged file") from error
            raise KeyFileError("signing key: expected a PKCS#8 PEM file, found none") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise KeyFileError("signing key: expected an Ed25519 key, found another kind")
        return cls(key)

    def dump(self, passphrase: bytes | None) -> bytes:
        """The private key as PKCS#8 PEM, encrypted unless ``passphrase`` is ``None``.

        Raises:
            KeyFileError: the passphrase is empty.
        """
        if passphrase == b"":
            raise KeyFileError("passphrase: expected at least one character, found none")
        if passphrase is None:
            return self._plain(serialization.Encoding.PEM)
        return encrypted_pem(self._plain(serialization.Encoding.DER), passphrase)

    def _plain(self, encoding: serialization.Encoding) -> bytes:
        plain = serialization.NoEncryption()
        return self._key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain)

    @property
    def public_key(self) -> PublicKey:
        """The public half."""
        return PublicKey(self._key.public_key().public_bytes_raw())

    def sign(self, data: bytes) -> bytes:
        """64 bytes; the same for the same key and data."""
        return self._key.sign(data)

    def __repr__(self) -> str:
        return f"SigningKey({self.public_key.key_id[:12]}…)"

    def __reduce__(self) -> str:
        raise TypeError("a signing key is not copied")


def key_words(key_id: KeyId) -> str:
    """Eight pronounceable words of five letters: the first 128 bits of a key id."""
    raw = bytes.fromhex(key_id)
    return "-".join(
        _proquint(int.from_bytes(raw[2 * place : 2 * place + 2])) for place in range(_WORDS)
    )


def _proquint(number: int) -> str:
    letters = (
        _CONSONANTS[number >> 12],
        _VOWELS[number >> 10 & 3],
        _CONSONANTS[number >> 6 & 15],
        _VOWELS[number >> 4 & 3],
        _CONSONANTS[number & 15],
    )
    return "".join(letters)
