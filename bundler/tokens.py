"""Sign with a key that never leaves its token (PKCS #11): smart cards, HSMs, SoftHSM2.

The token makes the Ed25519 signature; what it gives back is checked here before anyone else sees
it. A session is open only while a signature is made. The PIN is kept in memory for the run, is
never on a command line, and stands in no message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from bundler.format.errors import KeyFileError
from bundler.format.keys import PublicKey
from bundler.keyuri import KeyUri

_OID_PARAMS: Final = bytes.fromhex("06032b6570")
_NAMED_PARAMS: Final = bytes.fromhex("130c") + b"edwards25519"
"""CKA_EC_PARAMS of Ed25519: the OID (RFC 8410), or the curve's name (PKCS #11 3.0)."""
_OCTETS: Final = bytes.fromhex("0420")
"""DER head of an octet string of 32 bytes, which most tokens put around the point."""
_EXTRA: Final = "install satchel's extra packages: pip install satchel[connected]"

Load = Callable[[str], Any]
"""Opens a PKCS #11 library; `pkcs11.lib`, or a fake of it."""


class TokenKey:
    """A private key on a token, for `bundler.format.envelope.add_signatures`."""

    __slots__ = ("_library", "_pin", "_uri", "public_key")

    public_key: PublicKey

    def __init__(self, uri: KeyUri, library: Any, pin: str) -> None:
        self._uri = uri
        self._library = library
        self._pin = pin
        with self._session() as session:
            self.public_key = _public_key(session, uri)

    def sign(self, data: bytes) -> bytes:
        """64 bytes.

        Raises:
            KeyFileError: the token refuses, or gives back another signature.
        """
        from pkcs11 import Mechanism, ObjectClass  # noqa: PLC0415 - an extra

        with self._session() as session:
            key = _one(session, self._uri, ObjectClass.PRIVATE_KEY, "private key")
            signature = bytes(key.sign(data, mechanism=Mechanism.EDDSA))
        if not self.public_key.verify(signature, data):
            raise KeyFileError(
                f"{self._uri.shown()}: expected a signature by its public key, found another",
                hint="the token's private and public key of this name do not belong together",
            )
        return signature

    def __repr__(self) -> str:
        return f"TokenKey({self._uri.shown()})"

    def __reduce__(self) -> str:
        raise TypeError("a signing key is not copied")

    @contextmanager
    def _session(self) -> Iterator[Any]:
        from pkcs11 import PKCS11Error  # noqa: PLC0415 - an extra

        try:
            with _token(self._library, self._uri).open(user_pin=self._pin) as session:
                yield session
        except PKCS11Error as error:
            raise KeyFileError(
                f"{self._uri.shown()}: {_said(error)}", hint=_hint(type(error).__name__)
            ) from error


def open_token_key(uri: KeyUri, pin: Callable[[], str], *, load: Load | None = None) -> TokenKey:
    """Find the key on its token.

    Args:
        uri: which key.
        pin: asked for once.
        load: in the place of `pkcs11.lib`.

    Raises:
        KeyFileError: no module, no token, no such Ed25519 key, or the wrong PIN.
    """
    if not uri.module:
        raise KeyFileError(
            f"{uri.shown()}: expected module-path= in the pkcs11: URI, found none",
            hint="such as ?module-path=/usr/lib/softhsm/libsofthsm2.so",
        )
    try:
        import pkcs11  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise KeyFileError(
            f"{uri.shown()}: keys on tokens need python-pkcs11, which is not installed", hint=_EXTRA
        ) from error
    try:
        library = (load or pkcs11.lib)(uri.module)
    except (pkcs11.PKCS11Error, RuntimeError, OSError) as error:
        raise KeyFileError(
            f"{uri.module}: expected a PKCS #11 library, found none: {_said(error)}"
        ) from error
    return TokenKey(uri, library, pin())


def _token(library: Any, uri: KeyUri) -> Any:
    """The one token that the URI names; tokens are asked for their labels, never for a login."""
    from pkcs11 import PKCS11Error  # noqa: PLC0415 - an extra

    found = []
    for slot in library.get_slots(token_present=True):
        if uri.slot is not None and slot.slot_id != uri.slot:
            continue
        try:
            token = slot.get_token()
        except PKCS11Error:
            continue  # taken out meanwhile, or not one this library knows
        wanted = (uri.token, uri.serial, uri.manufacturer, uri.model)
        shown = (token.label, _plain(token.serial), token.manufacturer_id, token.model)
        if all(not want or want == has.strip() for want, has in zip(wanted, shown, strict=True)):
            found.append(token)
    if len(found) != 1:
        raise KeyFileError(
            f"{uri.shown()}: expected one token, found {len(found)}",
            hint="is it plugged in? name it with token=, serial= or slot-id=",
        )
    return found[0]


def _plain(serial: bytes | str) -> str:
    return serial.decode("utf-8", "replace") if isinstance(serial, bytes) else serial


def _one(session: Any, uri: KeyUri, kind: Any, what: str) -> Any:
    from pkcs11 import Attribute, KeyType  # noqa: PLC0415 - an extra

    wanted: dict[Any, Any] = {Attribute.CLASS: kind, Attribute.KEY_TYPE: KeyType.EC_EDWARDS}
    if uri.label:
        wanted[Attribute.LABEL] = uri.label
    if uri.key_id:
        wanted[Attribute.ID] = uri.key_id
    found = list(session.get_objects(wanted))
    if len(found) != 1:
        raise KeyFileError(
            f"{uri.shown()}: expected one Ed25519 {what}, found {len(found)}",
            hint="keys of other kinds do not sign bundles; id= tells two of one label apart",
        )
    return found[0]


def _public_key(session: Any, uri: KeyUri) -> PublicKey:
    from pkcs11 import Attribute, ObjectClass  # noqa: PLC0415 - an extra

    _one(session, uri, ObjectClass.PRIVATE_KEY, "private key")
    key = _one(session, uri, ObjectClass.PUBLIC_KEY, "public key")
    if bytes(key[Attribute.EC_PARAMS]) not in (_OID_PARAMS, _NAMED_PARAMS):
        raise KeyFileError(f"{uri.shown()}: expected an Ed25519 key, found another curve")
    point = bytes(key[Attribute.EC_POINT])
    return PublicKey(point.removeprefix(_OCTETS) if len(point) != 32 else point)  # noqa: PLR2004


def _said(error: Exception) -> str:
    """What a library says of itself: its error's name, in words, and its text."""
    name = type(error).__name__
    words = "".join(f" {one.lower()}" if one.isupper() else one for one in name).strip()
    text = str(error)
    return f"{words}: {text}" if text else words


def _hint(name: str) -> str:
    if name in ("PinIncorrect", "PinInvalid", "PinLenRange"):
        return "wrong PIN; some tokens lock after a few wrong ones"
    if name == "PinLocked":
        return "the token locked itself; its security officer can set a new PIN"
    return ""
