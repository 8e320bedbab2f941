"""The acceptance test's reader of packets: what counts as asked for, and what does not."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from images.acceptance.packets import classify, read_traffic

GUEST = bytes.fromhex("525400123456")
ROUTER = bytes.fromhex("52550a000202")


def ethernet(payload: bytes, ethertype: int = 0x0800, source: bytes = GUEST) -> bytes:
    return ROUTER + source + struct.pack(">H", ethertype) + payload


def ipv4(protocol: int, source: int, target: int, flags: int = 0x10) -> bytes:
    head = bytes([0x45]) + b"\0" * 8 + bytes([protocol]) + b"\0" * 10
    return head + struct.pack(">HH", source, target) + b"\0" * 9 + bytes([flags]) + b"\0" * 6


def capture(path: Path, *frames: bytes) -> Path:
    head = b"\xd4\xc3\xb2\xa1" + b"\0" * 20
    records = [struct.pack("<IIII", 0, 0, len(one), len(one)) + one for one in frames]
    path.write_bytes(head + b"".join(records))
    return path


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (ethernet(b"\0" * 28, 0x0806), ("ARP", True)),
        (ethernet(ipv4(17, 68, 67)), ("DHCP", True)),
        (ethernet(ipv4(6, 11434, 50000)), ("TCP from 11434", True)),
        (ethernet(ipv4(6, 11434, 443, flags=0x02)), ("TCP from 11434", False)),
        (ethernet(ipv4(6, 40000, 443)), ("TCP to 443", False)),
        (ethernet(ipv4(17, 40000, 53)), ("UDP to 53", False)),
        (ethernet(ipv4(17, 123, 123)), ("UDP to 123", False)),
        (ethernet(ipv4(1, 0, 0)), ("IP protocol 1", False)),
        (ethernet(b"\0" * 40, 0x86DD), ("ethertype 0x86dd", False)),
        (b"", ("short frame", False)),
    ],
)
def test_only_addresses_and_answers_are_asked_for(frame: bytes, expected: tuple[str, bool]) -> None:
    assert classify(frame) == expected


@given(st.binary(max_size=80))
def test_any_bytes_are_classified(frame: bytes) -> None:
    kind, asked = classify(frame)

    assert kind
    assert not asked or kind in {"ARP", "DHCP", "TCP from 11434"}


def test_only_what_the_guest_sent_is_counted(tmp_path: Path) -> None:
    asked, unasked = ethernet(ipv4(17, 68, 67)), ethernet(ipv4(17, 40000, 53))
    from_router = ethernet(ipv4(17, 53, 40000), source=ROUTER)

    found = read_traffic(capture(tmp_path / "c.pcap", asked, unasked, unasked, from_router))

    assert found.expected == {"DHCP": 1}
    assert found.unasked == {"UDP to 53": 2}


def test_a_cut_capture_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = capture(tmp_path / "c.pcap", ethernet(ipv4(17, 68, 67)), ethernet(ipv4(17, 1, 53)))
    path.write_bytes(path.read_bytes()[:-50])

    assert sum(read_traffic(path).expected.values()) == 1


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"not a capture")

    with pytest.raises(ValueError, match="expected a little-endian pcap"):
        read_traffic(tmp_path / "x")
