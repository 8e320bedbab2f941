"""Trust updates on paper: any order, any case, and no slip goes unnoticed."""

from __future__ import annotations

import random
import tracemalloc
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundler.format.chain import parse_root_envelope, verify_first, walk
from bundler.format.errors import BundleError, FormatError, PaperError, UpdateError
from bundler.format.limits import MAX_UPDATE_BYTES, MAX_UPDATE_STORED_BYTES
from bundler.format.paper import (
    LEAST_CHARACTERS,
    MOST_CHARACTERS,
    join,
    read_part,
    split,
)
from bundler.format.strict import encode_json
from bundler.format.update import encode_update, parse_update
from tests.fakes.roots import make_root, signed

CHAIN = {number: signed(make_root(version=number)) for number in (1, 2, 3)}


def deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(9, wbits=-15)
    return packer.compress(data) + packer.flush()


@given(
    st.binary(min_size=1, max_size=3000),
    st.integers(LEAST_CHARACTERS, MOST_CHARACTERS),
    st.randoms(use_true_random=False),
)
@settings(deadline=None)
def test_texts_come_back_in_any_order_and_spelling(
    data: bytes, characters: int, chance: random.Random
) -> None:
    try:
        texts = split(data, characters=characters)
    except PaperError:
        assert len(data) * 8 / 5 > 90 * (characters - 30)
        return
    assert all(len(one) <= characters for one in texts)
    assert all(one.isascii() and one.isalnum() and one.isupper() for one in texts)
    typed = [*texts, chance.choice(texts)]
    chance.shuffle(typed)
    typed = [chance.choice([one, one.lower(), f" {one[:9]} {one[9:]}\r\n"]) for one in typed]
    assert join(typed) == data


@given(st.binary(min_size=80, max_size=400), st.data())
@settings(deadline=None, max_examples=60)
def test_a_missing_or_foreign_part_is_named(data: bytes, draw: st.DataObject) -> None:
    texts = split(data, characters=LEAST_CHARACTERS)
    gone = draw.draw(st.integers(0, len(texts) - 1))
    with pytest.raises(PaperError, match=rf"missing: {gone + 1}$"):
        join(texts[:gone] + texts[gone + 1 :])
    other = split(data + b"x", characters=LEAST_CHARACTERS)
    with pytest.raises(PaperError, match="of the set"):
        join([*texts, other[0]])


@given(st.binary(min_size=1, max_size=200), st.data())
@settings(deadline=None)
def test_a_slip_is_noticed(data: bytes, draw: st.DataObject) -> None:
    text = draw.draw(st.sampled_from(split(data, characters=LEAST_CHARACTERS)))
    place = draw.draw(st.integers(0, len(text) - 1))
    other = draw.draw(st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-"))
    if other != text[place]:
        with pytest.raises(PaperError):
            read_part(text[:place] + other + text[place + 1 :])


@given(st.text(max_size=200))
def test_any_text_is_a_part_or_refused(text: str) -> None:
    for one in (text, "SATCHELQ1" + text):
        with pytest.raises(PaperError):
            join([one])


def test_two_texts_of_one_number_are_refused() -> None:
    # The same set id and number, other data, and a check that fits: made by somebody who knows how.
    from bundler.format import paper

    first = split(b"a" * 100, characters=LEAST_CHARACTERS)
    forged = first[0][:-4].replace("MFQW", "MFQX")
    forged += paper._sum(forged.encode(), 4)
    with pytest.raises(PaperError, match="two that differ"):
        join([*first, forged])
    with pytest.raises(PaperError, match="bytes that were printed"):
        join([forged, *first[1:]])


def test_numbers_that_make_no_sense_are_refused() -> None:
    from bundler.format import paper

    for numbers in ("0001", "0201", "0000"):
        text = f"SATCHELQ1AAAAAA{numbers}AAAA"
        with pytest.raises(PaperError, match="a number from 1"):
            read_part(text + paper._sum(text.encode(), 4))
    text = "SATCHELQ1AAAAAA0101A"
    with pytest.raises(PaperError, match="whole base 32"):
        join([text + paper._sum(text.encode(), 4)])
    with pytest.raises(PaperError, match="found none"):
        join([])


def test_a_text_longer_than_any_code_is_refused() -> None:
    from bundler.format import paper

    text = "SATCHELQ1AAAAAA0101" + "A" * MOST_CHARACTERS
    with pytest.raises(PaperError, match="a text of ours"):
        read_part(text + paper._sum(text.encode(), 4))
    with pytest.raises(PaperError, match="a text of ours"):
        read_part("S\u00c4TCHELQ1")


def test_what_needs_too_many_texts_is_refused() -> None:
    with pytest.raises(PaperError, match="at most 99 parts"):
        split(random.Random(1).randbytes(5000), characters=LEAST_CHARACTERS)
    with pytest.raises(PaperError):
        split(bytes(MAX_UPDATE_STORED_BYTES + 1), characters=MOST_CHARACTERS)


def test_an_update_carries_a_chain() -> None:
    data = encode_update({number: CHAIN[number] for number in (3, 2)})
    found = parse_update(data)
    assert set(found) == {2, 3}
    roots = walk(verify_first(CHAIN[1]), found.get)
    assert [one.root.version for one in roots] == [2, 3]
    assert [parse_root_envelope(one) for one in found.values()] == [
        parse_root_envelope(CHAIN[number]) for number in (2, 3)
    ]


def test_a_root_of_eight_keys_fits_on_one_sheet() -> None:
    from bundler.format.keys import SigningKey

    keys = tuple(SigningKey.from_seed(bytes([one]) * 32) for one in range(8))
    root = signed(make_root(version=2, top=keys, threshold=3), *keys[:3])
    texts = split(encode_update({2: root}))
    assert len(texts) <= 6
    assert len(split(encode_update({2: root}), characters=MOST_CHARACTERS)) <= 2


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xff",
        deflated(b"{}")[:-1],
        deflated(b"{}") + b"x",
        deflated(b"{}"),
        deflated(encode_json({"roots": []})),
        deflated(encode_json({"roots": [{"version": 0, "payload": "x", "signatures": []}]})),
        deflated(encode_json({"roots": [{"version": 2, "payload": "x", "signatures": []}] * 2})),
        deflated(encode_json({"roots": [{"version": 2, "payload": "x", "signatures": [{}]}]})),
        deflated(
            encode_json({"roots": [{"version": 2, "payload": "x", "signatures": []}], "x": 1})
        ),
        bytes(MAX_UPDATE_STORED_BYTES + 1),
    ],
)
def test_what_is_no_update_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse_update(data)


def test_two_roots_of_one_version_are_refused() -> None:
    root = {"version": 2, "payload": "x", "signatures": []}
    with pytest.raises(UpdateError, match="one twice"):
        parse_update(deflated(encode_json({"roots": [root, root]})))


def test_an_update_that_unpacks_to_more_than_allowed_costs_no_memory() -> None:
    bomb = deflated(bytes(64 << 20))
    assert len(bomb) <= 65_536
    tracemalloc.start()
    with pytest.raises(FormatError, match="found more"):
        parse_update(bomb)
    assert tracemalloc.get_traced_memory()[1] < 4 * MAX_UPDATE_BYTES
    tracemalloc.stop()


def test_an_update_too_large_for_paper_is_not_written() -> None:
    many = {number: signed(make_root(version=number)) for number in range(2, 1000)}
    with pytest.raises(FormatError, match="trust update"):
        encode_update(many)


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_an_update_or_refused(noise: bytes) -> None:
    for data in (noise, deflated(noise)):
        try:
            parse_update(data)
        except BundleError:
            continue
        pytest.fail("noise was taken for an update")
