"""Where a signing key is kept: a key file, or a key on a token named by a PKCS #11 URI (RFC 7512).

    pkcs11:token=satchel;object=release?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=/p

Rules:
 * what is not understood is refused: a misread URI could name another key;
 * ``pin-value`` is refused: a command line is seen by every process of the computer;
 * nothing is opened here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes

from bundler.format.errors import KeyFileError

SCHEME: Final = "pkcs11:"
_PATH: Final = ("token", "serial", "manufacturer", "model", "object", "id", "slot-id", "type")
_QUERY: Final = ("module-path", "pin-source")
_MAX_CHARACTERS: Final = 4_096
_ESCAPED: Final = re.compile(r"(?:[^%]|%[0-9A-Fa-f]{2})*")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyUri:
    """A key on a token; empty texts and ``None`` match anything.

    Attributes:
        token: label of the token.
        serial: its serial number.
        manufacturer: of the token.
        model: of the token.
        slot: number of the slot.
        label: ``CKA_LABEL`` of the key, which the URI calls ``object``.
        key_id: ``CKA_ID`` of the key, any bytes.
        module: absolute path of the PKCS #11 library, or empty.
        pin_file: absolute path of the file with the PIN, or empty.
    """

    token: str = ""
    serial: str = ""
    manufacturer: str = ""
    model: str = ""
    slot: int | None = None
    label: str = ""
    key_id: bytes = b""
    module: str = ""
    pin_file: str = ""

    def shown(self) -> str:
        """The key in an error message; the PIN's file is left out."""
        named = (("token", self.token), ("object", self.label), ("id", self.key_id.hex()))
        return SCHEME + ";".join(f"{name}={value}" for name, value in named if value)


def is_key_uri(text: str) -> bool:
    """Whether a text names a key on a token; anything else is a path."""
    return text[: len(SCHEME)].lower() == SCHEME


def parse_key_uri(text: str) -> KeyUri:
    """Read a PKCS #11 URI.

    Raises:
        KeyFileError: it is malformed, names no key, or holds a PIN.
    """
    if not is_key_uri(text) or len(text) > _MAX_CHARACTERS or not text.isprintable():
        raise KeyFileError("key: expected a pkcs11: URI of printable characters, found none")
    path, _, query = text[len(SCHEME) :].partition("?")
    found = _attributes(path, ";", _PATH) | _attributes(query, "&", _QUERY)
    if found.get("type", b"private") != b"private":
        raise KeyFileError(f"key: type: expected private, found {_text(found, 'type')!r}")
    if not found.get("object") and not found.get("id"):
        raise KeyFileError(
            "key: expected object= or id= in the pkcs11: URI, found neither",
            hint="pkcs11:token=LABEL;object=KEY?module-path=/path/of/the/library.so",
        )
    return KeyUri(
        token=_text(found, "token"),
        serial=_text(found, "serial"),
        manufacturer=_text(found, "manufacturer"),
        model=_text(found, "model"),
        slot=_slot(found),
        label=_text(found, "object"),
        key_id=found.get("id", b""),
        module=_absolute(found, "module-path"),
        pin_file=_absolute(found, "pin-source"),
    )


def _attributes(text: str, separator: str, known: tuple[str, ...]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for part in text.split(separator) if text else ():
        name, equals, value = part.partition("=")
        if name == "pin-value":
            raise KeyFileError(
                "key: pin-value: expected no PIN on the command line, found one",
                hint="name a file that only you can read with pin-source=",
            )
        if name not in known or not equals:
            raise KeyFileError(
                f"key: expected {', '.join(known)} in this part of the pkcs11: URI, "
                f"found {name[:40]!r}"
            )
        if name in found:
            raise KeyFileError(f"key: {name}: expected it once, found it twice")
        if not _ESCAPED.fullmatch(value):
            raise KeyFileError(f"key: {name}: expected % and two hexadecimal digits, found others")
        found[name] = unquote_to_bytes(value)
    return found


def _text(found: dict[str, bytes], name: str) -> str:
    try:
        text = found.get(name, b"").decode()
    except UnicodeDecodeError as error:
        raise KeyFileError(f"key: {name}: expected UTF-8, found other bytes") from error
    if not text.isprintable():
        raise KeyFileError(f"key: {name}: expected printable characters, found others")
    return text


def _slot(found: dict[str, bytes]) -> int | None:
    if "slot-id" not in found:
        return None
    text = _text(found, "slot-id")
    if not re.fullmatch(r"[0-9]{1,19}", text, re.ASCII):
        raise KeyFileError(f"key: slot-id: expected a number, found {text[:40]!r}")
    return int(text)


def _absolute(found: dict[str, bytes], name: str) -> str:
    """An absolute path, also as ``file:`` URI; RFC 7512 would let ``|`` run a program."""
    text = _text(found, name)
    for prefix in ("file://", "file:"):
        if text.startswith(prefix):
            text = text.removeprefix(prefix)
            break
    if text and not text.startswith("/"):
        raise KeyFileError(f"key: {name}: expected an absolute path, found {text[:60]!r}")
    return text
