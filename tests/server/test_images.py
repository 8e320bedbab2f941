"""Images before they reach the engine: what is refused, and that nothing else happens."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from server.errors import BadRequestError
from server.images import MOST_SCANS, ImageSize, check_image, check_images
from tests.fakes.projectors import png, png_of

GREY = png((9, 9, 9), 5, 3)


def jpeg(width: int = 8, height: int = 8, *, frame: int = 0xC0, scans: int = 1) -> bytes:
    """The form of a JPEG, without a picture in it."""
    size = struct.pack(">HBHHB", 11, 8, height, width, 1) + b"\1\x11\0"
    scan = b"\xff\xda" + struct.pack(">H", 8) + b"\1\1\0\0\x3f\0" + b"data\xff\0more"
    return (
        b"\xff\xd8\xff\xe0" + struct.pack(">H", 4) + b"JF" + bytes([0xFF, frame]) + size
        + scan * scans + b"\xff\xd9"
    )  # fmt: skip


REFUSED = [
    (b"", "expected PNG, JPEG or WebP, found nothing"),
    (b"GIF89a", "expected PNG, JPEG or WebP, found GIF"),
    (b"RIFF\0\0\0\0WEBP", "broken WebP: it ends too early"),
    (b"RIFF\x20\0\0\0WEBPVP8 " + bytes(9), "broken WebP: it ends too early"),
    (b"RIFF\x18\0\0\0WEBPVP8 " + bytes(40), "broken WebP: it has no picture"),
    (b"RIFF\x18\0\0\0WEBPVP8L" + bytes(40), "broken WebP: it has no picture"),
    (b"RIFF\x18\0\0\0WEBPICCP" + bytes(40), "broken WebP: it has no picture"),
    (
        b"RIFF\x18\0\0\0WEBPVP8X" + bytes(8) + b"\xff" * 10,
        "expected at most 16777216 pixels and 16384 a side, found 16777216 by 16777216",
    ),
    (b"RIFF\0\0\0\0WAVE", "expected PNG, JPEG or WebP, found another RIFF file than WebP"),
    (b"<svg/>", "expected PNG, JPEG or WebP, found SVG or another text"),
    (b"ID3\4", "expected PNG, JPEG or WebP, found other bytes"),
    (b"\x89PNG\r\n\x1a\n", "broken PNG: it ends too early"),
    (GREY[:-1], "broken PNG: it ends too early"),
    (png_of(0, 9, b""), "expected pixels, found 0 by 9"),
    (png_of(16385, 1, b""),
     "expected at most 16777216 pixels and 16384 a side, found 16385 by 1"),
    (png_of(4097, 4096, b""),
     "expected at most 16777216 pixels and 16384 a side, found 4097 by 4096"),
    (png_of(2, 2, zlib.compress(bytes(13))), "broken PNG: its pixels are not as many as it says"),
    (png_of(2, 2, zlib.compress(bytes(15))), "broken PNG: its pixels are not as many as it says"),
    (png_of(2, 2, zlib.compress(bytes(1 << 26))),
     "broken PNG: its pixels are not as many as it says"),
    (png_of(2, 2, zlib.compress(bytes(14))[:-6]),
     "broken PNG: its pixels are not as many as it says"),
    (png_of(2, 2, b"\0\0"), "broken PNG: its data cannot be unpacked"),
    (b"\xff\xd8", "broken JPEG: a marker is missing"),
    (b"\xff\xd8\xff", "broken JPEG: it ends too early"),
    (b"\xff\xd8\xff\xd9", "broken JPEG: it has no picture that can be decoded"),
    (jpeg()[:-2], "broken JPEG: it ends too early"),
    (jpeg(frame=0xC3), "broken JPEG: it has no picture that can be decoded"),
    (jpeg(65535, 65535),
     "expected at most 16777216 pixels and 16384 a side, found 65535 by 65535"),
    (jpeg(0, 4), "expected pixels, found 0 by 4"),
    (jpeg(frame=0xE1), "broken JPEG: it has no size"),
    (jpeg(scans=MOST_SCANS + 1), "expected at most 64 scans in a JPEG, found 65"),
]  # fmt: skip


def written(format_: str, *, mode: str = "RGB", **how: Any) -> bytes:
    """A file of 37 by 21 pixels by Pillow's encoders."""
    picture = Image.new(mode, (37, 21))
    channels = range(len(mode))
    picture.putdata([tuple((n * 7 + c) % 256 for c in channels) for n in range(37 * 21)])
    file = io.BytesIO()
    picture.save(file, format_, **how)
    return file.getvalue()


WRITTEN = [
    written("JPEG"),
    written("JPEG", progressive=True, quality=95),
    written("JPEG", optimize=True, restart_marker_blocks=2),
    written("WEBP"),
    written("WEBP", lossless=True),
    written("WEBP", mode="RGBA", quality=80),
    written("WEBP", mode="RGBA", lossless=True, exif=b"Exif\0\0II*\0"),
    written("WEBP", icc_profile=b"x" * 200),
    written("PNG"),
]


@pytest.mark.parametrize("data", WRITTEN)
def test_files_of_usual_encoders_pass_and_halves_of_them_do_not(data: bytes) -> None:
    assert check_image(data) == ImageSize(37, 21)
    with pytest.raises(BadRequestError, match="broken"):
        check_image(data[: len(data) // 2])


def test_animation_is_refused() -> None:
    file = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 200)]
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:])
    with pytest.raises(BadRequestError, match="expected a still picture, found an animation"):
        check_image(file.getvalue())


@pytest.mark.parametrize(("data", "text"), REFUSED)
def test_what_is_refused(data: bytes, text: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        check_image(data)
    assert str(caught.value) == text


def test_what_is_taken() -> None:
    assert check_image(GREY) == ImageSize(5, 3)
    assert check_image(jpeg(640, 480)) == ImageSize(640, 480)
    assert check_image(jpeg(frame=0xC2, scans=MOST_SCANS)) == ImageSize(8, 8)
    assert check_image(png((1, 1, 1), 1, 1)) == ImageSize(1, 1)


def test_an_interlaced_png_has_the_bytes_of_its_passes() -> None:
    def laced(size_bytes: int) -> bytes:
        header = struct.pack(">IIBBBBB", 3, 2, 8, 2, 0, 0, 1)
        plain = png_of(3, 2, zlib.compress(bytes(size_bytes)))
        crc = struct.pack(">I", zlib.crc32(b"IHDR" + header))
        return plain.replace(plain[16:33], header + crc)

    # 3 by 2 pixels: passes 1, 5 (no row), 6 and 7 hold 1, 2 (columns 0 and 2), 1 and 3 pixels.
    assert check_image(laced((1 + 3) + (1 + 3) + (1 + 3) + (1 + 9))) == ImageSize(3, 2)
    with pytest.raises(BadRequestError):
        check_image(laced(2 * 10))


def test_a_request_holds_so_many_images_and_bytes() -> None:
    check_images([GREY] * 32)
    with pytest.raises(BadRequestError, match="images: expected at most 32, found 33"):
        check_images([GREY] * 33)
    with pytest.raises(BadRequestError, match="images: expected at most 33554432 bytes"):
        check_images([bytes(1 << 24)] * 3)
    with pytest.raises(BadRequestError, match="image 1: expected PNG, JPEG or WebP"):
        check_images([GREY, b"x"])


@given(st.sampled_from([GREY, jpeg(), png((1, 2, 3), 40, 40)]), st.data())
def test_flipped_and_cut_images_are_refused_or_keep_their_bounds(
    image: bytes, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(image) - 1))
    bent = image[:at] + bytes([data.draw(st.integers(0, 255))]) + image[at + 1 :]
    bent = bent[: data.draw(st.integers(0, len(bent)))]
    try:
        size = check_image(bent)
    except BadRequestError:
        return
    assert 0 < size.width * size.height <= 1 << 24
