"""Images that clients send: what kind, how large, and whether they are whole. Pure.

The engine's decoder is native code, so nothing reaches it that is not what it says: the size comes
from the header and is bounded, and the data of a PNG is unpacked here, to its announced length and
not a byte further, before the engine unpacks it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from server.errors import BadRequestError

MOST_PIXELS = 1 << 24
"""16 777 216, for instance 4096 by 4096. Why: models scale images down to less than a tenth of
that, and every pixel takes up to 16 bytes while it is decoded."""

MOST_SIDE = 16_384
"""Pixels. Why: longer strips are no pictures; the engine scales each side by itself."""

MOST_BYTES = 32 << 20
"""Of all images of a request. Why: as base64 they go to the runner in one line of 64 MiB."""

MOST_IMAGES = 32
"""In a request. Why: the runner keeps each at the model's own size while the request lasts."""

MOST_SCANS = 64
"""Of a progressive JPEG. Why: encoders make about ten, and each is a pass over all pixels."""

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
          (0, 1, 1, 2))  # fmt: skip
"""First column, first row, column step, row step of each pass. Source: PNG, section 8.1."""
_UNPACK_BYTES = 1 << 20

_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})
"""JPEG markers without a length: TEM, RST0 to RST7, SOI."""
_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
"""Baseline, extended and progressive frames; the engine decodes no others."""
_OTHER_FRAMES = frozenset(range(0xC3, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SCAN, _END = 0xDA, 0xD9

_RIFF, _WEBP = b"RIFF", b"WEBP"
_ANIMATED = 0x02
"""A flag of the extended format. Source of all numbers: Google's WebP container specification and,
for the headers inside, RFC 6386 and the specification of the lossless format."""

_OTHERS = (
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"RIFF", "another RIFF file than WebP"),
    (b"\0\0\0", "HEIC, AVIF or a video"),
    (b"%PDF", "PDF"),
    (b"<", "SVG or another text"),
)


@dataclass(frozen=True, slots=True)
class ImageSize:
    """Pixels of an image."""

    width: int
    height: int


def check_images(images: Sequence[bytes]) -> None:
    """Refuse what the engine should not see.

    Raises:
        BadRequestError: there are too many images, or one is too large, of another kind than PNG,
            JPEG and WebP, or broken. The message counts from 0.
    """
    if len(images) > MOST_IMAGES:
        raise BadRequestError(f"images: expected at most {MOST_IMAGES}, found {len(images)}")
    total = sum(map(len, images))
    if total > MOST_BYTES:
        raise BadRequestError(f"images: expected at most {MOST_BYTES} bytes, found {total}")
    for index, data in enumerate(images):
        try:
            check_image(data)
        except BadRequestError as error:
            raise BadRequestError(f"image {index}: {error}") from error


def check_image(data: bytes) -> ImageSize:
    """The size of a whole PNG, JPEG or WebP.

    Raises:
        BadRequestError: it is none, too large, or broken.
    """
    if data.startswith(_PNG):
        return _check_png(data)
    if data.startswith(b"\xff\xd8"):
        return _check_jpeg(data)
    if is_webp(data):
        return _check_webp(data)
    found = next((kind for magic, kind in _OTHERS if data.startswith(magic)), "other bytes")
    raise BadRequestError(f"expected PNG, JPEG or WebP, found {found if data else 'nothing'}")


def is_webp(data: bytes) -> bool:
    """Whether this is a WebP file."""
    return data[:4] == _RIFF and data[8:12] == _WEBP


def _checked(width: int, height: int) -> ImageSize:
    if not (width and height):
        raise BadRequestError(f"expected pixels, found {width} by {height}")
    if max(width, height) > MOST_SIDE or width * height > MOST_PIXELS:
        raise BadRequestError(
            f"expected at most {MOST_PIXELS} pixels and {MOST_SIDE} a side, "
            f"found {width} by {height}"
        )
    return ImageSize(width, height)


def _check_png(data: bytes) -> ImageSize:
    chunks = _png_chunks(data)
    kind, header = next(chunks, (b"", b""))
    if kind != b"IHDR" or len(header) != 13:  # noqa: PLR2004 - the header's length
        raise BadRequestError("broken PNG: no header")
    width, height, depth, colour, _, _, laced = struct.unpack(">IIBBBBB", header)
    size = _checked(width, height)
    if colour not in _PNG_CHANNELS or depth not in (1, 2, 4, 8, 16) or laced > 1:
        raise BadRequestError("broken PNG: an unknown form of pixels")
    expected = _png_bytes(size, bits=depth * _PNG_CHANNELS[colour], laced=bool(laced))
    packed = b"".join(part for kind, part in chunks if kind == b"IDAT")
    if _unpacked_bytes(packed, most=expected) != expected:
        raise BadRequestError("broken PNG: its pixels are not as many as it says")
    return size


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(_PNG)
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        end = at + 8 + length
        if end + 4 > len(data):
            raise BadRequestError("broken PNG: it ends too early")
        yield kind, data[at + 8 : end]
        if kind == b"IEND":
            return
        at = end + 4
    raise BadRequestError("broken PNG: it ends too early")


def _png_bytes(size: ImageSize, *, bits: int, laced: bool) -> int:
    """Bytes of the unpacked data: each row has one byte before its pixels."""
    passes = _ADAM7 if laced else ((0, 0, 1, 1),)
    total = 0
    for left, top, across, down in passes:
        width = -(-(size.width - left) // across)
        height = -(-(size.height - top) // down)
        if width > 0 and height > 0:
            total += height * (1 + -(-width * bits // 8))
    return total


def _unpacked_bytes(packed: bytes, *, most: int) -> int:
    """Length of what is packed; anything over ``most`` counts as one more."""
    unpacker = zlib.decompressobj()
    total = 0
    try:
        rest = packed
        while rest and not unpacker.eof and total <= most:
            total += len(unpacker.decompress(rest, min(_UNPACK_BYTES, most - total + 1)))
            rest = unpacker.unconsumed_tail
    except zlib.error as error:
        raise BadRequestError("broken PNG: its data cannot be unpacked") from error
    return total if unpacker.eof or total > most else -1


def _check_jpeg(data: bytes) -> ImageSize:
    size: ImageSize | None = None
    for marker, begin, end in _jpeg_segments(data):
        if marker in _FRAMES:
            size = _jpeg_size(data[begin:end])
        elif marker == _END or marker in _OTHER_FRAMES:
            raise BadRequestError("broken JPEG: it has no picture that can be decoded")
    if size is None:
        raise BadRequestError("broken JPEG: it has no size")
    # Inside compressed data 0xFF is always followed by 0 or a restart marker.
    finish = data.find(b"\xff\xd9", end)
    if finish < 0:
        raise BadRequestError("broken JPEG: it ends too early")
    scans = 1 + data.count(b"\xff\xda", end, finish)
    if scans > MOST_SCANS:
        raise BadRequestError(f"expected at most {MOST_SCANS} scans in a JPEG, found {scans}")
    return size


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Markers up to the first scan, and where their contents begin and end."""
    at, marker = 2, 0
    while marker not in (_SCAN, _END):
        if data[at : at + 1] != b"\xff":
            raise BadRequestError("broken JPEG: a marker is missing")
        while data[at : at + 1] == b"\xff":
            at += 1
        if at >= len(data):
            raise BadRequestError("broken JPEG: it ends too early")
        marker = data[at]
        at += 1
        if marker in _STANDALONE:
            continue
        length = 2 if marker == _END else int.from_bytes(data[at : at + 2], "big")
        if length < 2 or at + length > len(data) + (marker == _END) * 2:  # noqa: PLR2004 - itself
            raise BadRequestError("broken JPEG: it ends too early")
        yield marker, at + 2, at + length
        at += length


def _jpeg_size(frame: bytes) -> ImageSize:
    if len(frame) < 6:  # noqa: PLR2004 - precision, height, width, components
        raise BadRequestError("broken JPEG: it ends too early")
    height, width = struct.unpack(">HH", frame[1:5])
    return _checked(width, height)


def _check_webp(data: bytes) -> ImageSize:
    if len(data) < 8 + int.from_bytes(data[4:8], "little") or len(data) < 30:  # noqa: PLR2004 - the longest header
        raise BadRequestError("broken WebP: it ends too early")
    kind, body = data[12:16], data[20:30]
    match kind:
        case b"VP8 " if body[3:6] == b"\x9d\x01\x2a":
            width, height = struct.unpack("<HH", body[6:10])
            return _checked(width & 0x3FFF, height & 0x3FFF)
        case b"VP8L" if body[0] == 0x2F:  # noqa: PLR2004 - its signature
            sides = int.from_bytes(body[1:5], "little")
            return _checked((sides & 0x3FFF) + 1, (sides >> 14 & 0x3FFF) + 1)
        case b"VP8X" if body[0] & _ANIMATED:
            raise BadRequestError("expected a still picture, found an animation")
        case b"VP8X":
            width = int.from_bytes(body[4:7], "little") + 1
            height = int.from_bytes(body[7:10], "little") + 1
            return _checked(width, height)
        case _:
            raise BadRequestError("broken WebP: it has no picture")
