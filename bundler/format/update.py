"""Trust updates: roots of a chain and nothing else, small enough for paper. Pure.

A root is vouched for by the keys of the one before it, so an update needs no signature of its
own: what is in it counts by `bundler.format.chain`, or not at all. On a medium an update is the
directory ``satchel/trust/root``; here it is one compressed document:

    deflate({"roots":[{"version":2,"payload":"…","signatures":[{"keyid":"…","sig":"…"}]}]})
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from typing import Final

from bundler.format.chain import ROOT_PAYLOAD_TYPE, parse_root_envelope
from bundler.format.envelope import Envelope, encode, read_signature
from bundler.format.errors import FormatError, JsonError, UpdateError
from bundler.format.limits import (
    MAX_ROOT_BYTES,
    MAX_ROOT_VERSIONS,
    MAX_SIGNATURES,
    MAX_UPDATE_BYTES,
    MAX_UPDATE_STORED_BYTES,
)
from bundler.format.strict import Reader, encode_json, parse_json

_LEVEL: Final = 9
_RAW: Final = -15
"""Deflate without a header: the document is checked by what is in it."""


def encode_update(roots: Mapping[int, bytes]) -> bytes:
    """Write an update.

    Args:
        roots: version → the root's envelope; at least one.

    Raises:
        FormatError: an envelope is malformed, or the update is too large.
    """
    members = {"roots": [_members(version, roots[version]) for version in sorted(roots)]}
    written = encode_json(members, max_string_bytes=MAX_ROOT_BYTES)
    packer = zlib.compressobj(_LEVEL, wbits=_RAW)
    data = packer.compress(written) + packer.flush()
    if len(written) > MAX_UPDATE_BYTES or len(data) > MAX_UPDATE_STORED_BYTES:
        raise FormatError(
            f"trust update: expected at most {MAX_UPDATE_STORED_BYTES} bytes, found {len(data)}",
            hint="leave out the roots that the site has: --since VERSION",
        )
    return data


def parse_update(data: bytes) -> dict[int, bytes]:
    """Read an update; version → the root's envelope. Nothing in the result is trusted.

    Raises:
        FormatError: it is malformed or too large.
    """
    members = parse_json(
        _inflate(data), max_bytes=MAX_UPDATE_BYTES, max_string_bytes=MAX_ROOT_BYTES
    )
    with Reader(members, "", error=UpdateError) as reader:
        roots = reader.objects("roots", _read_root, at_least=1, at_most=MAX_ROOT_VERSIONS)
    if len(dict(roots)) != len(roots):
        raise UpdateError(at="roots", expected="each version once", found="one twice")
    return dict(roots)


def _inflate(data: bytes) -> bytes:
    """Decompress at most the allowed size, whatever the stream claims."""
    if len(data) > MAX_UPDATE_STORED_BYTES:
        raise JsonError(
            f"trust update: expected at most {MAX_UPDATE_STORED_BYTES} bytes, found {len(data)}"
        )
    unpacker = zlib.decompressobj(wbits=_RAW)
    try:
        plain = unpacker.decompress(data, MAX_UPDATE_BYTES + 1)
    except zlib.error as error:
        raise JsonError("trust update: expected deflated bytes, found others") from error
    if len(plain) > MAX_UPDATE_BYTES:
        raise JsonError(f"trust update: expected at most {MAX_UPDATE_BYTES} bytes, found more")
    if not unpacker.eof or unpacker.unused_data:
        raise JsonError("trust update: expected it to end with its bytes, found another end")
    return plain


def _members(version: int, data: bytes) -> dict[str, object]:
    envelope = parse_root_envelope(data)
    try:
        payload = envelope.payload.decode("utf-8")
    except UnicodeDecodeError as error:
        raise JsonError("trust root: expected UTF-8, found other bytes") from error
    return {
        "version": version,
        "payload": payload,
        "signatures": [
            {"keyid": one.key_id, "sig": base64.b64encode(one.signature).decode("ascii")}
            for one in envelope.signatures
        ],
    }


def _read_root(reader: Reader) -> tuple[int, bytes]:
    version = reader.integer("version", at_least=1, at_most=MAX_ROOT_VERSIONS)
    payload = reader.text("payload", max_bytes=MAX_ROOT_BYTES).encode("utf-8")
    signatures = reader.objects("signatures", read_signature, at_most=MAX_SIGNATURES)
    envelope = Envelope(payload_type=ROOT_PAYLOAD_TYPE, payload=payload, signatures=signatures)
    return version, encode(envelope)
