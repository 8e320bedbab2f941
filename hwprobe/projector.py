"""Projectors: whether one goes with a model, and what it adds to the model's memory. Pure.

A projector is a GGUF file of architecture ``clip``: a vision transformer, and ``mm.*`` tensors that
bring its rows to the width of the model. The engine checks that width itself, but only when the
model is already in memory. Source: clip_n_mmproj_embd and mtmd_init in the engine's tools/mtmd.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hwprobe.errors import ProjectorError
from hwprobe.gguf import GgufHeader, ModelProfile
from hwprobe.profile import TENSOR_ALIGNMENT_BYTES

DECODE_BYTES = 256 << 20
"""Host memory while an image is decoded: 16 bytes for each of the most pixels that are accepted.

Why: a PNG of 16 bits and four channels is held packed out twice, at 8 bytes a pixel.
"""
_LARGEST_SIDE = 1024
"""Pixels a side that are counted for a projector of dynamic resolution at least."""
_VISION_TYPE_KEY = "clip.vision.projector_type"
_COUNTS_IMAGES = "hunyuanvl"


@dataclass(frozen=True, slots=True)
class VisionShape:
    """The vision transformer, as far as its memory depends on it.

    Attributes:
        rows: patches of one picture.
        width: of the residual stream.
        inner: width of the feed-forward layer.
    """

    rows: int
    width: int
    inner: int

    @property
    def compute_bytes(self) -> int:
        """Largest stage of the graph, with flash attention, in rows of activations of four bytes.

        Measured with widths of 768 to 1152 and 257 to 4097 rows: the engine plans 0.7 of it.
        """
        return 4 * self.rows * (2 * self.inner + 4 * self.width)


def check_projector(projector: GgufHeader, model: GgufHeader) -> None:
    """Refuse a projector that is none, or one for another model.

    Raises:
        ProjectorError: it is; the message names what differs.
    """
    kind = projector.string("general.architecture", "")
    if kind != "clip":
        raise ProjectorError(f"projector: expected architecture clip, found {kind or 'none'}")
    if projector.metadata.get("clip.has_vision_encoder") is not True:
        raise ProjectorError("projector: expected one for images, found none for them")
    architecture = model.string("general.architecture", "")
    width = model.metadata.get(f"{architecture}.embedding_length")
    bridges = [tensor for tensor in projector.tensors if tensor.name.startswith("mm.")]
    found = {length for tensor in bridges for length in tensor.dimensions}
    if bridges and width not in found:
        made_for = projector.metadata.get("clip.vision.projection_dim")
        raise ProjectorError(
            f"projector: expected one for a model of width {width}, found one for another"
            + (f" (width {made_for})" if made_for else "")
        )


def sees(projector: GgufHeader) -> bool:
    """Whether this engine's server can show images through it.

    HunyuanVL's positions count the images of a prompt, which nothing here knows of one image.
    """
    if projector.metadata.get("clip.has_vision_encoder") is not True:
        return False
    kinds = (projector.string(key, "") for key in ("clip.projector_type", _VISION_TYPE_KEY))
    return _COUNTS_IMAGES not in kinds


def projected(profile: ModelProfile, projector: GgufHeader) -> ModelProfile:
    """The profile with the memory of a projector.

    Weights and computing lie beside the model's last layer, decoding in host memory.
    """
    size = sum(
        -(-tensor.size_bytes // TENSOR_ALIGNMENT_BYTES) * TENSOR_ALIGNMENT_BYTES
        for tensor in projector.tensors
    )
    beside = size + vision_shape(projector).compute_bytes
    return replace(
        profile,
        input_bytes=profile.input_bytes + DECODE_BYTES,
        output_bytes=profile.output_bytes + beside,
        weights_bytes=profile.weights_bytes + beside + DECODE_BYTES,
    )


def vision_shape(projector: GgufHeader) -> VisionShape:
    """Read the vision transformer's numbers; a malformed one counts as zero."""

    def number(key: str) -> int:
        value = projector.metadata.get(f"clip.vision.{key}")
        return value if isinstance(value, int) and 0 < value < 1 << 20 else 0

    patch = number("patch_size") or 14
    side = number("image_size")
    if projector.string("clip.projector_type", "") not in _FIXED:
        side = max(side, _LARGEST_SIDE)
    return VisionShape(
        rows=(side // patch) ** 2 + 1,
        width=number("embedding_length"),
        inner=number("feed_forward_length"),
    )


_FIXED = frozenset({"mlp", "mlp_norm", "ldp", "ldpv2", "gemma3", "idefics3", "llama4", "internvl"})
"""Types that scale every picture, or each piece of it, to ``image_size``."""
