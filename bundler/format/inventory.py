"""The inventory of a site: which chunks its files are made of. What `pack --against` reads. Pure.

It is an envelope as a bundle's, of a type of its own, signed by the site's device key or by nobody.
It is a hint: a packer that believes a wrong one makes a bundle that the site refuses, never one
that installs other bytes. Form and rules: docs/bundle-format.md, section 12.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from bundler.format import envelope
from bundler.format.digest import Digest
from bundler.format.envelope import Envelope
from bundler.format.errors import InventoryError
from bundler.format.keys import PublicKey, SigningKey
from bundler.format.limits import (
    MAX_ARTIFACT_BYTES,
    MAX_ARTIFACTS,
    MAX_CHANNELS,
    MAX_CHUNK_BYTES,
    MAX_INTEGER,
)
from bundler.format.statement import CHANNEL_PATTERN, LOGICAL_NAME_PATTERN, TIME_PATTERN
from bundler.format.strict import Reader, encode_json, parse_json

PAYLOAD_TYPE: Final = "application/vnd.satchel.inventory.v1+json"
MAX_INVENTORY_BYTES: Final = 4 << 20
"""Chunks of about 600 GB of weights: what an envelope holds."""
_CHUNK: Final = struct.Struct("<I16s")
_VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class InventoryChunk:
    """One chunk of an object.

    Attributes:
        offset: where it stands in the object, and ``size_bytes`` how long it is.
        mark: the first 16 bytes of its SHA-256.
    """

    offset: int
    size_bytes: int
    mark: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class InventoryObject:
    """One large file of the site.

    Attributes:
        digest: its name.
        size_bytes: its size.
        table: 20 bytes per chunk, in the order of the file: its length and its mark.
    """

    digest: Digest
    size_bytes: int
    table: bytes

    def chunks(self) -> Iterator[InventoryChunk]:
        """Every chunk, in order."""
        offset = 0
        for size_bytes, mark in _CHUNK.iter_unpack(self.table):
            yield InventoryChunk(offset=offset, size_bytes=size_bytes, mark=mark)
            offset += size_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """What a site holds; ``parse_inventory(encode_inventory(i)) == i``.

    Attributes:
        site: the site's name, or empty.
        made_at: when it was made, RFC 3339 in UTC.
        appliance: version of the site's release.
        root_version: of the trust root in force, 0 for none.
        channels: channel → highest sequence number that was accepted.
        free_bytes: free on the store's file system.
        objects: by digest.
    """

    site: str
    made_at: str
    appliance: str
    root_version: int = 0
    channels: Mapping[str, int] = field(default_factory=dict)
    free_bytes: int
    objects: tuple[InventoryObject, ...]


def chunk_table(chunks: Iterable[tuple[int, bytes]]) -> bytes:
    """The table of an object, from sizes in bytes and whole SHA-256 digests in order."""
    return b"".join(_CHUNK.pack(size_bytes, digest[:16]) for size_bytes, digest in chunks)


def encode_inventory(inventory: Inventory) -> bytes:
    """The payload; equal inventories give equal bytes.

    Raises:
        JsonError: a value is outside what strict JSON allows.
    """
    members: dict[str, Any] = {
        "version": _VERSION,
        "site": inventory.site,
        "made_at": inventory.made_at,
        "appliance": inventory.appliance,
        "root_version": inventory.root_version,
        "channels": dict(inventory.channels),
        "free_bytes": inventory.free_bytes,
        "objects": [
            {
                "digest": str(one.digest),
                "size": one.size_bytes,
                "chunks": base64.b64encode(one.table).decode("ascii"),
            }
            for one in inventory.objects
        ],
    }
    return encode_json(members, max_string_bytes=MAX_INVENTORY_BYTES)


def write_inventory(inventory: Inventory, key: SigningKey | None) -> bytes:
    """The file: an envelope, signed by the device key if there is one.

    Raises:
        EnvelopeError: it is too large.
    """
    payload = encode_inventory(inventory)
    empty = Envelope(payload_type=PAYLOAD_TYPE, payload=payload, signatures=())
    return envelope.encode(envelope.add_signatures(empty, () if key is None else (key,)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadInventory:
    """An inventory as it came, and the envelope it came in."""

    inventory: Inventory
    envelope: Envelope

    def signed_by(self, key: PublicKey) -> bool:
        """Whether this key signed it."""
        return bool(envelope.signers(self.envelope, {key.key_id: key}))


def read_inventory(data: bytes) -> ReadInventory:
    """Read the file. Its signature is not judged here.

    Raises:
        JsonError: envelope or payload is not strict JSON.
        EnvelopeError: it is no envelope of an inventory.
        InventoryError: a field is wrong.
    """
    parsed = envelope.parse(data, payload_type=PAYLOAD_TYPE, max_payload_bytes=MAX_INVENTORY_BYTES)
    return ReadInventory(inventory=parse_inventory(parsed.payload), envelope=parsed)


def parse_inventory(payload: bytes) -> Inventory:
    """Read the payload.

    Raises:
        JsonError: it is not strict JSON.
        InventoryError: a field is wrong.
    """
    members = parse_json(
        payload, max_bytes=MAX_INVENTORY_BYTES, max_string_bytes=MAX_INVENTORY_BYTES
    )
    with Reader(members, "", error=InventoryError) as reader:
        reader.integer("version", at_least=_VERSION, at_most=_VERSION)
        inventory = Inventory(
            site=reader.text("site", pattern=rf"(?:{LOGICAL_NAME_PATTERN})?", empty=True),
            made_at=reader.text("made_at", pattern=TIME_PATTERN),
            appliance=reader.text("appliance"),
            root_version=reader.integer("root_version"),
            channels=reader.object("channels", _read_channels),
            free_bytes=reader.integer("free_bytes", at_most=MAX_INTEGER),
            objects=reader.objects("objects", _read_object, at_most=MAX_ARTIFACTS),
        )
    digests = [one.digest for one in inventory.objects]
    if digests != sorted(set(digests)):
        raise InventoryError(at="objects", expected="ascending digests, each once", found="others")
    return inventory


def _read_channels(reader: Reader) -> dict[str, int]:
    names = reader.names()
    if len(names) > MAX_CHANNELS:
        reader.refuse("names", f"at most {MAX_CHANNELS}", len(names))
    for name in names:
        if not re.fullmatch(CHANNEL_PATTERN, name, re.ASCII):
            reader.refuse("names", f"names of the form {CHANNEL_PATTERN}", name)
    return {name: reader.integer(name, at_least=1) for name in names}


def _read_object(reader: Reader) -> InventoryObject:
    digest = reader.digest("digest")
    size_bytes = reader.integer("size", at_least=1, at_most=MAX_ARTIFACT_BYTES)
    encoded = reader.text("chunks", max_bytes=MAX_INVENTORY_BYTES)
    try:
        table = base64.b64decode(encoded.encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        reader.refuse("chunks", "base64", encoded[:40])
    if len(table) % _CHUNK.size:
        reader.refuse("chunks", f"records of {_CHUNK.size} bytes", len(table))
    found = InventoryObject(digest=digest, size_bytes=size_bytes, table=table)
    sizes = [one.size_bytes for one in found.chunks()]
    if sum(sizes) != size_bytes or not all(1 <= size <= MAX_CHUNK_BYTES for size in sizes):
        reader.refuse("chunks", f"chunks of 1 to {MAX_CHUNK_BYTES} bytes, {size_bytes} in all", 0)
    return found
