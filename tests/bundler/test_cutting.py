from __future__ import annotations

import itertools
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from bundler.format.cutting import cut_gguf
from bundler.format.index import Filter
from hwprobe.gguf import read_header
from tests.fakes.forge import tiny_model

DEMO = Path(__file__).parents[1] / "demo-model" / "demo-f16.gguf"
DEMO_HEADER = read_header(DEMO)


@settings(deadline=None, max_examples=30)
@given(st.integers(1000, 5 << 20))
def test_cuts_cover_the_file_without_gap_or_overlap(chunk_bytes: int) -> None:
    cuts = cut_gguf(DEMO_HEADER, chunk_bytes=chunk_bytes)
    assert cuts[0].start == 0
    assert cuts[-1].end == DEMO.stat().st_size
    assert all(one.end == following.start for one, following in itertools.pairwise(cuts))
    assert all(0 < cut.size_bytes <= chunk_bytes for cut in cuts)


def test_a_cut_falls_on_every_tensor() -> None:
    starts = {cut.start for cut in cut_gguf(DEMO_HEADER)}
    offset = DEMO_HEADER.data_offset_bytes
    assert {offset + tensor.offset_bytes for tensor in DEMO_HEADER.tensors} <= starts


def test_floating_tensors_take_planes_and_the_metadata_takes_none() -> None:
    cuts = cut_gguf(DEMO_HEADER)
    assert cuts[0].filter is Filter.NONE
    kinds = {cut.kind: cut.filter for cut in cuts[1:]}
    assert kinds == {"F16": Filter.PLANES_2, "F32": Filter.PLANES_4}


def test_another_chat_template_leaves_every_tensors_chunk_as_it_was(tmp_path: Path) -> None:
    """This is what makes small updates small."""
    contents: list[set[bytes]] = []
    for template in ("one", "another, longer one"):
        path = tmp_path / "model.gguf"
        path.write_bytes(tiny_model(metadata={"tokenizer.chat_template": template}))
        data = path.read_bytes()
        contents.append({data[cut.start : cut.end] for cut in cut_gguf(read_header(path))[1:]})
    assert contents[0] == contents[1]
