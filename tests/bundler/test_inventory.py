"""Inventories are read back as they were written, and nothing else is one."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundler.format import envelope
from bundler.format.digest import Digest
from bundler.format.errors import BundleError, EnvelopeError, InventoryError
from bundler.format.inventory import (
    PAYLOAD_TYPE,
    Inventory,
    InventoryObject,
    chunk_table,
    encode_inventory,
    parse_inventory,
    read_inventory,
    write_inventory,
)
from tests.fakes.forge import STRANGER, TRUSTED

SIZES = (100, 4 << 20, 7)


def held(seed: bytes, sizes: tuple[int, ...] = SIZES) -> InventoryObject:
    marks = [
        (size, hashlib.sha256(seed + bytes([place])).digest()) for place, size in enumerate(sizes)
    ]
    return InventoryObject(digest=Digest.of(seed), size_bytes=sum(sizes), table=chunk_table(marks))


HONEST = Inventory(
    site="site-7",
    made_at="2026-11-21T02:00:00Z",
    appliance="0.1.0",
    root_version=3,
    channels={"main": 7},
    free_bytes=1 << 40,
    objects=tuple(sorted((held(b"a"), held(b"b")), key=lambda one: one.digest)),
)

Edit = Callable[[dict[str, Any]], object]


def test_chunks_stand_one_behind_the_other() -> None:
    chunks = list(held(b"a").chunks())
    assert [one.offset for one in chunks] == [0, 100, 100 + (4 << 20)]
    assert [len(one.mark) for one in chunks] == [16] * 3


@given(
    site=st.sampled_from(["", "site-7"]),
    channels=st.dictionaries(st.from_regex(r"[a-z0-9][a-z0-9.-]{0,31}", fullmatch=True),
                             st.integers(1, 1 << 50), max_size=5),
    seeds=st.lists(st.binary(max_size=4), max_size=5, unique=True),
    sizes=st.lists(st.integers(1, 16 << 20), min_size=1, max_size=6),
)  # fmt: skip
def test_what_is_written_is_read_back(
    site: str, channels: dict[str, int], seeds: list[bytes], sizes: list[int]
) -> None:
    objects = sorted((held(seed, tuple(sizes)) for seed in seeds), key=lambda one: one.digest)
    inventory = replace(HONEST, site=site, channels=channels, objects=tuple(objects))
    assert parse_inventory(encode_inventory(inventory)) == inventory
    assert read_inventory(write_inventory(inventory, None)).inventory == inventory


@pytest.mark.parametrize(
    "edit",
    [
        lambda i: i.update(version=2),
        lambda i: i.update(more=1),
        lambda i: i.update(site="Not A Site"),
        lambda i: i.update(made_at="yesterday"),
        lambda i: i.update(channels={"A": 1}),
        lambda i: i.update(channels={"main": 0}),
        lambda i: i.update(channels={f"c{place}": 1 for place in range(300)}),
        lambda i: i.update(free_bytes=-1),
        lambda i: i["objects"].reverse(),
        lambda i: i["objects"].append(i["objects"][0]),
        lambda i: i["objects"][0].update(size=5),
        lambda i: i["objects"][0].update(chunks="!"),
        lambda i: i["objects"][0].update(chunks="AAAA"),
        lambda i: i["objects"][0].update(size=17 << 20, chunks=_one_chunk(17 << 20)),
    ],
)
def test_what_is_no_inventory_is_refused(edit: Edit) -> None:
    members = json.loads(encode_inventory(HONEST))
    edit(members)
    with pytest.raises(InventoryError):
        parse_inventory(json.dumps(members).encode())


def _one_chunk(size: int) -> str:
    return base64.b64encode(chunk_table([(size, bytes(32))])).decode()


def test_a_bundle_is_no_inventory_and_an_inventory_no_bundle() -> None:
    with pytest.raises(EnvelopeError):
        read_inventory(envelope.sign(b"{}", [TRUSTED]))
    with pytest.raises(EnvelopeError):
        envelope.parse(write_inventory(HONEST, TRUSTED))


def test_a_signature_is_of_the_key_that_made_it() -> None:
    read = read_inventory(write_inventory(HONEST, TRUSTED))
    assert read.signed_by(TRUSTED.public_key)
    assert not read.signed_by(STRANGER.public_key)
    assert not read_inventory(write_inventory(HONEST, None)).signed_by(TRUSTED.public_key)
    moved = replace(read.envelope, payload=encode_inventory(replace(HONEST, site="other")))
    changed = read_inventory(envelope.encode(moved))
    assert not changed.signed_by(TRUSTED.public_key)
    assert read.envelope.payload_type == PAYLOAD_TYPE


@given(data=st.binary(max_size=400))
def test_noise_is_refused_as_ours(data: bytes) -> None:
    with pytest.raises(BundleError):
        read_inventory(data)
