"""API keys: which there are, and whether a request brings one.

The file has one key per line: ``sha256:`` and the 64 hex digits of the key's SHA-256, and after a
blank, if you like, a name for people. Blank lines and lines that start with ``#`` are passed over.
The keys themselves are nowhere. ``printf %s "$KEY" | sha256sum`` gives the digits.

Rules:
 * a server that others can reach has keys, or does not start;
 * a key is compared in constant time with every line, whichever matches.

What this does not do: keys have no scopes and no expiry; a change of the file counts from the next
start or reload.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from pathlib import Path

from appliance.addresses import listen_is_public
from server.errors import ServerError

MAX_FILE_BYTES = 1 << 20
_LINE = re.compile(r"sha256:([0-9a-f]{64})(?:\s+.*)?")
_SCHEME = "bearer "
_TENANT = b"satchel tenant\0"
_TENANT_CHARACTERS = 16
"""Of a hash of the key's digest. Why: 64 bits tell the keys of one file apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """The SHA-256 digests of the keys that are accepted; none means that no key is asked for."""

    digests: tuple[bytes, ...] = ()

    def admit(self, authorization: str | None) -> bool:
        """Whether this ``Authorization`` header carries an accepted key, or none is needed."""
        return self.tenant(authorization) is not None

    def tenant(self, authorization: str | None) -> str | None:
        """A label for whoever brings this ``Authorization`` header.

        Returns:
            ``None`` without an accepted key where one is needed, an empty text where none is,
            else a text that is the same for the same key and tells nothing about it.
        """
        if not self.digests:
            return ""
        header = authorization or ""
        if header[: len(_SCHEME)].lower() != _SCHEME:
            return None
        given = hashlib.sha256(header[len(_SCHEME) :].strip().encode()).digest()
        matches = [hmac.compare_digest(given, digest) for digest in self.digests]
        if not any(matches):
            return None
        return hashlib.sha256(_TENANT + given).hexdigest()[:_TENANT_CHARACTERS]


@dataclass(slots=True)
class KeyRing:
    """The keys in force: `reload` puts others in their place between two requests."""

    keys: Keys

    def tenant(self, authorization: str | None) -> str | None:
        """As `Keys.tenant`, by the keys in force now."""
        return self.keys.tenant(authorization)

    def reload(self, path: Path | None) -> int:
        """Read the file again; on an error the keys stay as they are.

        Returns:
            How many keys there are now.

        Raises:
            ServerError: as `load_keys`.
        """
        self.keys = load_keys(path)
        return len(self.keys.digests)


def parse_keys(text: str, *, source: str) -> Keys:
    """Read the text of a key file.

    Raises:
        ServerError: a line is not a key's digest; the message names its number, not its text.
    """
    digests = []
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        match = _LINE.fullmatch(stripped)
        if match is None:
            raise ServerError(
                f"{source}: line {number}: expected sha256:<64 hex digits>, found something else",
                hint='printf %s "$KEY" | sha256sum gives the digits',
            )
        digests.append(bytes.fromhex(match[1]))
    return Keys(digests=tuple(digests))


def load_keys(path: Path | None) -> Keys:
    """Read the key file, if one is configured.

    Raises:
        ServerError: it cannot be read, is too large, has a bad line, or no key at all.
    """
    if path is None:
        return Keys()
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ServerError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise ServerError(f"{path}: expected at most {MAX_FILE_BYTES} bytes, found more")
    keys = parse_keys(data.decode("utf-8", errors="replace"), source=str(path))
    if not keys.digests:
        raise ServerError(f"{path}: expected at least one key, found none")
    return keys


def refuse_public_without_keys(host: str, keys: Keys) -> None:
    """Keep a server without keys on loopback.

    Raises:
        ServerError: others could reach it.
    """
    if listen_is_public(host) and not keys.digests:
        raise ServerError(
            f"listening on {host} lets other machines in, and there are no API keys",
            hint="name a key file in server.api_keys_file, or listen on 127.0.0.1",
        )
