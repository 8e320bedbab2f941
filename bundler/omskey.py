"""Keys of OpenSSF's model signing: elliptic curves, as ``openssl ecparam -genkey`` makes them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from bundler.errors import PackError
from bundler.format.fsio import read_bounded
from bundler.keyfiles import check_private

_MAX_KEY_BYTES: Final = 64 << 10
_HASHES: Final[dict[int, hashes.HashAlgorithm]] = {
    256: hashes.SHA256(),
    384: hashes.SHA384(),
    521: hashes.SHA512(),
}
"""Which digest goes with which curve. Source: model_signing's verifier."""


@dataclass(frozen=True, slots=True)
class OmsKey:
    """A private key on P-256, P-384 or P-521."""

    _key: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def hint(self) -> str:
        """What verifiers know the public half by: SHA-256 of its PEM."""
        public = self._key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return hashlib.sha256(public).hexdigest()

    def sign(self, data: bytes) -> bytes:
        """A signature in DER; the same for the same key and data (RFC 6979)."""
        digest = _HASHES[self._key.curve.key_size]
        return self._key.sign(data, ec.ECDSA(digest, deterministic_signing=True))


def read_oms_key(path: Path) -> OmsKey:
    """Read a private key file.

    Raises:
        KeyFileError: others may read the file.
        PackError: it is no such key, or encrypted.
        MediumError: it cannot be read.
    """
    check_private(path)
    try:
        key = serialization.load_pem_private_key(
            read_bounded(path, max_bytes=_MAX_KEY_BYTES), password=None
        )
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise PackError(f"{path}: expected an unencrypted private key in PEM") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.key_size not in _HASHES:
        raise PackError(f"{path}: expected a key on P-256, P-384 or P-521, found another kind")
    return OmsKey(key)
