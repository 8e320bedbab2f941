"""Trust roots with fixed keys, for tests."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from bundler.format import envelope
from bundler.format.chain import ROOT_PAYLOAD_TYPE
from bundler.format.envelope import Envelope
from bundler.format.keys import PublicKey, SigningKey
from bundler.format.root import Role, Root, encode_root
from tests.fakes.forge import SECOND, TRUSTED

ROOT_A = SigningKey.from_seed(b"a" * 32)
ROOT_B = SigningKey.from_seed(b"b" * 32)
ROOT_C = SigningKey.from_seed(b"c" * 32)
ROOT_D = SigningKey.from_seed(b"d" * 32)
ISSUED = "2026-11-20T00:00:00Z"
EXPIRES = "2036-01-01T00:00:00Z"


def role(*keys: SigningKey, threshold: int = 1, models: Iterable[str] = ()) -> Role:
    """A role of these keys."""
    key_ids = tuple(sorted(key.public_key.key_id for key in keys))
    return Role(key_ids=key_ids, threshold=threshold, models=tuple(models))


def make_root(
    *,
    version: int = 1,
    top: tuple[SigningKey, ...] = (ROOT_A, ROOT_B, ROOT_C),
    threshold: int = 2,
    channels: dict[str, tuple[SigningKey, ...]] | None = None,
    channel_threshold: int = 1,
    **others: Any,
) -> Root:
    """A root whose channel ``prod`` belongs to the forge's keys."""
    signers = {"prod": (TRUSTED, SECOND)} if channels is None else channels
    models = others.pop("models", ("*",))
    roles = {
        f"bundle:{name}": role(*keys, threshold=channel_threshold, models=models)
        for name, keys in signers.items()
    }
    every = [*top, *(key for keys in signers.values() for key in keys)]
    by_id: dict[str, PublicKey] = {key.public_key.key_id: key.public_key for key in every}
    root = Root(
        version=version,
        issued=ISSUED,
        expires=EXPIRES,
        keys=tuple(by_id[one] for one in sorted(by_id)),
        root=role(*top, threshold=threshold),
        roles=roles,
    )
    return replace(root, **others)


def signed_payload(payload: bytes, *keys: SigningKey) -> bytes:
    """An envelope of a root around any bytes."""
    empty = Envelope(payload_type=ROOT_PAYLOAD_TYPE, payload=payload, signatures=())
    return envelope.encode(envelope.add_signatures(empty, keys))


def signed(root: Root, *keys: SigningKey) -> bytes:
    """A root's envelope, signed by two of its usual keys or by these."""
    return signed_payload(encode_root(root), *(keys or (ROOT_A, ROOT_B)))
