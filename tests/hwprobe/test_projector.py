"""Projectors: which go with a model, and what they add."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwprobe.errors import ProjectorError
from hwprobe.gguf import model_profile, read_header
from hwprobe.projector import (
    DECODE_BYTES,
    check_projector,
    projected,
    sees,
    vision_shape,
)
from tests.fakes.projectors import PATCH, SIDE, write_projector

OTHER_WIDTH = "projector: expected one for a model of width 256, found one for another (width 192)"
DEMO = Path(__file__).parents[1] / "demo-model" / "demo-f16.gguf"


def test_one_for_the_model_is_taken(tmp_path: Path) -> None:
    projector, model = read_header(write_projector(tmp_path / "p.gguf")), read_header(DEMO)
    check_projector(projector, model)
    assert sees(projector)


@pytest.mark.parametrize(
    ("width", "changes", "text"),
    [
        (192, {}, OTHER_WIDTH),
        (256, {"general.architecture": "llama"},
         "projector: expected architecture clip, found llama"),
        (256, {"clip.has_vision_encoder": False},
         "projector: expected one for images, found none for them"),
    ],
)  # fmt: skip
def test_others_are_refused(
    tmp_path: Path, width: int, changes: dict[str, object], text: str
) -> None:
    path = write_projector(tmp_path / "p.gguf", width=width, metadata=changes)
    with pytest.raises(ProjectorError) as caught:
        check_projector(read_header(path), read_header(DEMO))
    assert str(caught.value) == text


def test_projectors_see_but_for_those_that_count_images(tmp_path: Path) -> None:
    assert sees(read_header(write_projector(tmp_path / "p.gguf", kind="qwen2vl_merger")))
    for key in ("clip.projector_type", "clip.vision.projector_type"):
        other = write_projector(tmp_path / "q.gguf", metadata={key: "hunyuanvl"})
        assert not sees(read_header(other))


def test_memory_is_added_once(tmp_path: Path) -> None:
    path = write_projector(tmp_path / "p.gguf")
    projector, plain = read_header(path), model_profile(read_header(DEMO))
    more = projected(plain, projector)
    shape = vision_shape(projector)
    assert shape.rows == (SIDE // PATCH) ** 2 + 1
    added = more.weights_bytes - plain.weights_bytes
    tensors = sum(tensor.size_bytes for tensor in projector.tensors)
    assert tensors <= added - DECODE_BYTES - shape.compute_bytes <= tensors + 64 * 64
    assert more.input_bytes - plain.input_bytes == DECODE_BYTES
    assert more.block_bytes == plain.block_bytes
