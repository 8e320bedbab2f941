"""Projectors with random weights: a small vision transformer and what brings it to the model.

``write_projector(path, width=256)`` is one in LLaVA's form for a model of that width; with ``kind``
it is in Qwen2-VL's, whose rows have several positions, or Gemma 3's, whose rows see each other.
`png` makes pictures.

Source of names and shapes: the engine's tools/mtmd/models, one file for each kind.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from tests.fakes.gguf_writer import Tensor, write_gguf

SIDE = 28
PATCH = 14
TOKENS = (SIDE // PATCH) ** 2
"""Rows that a picture becomes in LLaVA's form."""
GEMMA_SIDE = 112
GEMMA_TOKENS = (GEMMA_SIDE // PATCH // 4) ** 2
"""Rows that a picture becomes in Gemma 3's form."""

_WIDTH = 32
_HIDDEN = 64
_BLOCKS = 2


Kind = Literal["mlp", "qwen2vl_merger", "gemma3"]


def write_projector(
    path: Path,
    *,
    kind: Kind = "mlp",
    width: int = 256,
    seed: int = 1,
    metadata: dict[str, Any] | None = None,
) -> Path:
    """A projector whose rows differ with the picture.

    Args:
        path: the file.
        kind: the engine's name of its form.
        width: embedding length of the model it is for.
        seed: of the weights.
        metadata: keys in place of, or beside, the usual ones.
    """
    dice = random.Random(seed)

    def filled(name: str, *shape: int, kind: str = "F32") -> Tensor:
        count = 1
        for length in shape:
            count *= length
        code = "f" if kind == "F32" else "e"
        numbers = [dice.gauss(0.0, 0.3) for _ in range(count)]
        return Tensor(name, shape, kind, data=struct.pack(f"<{count}{code}", *numbers))

    def norm(name: str) -> list[Tensor]:
        ones = struct.pack(f"<{_WIDTH}f", *([1.0] * _WIDTH))
        return [
            Tensor(f"{name}.weight", (_WIDTH,), "F32", data=ones),
            Tensor(f"{name}.bias", (_WIDTH,), "F32", data=bytes(4 * _WIDTH)),
        ]

    def patches() -> Tensor:
        return filled("v.patch_embd.weight", PATCH, PATCH, 3, _WIDTH, kind="F16")

    match kind:
        case "mlp":
            tensors = [
                filled("v.class_embd", _WIDTH),
                patches(),
                filled("v.position_embd.weight", _WIDTH, TOKENS + 1, kind="F16"),
                *norm("v.pre_ln"),
                *_bridge(filled, _WIDTH, width, width),
            ]
        case "qwen2vl_merger":
            tensors = [
                patches(),
                filled("v.patch_embd.weight.1", PATCH, PATCH, 3, _WIDTH, kind="F16"),
                *norm("v.post_ln"),
                *_bridge(filled, 4 * _WIDTH, 4 * _WIDTH, width),
            ]
        case "gemma3":
            tensors = [
                patches(),
                filled("v.patch_embd.bias", _WIDTH),
                filled("v.position_embd.weight", _WIDTH, (GEMMA_SIDE // PATCH) ** 2),
                *norm("v.post_ln"),
                filled("mm.input_projection.weight", width, _WIDTH),
                *norm("mm.soft_emb_norm")[:1],
            ]
    for block in range(_BLOCKS):
        at = f"v.blk.{block}"
        for part in ("attn_q", "attn_k", "attn_v", "attn_out"):
            tensors.append(filled(f"{at}.{part}.weight", _WIDTH, _WIDTH, kind="F16"))
            tensors.append(filled(f"{at}.{part}.bias", _WIDTH))
        tensors += [*norm(f"{at}.ln1"), *norm(f"{at}.ln2")]
        tensors.append(filled(f"{at}.ffn_up.weight", _WIDTH, _HIDDEN, kind="F16"))
        tensors.append(filled(f"{at}.ffn_up.bias", _HIDDEN))
        tensors.append(filled(f"{at}.ffn_down.weight", _HIDDEN, _WIDTH, kind="F16"))
        tensors.append(filled(f"{at}.ffn_down.bias", _WIDTH))
    keys: dict[str, Any] = {
        "general.type": "mmproj",
        "general.architecture": "clip",
        "general.file_type": 1,
        "clip.has_vision_encoder": True,
        "clip.projector_type": kind,
        "clip.use_gelu": True,
        "clip.vision.image_size": GEMMA_SIDE if kind == "gemma3" else SIDE,
        "clip.vision.patch_size": PATCH,
        "clip.vision.embedding_length": _WIDTH,
        "clip.vision.feed_forward_length": _HIDDEN,
        "clip.vision.projection_dim": width,
        "clip.vision.block_count": _BLOCKS,
        "clip.vision.attention.head_count": 2,
        "clip.vision.attention.layer_norm_epsilon": 1e-5,
        "clip.vision.image_mean": [0.5, 0.5, 0.5],
        "clip.vision.image_std": [0.5, 0.5, 0.5],
    }
    return write_gguf(path, {**keys, **(metadata or {})}, tensors)


def _bridge(filled: Callable[..., Tensor], rows: int, inner: int, width: int) -> list[Tensor]:
    """Two layers to the width of the model."""
    return [
        filled("mm.0.weight", rows, inner, kind="F16"),
        filled("mm.0.bias", inner),
        filled("mm.2.weight", inner, width, kind="F16"),
        filled("mm.2.bias", width),
    ]


def png(
    pixel: Callable[[int, int], tuple[int, int, int]] | tuple[int, int, int],
    width: int = SIDE,
    height: int = SIDE,
) -> bytes:
    """A picture in one colour, or in one per pixel."""
    rows = bytearray()
    for y in range(height):
        rows.append(0)
        for x in range(width):
            rows += bytes(pixel(x, y) if callable(pixel) else pixel)
    return png_of(width, height, zlib.compress(bytes(rows)))


def png_of(width: int, height: int, packed: bytes) -> bytes:
    """A PNG file that says it has this size, whatever its data holds."""
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", size), (b"IDAT", packed), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
