"""WebP to pixels, with Pillow: the engine decodes none. Only in a runner: native code may crash.

What comes here has passed `server.images`: one still picture of a bounded size.
"""

from __future__ import annotations

import io

from PIL import Image, UnidentifiedImageError

from server.errors import EngineRefusedError
from server.images import check_image


def rgb_of(data: bytes) -> tuple[int, int, bytes]:
    """Width, height, and three bytes for each pixel, row by row; transparency is dropped.

    Raises:
        EngineRefusedError: it cannot be decoded.
    """
    size = check_image(data)
    try:
        # Only this one of Pillow's decoders, whatever the bytes look like.
        with Image.open(io.BytesIO(data), formats=("WEBP",)) as picture:
            if picture.size != (size.width, size.height):
                raise EngineRefusedError("broken: its size is not that of its picture")
            return size.width, size.height, picture.convert("RGB").tobytes()
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise EngineRefusedError("broken: it cannot be decoded") from error
