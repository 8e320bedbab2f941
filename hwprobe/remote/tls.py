"""TLS between keys that know each other: no authority, no names, no dates that matter.

Each side has one file with its private key and its own certificate, and a file with the
certificates of those it talks to. A peer is who proves to have the key of one of them.
"""

from __future__ import annotations

import re
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hwprobe.errors import WorkerError

HANDSHAKE_S: Final = 10.0
"""Why: several round trips on a slow line; who needs longer is not one of ours."""

_CERTIFICATE: Final = re.compile(
    r"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----"
)
_MOST_FILE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Identity:
    """The files that say who we are and whom we know."""

    key: Path
    peers: Path


class Trust:
    """One side of such connections, with its files read."""

    def __init__(self, identity: Identity, *, server: bool) -> None:
        """Read the files.

        Raises:
            WorkerError: one cannot be used.
        """
        kind = ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT
        self._context = ssl.SSLContext(kind)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._context.check_hostname = False  # the key is what counts
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._server = server
        texts = _CERTIFICATE.findall(_read(identity.peers))
        if not texts:
            raise WorkerError(f"{identity.peers}: expected certificates of peers, found none")
        _ = _read(identity.key)  # for a reason in words
        try:
            self._known = frozenset(ssl.PEM_cert_to_DER_cert(text) for text in texts)
            self._context.load_verify_locations(cadata="\n".join(texts))
        except (ssl.SSLError, ValueError) as error:
            raise WorkerError(f"{identity.peers}: not usable certificates") from error
        try:
            self._context.load_cert_chain(identity.key, password=_no_password)
        except (ssl.SSLError, ValueError) as error:
            raise WorkerError(
                f"{identity.key}: expected a private key and its certificate",
                hint="make one with satchel worker key",
            ) from error

    def wrap(self, connection: socket.socket) -> ssl.SSLSocket:
        """Shake hands over a connection, which is closed if that fails.

        Raises:
            WorkerError: the peer is nobody we know, or speaks no TLS.
        """
        connection.settimeout(HANDSHAKE_S)
        try:
            wrapped = self._context.wrap_socket(connection, server_side=self._server)
        except (OSError, ValueError) as error:
            connection.close()
            raise WorkerError(f"no TLS connection: {_reason(error)}") from error
        if wrapped.getpeercert(binary_form=True) not in self._known:
            wrapped.close()
            raise WorkerError("no TLS connection: the peer's certificate is none we know")
        return wrapped


def _no_password() -> str:
    return ""  # never ask on a terminal: a key with a password does not open


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _MOST_FILE_BYTES:
            raise WorkerError(f"{path}: expected at most {_MOST_FILE_BYTES} bytes")
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        reason = (error.strerror or "cannot be read").lower()
        raise WorkerError(f"{path}: {reason}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return "the peer's certificate is none we know"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ssl.SSLError):
        return (error.reason or "the handshake failed").lower().replace("_", " ")
    return str(getattr(error, "strerror", None) or error).lower()
