"""What left the machine: a reader of QEMU's packet dumps that says which packets nobody asked for.

The format is libpcap's of 1998 (magic ``a1b2c3d4``, little-endian here) with Ethernet frames.
"""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

SERVED_PORT = 11434
_FILE_HEADER = 24
_RECORD = struct.Struct("<IIII")
_ARP, _IPV4 = 0x0806, 0x0800
_ETHERNET, _PORTS, _FLAGS = 14, 4, 13
_TCP, _UDP = 6, 17
_DHCP = (68, 67)
_QEMU_MAC = bytes.fromhex("5254")
"""QEMU's default addresses, the guest's, start with 52:54; its own router's with 52:55."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Frames the guest sent, by kind.

    Attributes:
        expected: requests for an address, and answers on the served port.
        unasked: everything else; the aim is none.
    """

    expected: Counter[str]
    unasked: Counter[str]


def read_traffic(capture: Path) -> Traffic:
    """Sort what the guest sent.

    Raises:
        ValueError: the file is no such capture.
    """
    data = capture.read_bytes()
    if data[:4] != b"\xd4\xc3\xb2\xa1":
        raise ValueError(f"{capture.name}: expected a little-endian pcap, found {data[:4].hex()}")
    expected: Counter[str] = Counter()
    unasked: Counter[str] = Counter()
    position = _FILE_HEADER
    while position + _RECORD.size <= len(data):
        _, _, captured, _ = _RECORD.unpack_from(data, position)
        frame = data[position + _RECORD.size : position + _RECORD.size + captured]
        position += _RECORD.size + captured
        if frame[6:8] != _QEMU_MAC:
            continue
        kind, asked = classify(frame)
        (expected if asked else unasked)[kind] += 1
    return Traffic(expected=expected, unasked=unasked)


def classify(frame: bytes) -> tuple[str, bool]:
    """What a frame of the guest's is, and whether it was to be expected."""
    if len(frame) < _ETHERNET:
        return "short frame", False
    (ethertype,) = struct.unpack_from(">H", frame, 12)
    if ethertype == _ARP:
        return "ARP", True
    if ethertype == _IPV4 and len(frame) > _ETHERNET + 20:
        return _classify_ipv4(frame[_ETHERNET:])
    return f"ethertype {ethertype:#06x}", False


def _classify_ipv4(packet: bytes) -> tuple[str, bool]:
    protocol, transport = packet[9], packet[(packet[0] & 15) * 4 :]
    if protocol not in (_TCP, _UDP) or len(transport) < _PORTS:
        return f"IP protocol {protocol}", False
    source, target = struct.unpack_from(">HH", transport)
    if protocol == _TCP and source == SERVED_PORT:
        # A SYN without ACK would be a connection of the guest's own.
        own = len(transport) > _FLAGS and transport[_FLAGS] & 0x12 == 0x02
        return f"TCP from {source}", not own
    if protocol == _UDP and (source, target) == _DHCP:
        return "DHCP", True
    return f"{'TCP' if protocol == _TCP else 'UDP'} to {target}", False
