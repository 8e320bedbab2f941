"""Tokens without hardware: the part of python-pkcs11 that we use, and SoftHSM2 where there is one.

The fake answers as the library does, with the library's own constants and errors.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pkcs11 import Attribute, KeyType, ObjectClass
from pkcs11.exceptions import PinIncorrect

from bundler.format.keys import SigningKey

PIN = "31415926"
PARAMS = bytes.fromhex("06032b6570")
SOFTHSM = Path("/usr/lib/softhsm/libsofthsm2.so")
TOOL = shutil.which("softhsm2-util")


@dataclass(kw_only=True)
class FakeObject:
    """A private or a public key on a token."""

    kind: Any
    label: str
    key: SigningKey
    key_id: bytes = b"\x01"
    key_type: Any = KeyType.EC_EDWARDS
    params: bytes = PARAMS
    wrapped: bool = True

    def __getitem__(self, attribute: Any) -> Any:
        raw = self.key.public_key.raw
        return {
            Attribute.CLASS: self.kind,
            Attribute.LABEL: self.label,
            Attribute.ID: self.key_id,
            Attribute.KEY_TYPE: self.key_type,
            Attribute.EC_PARAMS: self.params,
            Attribute.EC_POINT: (b"\x04\x20" if self.wrapped else b"") + raw,
        }[attribute]

    def sign(self, data: bytes, *, mechanism: Any) -> bytes:
        assert mechanism.name == "EDDSA"
        return self.key.sign(data)


@dataclass(kw_only=True)
class FakeToken:
    """A token in a slot; counts its open sessions."""

    label: str = "satchel"
    serial: bytes = b"0123"
    manufacturer_id: str = "fake"
    model: str = "fake"
    objects: list[FakeObject] = field(default_factory=list)
    refuses: Exception | None = None
    opened: int = 0
    sessions: int = 0

    @contextmanager
    def open(self, *, user_pin: str) -> Iterator[FakeToken]:
        if self.refuses:
            raise self.refuses
        if user_pin != PIN:
            raise PinIncorrect
        self.sessions += 1
        self.opened += 1
        try:
            yield self
        finally:
            self.sessions -= 1

    def get_objects(self, wanted: dict[Any, Any]) -> list[FakeObject]:
        return [
            one for one in self.objects if all(one[name] == value for name, value in wanted.items())
        ]


@dataclass(kw_only=True)
class FakeSlot:
    """A slot with a token."""

    slot_id: int
    token: FakeToken

    def get_token(self) -> FakeToken:
        return self.token


class FakeLibrary:
    """A PKCS #11 library with these tokens."""

    def __init__(self, *tokens: FakeToken) -> None:
        self.tokens = tokens

    def get_slots(self, *, token_present: bool) -> list[FakeSlot]:
        assert token_present
        return [FakeSlot(slot_id=place, token=one) for place, one in enumerate(self.tokens)]

    def __call__(self, _: str) -> FakeLibrary:
        return self


def pair(key: SigningKey, label: str = "release", **others: Any) -> list[FakeObject]:
    """Both halves of a key."""
    return [
        FakeObject(kind=kind, label=label, key=key, **others)
        for kind in (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY)
    ]


def soft_token(folder: Path, label: str = "satchel") -> Path:
    """Initialize a SoftHSM2 token below a folder; gives the configuration it wants.

    ``SOFTHSM2_CONF`` has to name it before the library is loaded, once per process.
    """
    (folder / "tokens").mkdir(parents=True)
    configuration = folder / "softhsm2.conf"
    configuration.write_text(f"directories.tokendir = {folder / 'tokens'}\nlog.level = ERROR\n")
    subprocess.run(
        [
            *(str(TOOL), "--init-token", "--free", "--label", label),
            *("--pin", PIN, "--so-pin", "27182818"),
        ],
        env={"SOFTHSM2_CONF": str(configuration), "PATH": "/usr/bin:/bin"},
        check=True,
        capture_output=True,
    )
    return configuration


def soft_key(label: str, key_id: bytes = b"\x01") -> None:
    """Make an Ed25519 key on the first token; the library finds it by ``SOFTHSM2_CONF``."""
    import pkcs11

    token = pkcs11.lib(str(SOFTHSM)).get_token(token_label="satchel")
    with token.open(rw=True, user_pin=PIN) as session:
        parameters = session.create_domain_parameters(
            KeyType.EC_EDWARDS,
            {Attribute.EC_PARAMS: b"\x13\x0cedwards25519"},
            local=True,
        )
        parameters.generate_keypair(
            mechanism=pkcs11.Mechanism.EC_EDWARDS_KEY_PAIR_GEN,
            label=label,
            id=key_id,
            store=True,
        )
