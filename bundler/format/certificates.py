"""Make a key with a certificate of its own, for connections between machines that know each other.

The certificate is nothing but a wrapping of the public key that TLS understands. Its dates are as
wide as the format allows: clocks without a network are wrong, and a key is ended by taking its
certificate out of the peers' files.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

_BEGIN: Final = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
_END: Final = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)
"""RFC 5280, 4.1.2.5: no well-defined expiration date."""
_MOST_NAME: Final = 64
"""RFC 5280, ub-common-name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certified:
    """A new key.

    Attributes:
        private: private key and certificate, PEM; to be kept secret.
        certificate: the certificate alone, PEM; for the peers.
        fingerprint: SHA-256 of the certificate's DER, in hexadecimal.
    """

    private: bytes
    certificate: bytes
    fingerprint: str


def make_certified(name: str) -> Certified:
    """Make an Ed25519 key with a certificate for it, signed by itself; ``name`` is for people."""
    key = Ed25519PrivateKey.generate()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:_MOST_NAME] or "satchel")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_BEGIN)
        .not_valid_after(_END)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, None)
    )
    public = certificate.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    der = certificate.public_bytes(serialization.Encoding.DER)
    return Certified(
        private=private + public,
        certificate=public,
        fingerprint=hashlib.sha256(der).hexdigest(),
    )
