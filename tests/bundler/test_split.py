from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bundler.cli import run
from bundler.errors import ForeignLayoutError, PackError, SourceDamagedError
from bundler.progress import Silent
from bundler.source.layouts import foreign_layout, layout_warnings
from bundler.source.local import open_path
from bundler.source.split import merge, merged_name, read_shards, shard_names
from hwprobe.errors import GgufError
from hwprobe.gguf import read_header
from tests.fakes.forge import tiny_model
from tests.fakes.gguf_writer import (
    Tensor,
    Typed,
    tiny_llama_metadata,
    tiny_llama_tensors,
    write_gguf,
)

DEMO = Path(__file__).parents[1] / "demo-model" / "demo-f16.gguf"


def split(path: Path, folder: Path, count: int, stem: str = "tiny") -> list[Path]:
    """Shards of a GGUF file as llama-gguf-split writes them: keys in the first, tensors in all."""
    header = read_header(path)
    data = path.read_bytes()
    shards = []
    for number in range(count):
        mine = header.tensors[number::count]
        tensors = [
            Tensor(
                one.name,
                one.dimensions,
                one.ggml_type,
                data[header.data_offset_bytes + one.offset_bytes :][: one.size_bytes],
            )
            for one in mine
        ]
        keys = {
            "split.no": Typed("uint16", number),
            "split.count": Typed("uint16", count),
            "split.tensors.count": Typed("int32", len(header.tensors)),
        }
        own = tiny_llama_metadata() if number == 0 else {}
        shards.append(
            write_gguf(
                folder / f"{stem}-{number + 1:05d}-of-{count:05d}.gguf", {**own, **keys}, tensors
            )
        )
    return shards


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    (tmp_path / "tiny.gguf").write_bytes(tiny_model(4))
    return tmp_path / "tiny.gguf"


def test_a_missing_shard_is_refused_by_name(tmp_path: Path, whole: Path) -> None:
    shards = split(whole, tmp_path, 3)
    shards[1].unlink()
    with pytest.raises(SourceDamagedError, match=r"1 of 3 shards are missing: tiny-00002-of-00003"):
        read_shards(shards[0])


def test_a_shard_alone_under_another_name_is_refused(tmp_path: Path, whole: Path) -> None:
    first = split(whole, tmp_path, 3)[0]
    renamed = first.rename(tmp_path / "model.gguf")
    with pytest.raises(SourceDamagedError, match="expected 3 shards"):
        read_shards(renamed)


def test_shards_of_two_models_are_refused(tmp_path: Path, whole: Path) -> None:
    shards = split(whole, tmp_path, 2)
    shutil.copy(shards[0], shards[1])
    with pytest.raises(SourceDamagedError, match="its header says it is another shard"):
        read_shards(shards[0])


def test_shards_with_too_few_tensors_are_refused(tmp_path: Path, whole: Path) -> None:
    shards = split(whole, tmp_path, 2)
    keys = {
        "split.no": Typed("uint16", 1),
        "split.count": Typed("uint16", 2),
        "split.tensors.count": Typed("int32", 12),
    }
    write_gguf(shards[1], keys, [Tensor("x.weight", (32,))])
    with pytest.raises(SourceDamagedError, match="tensors in all shards"):
        read_shards(shards[0])


def test_a_shard_that_is_no_gguf_is_refused_by_name(tmp_path: Path, whole: Path) -> None:
    shards = split(whole, tmp_path, 2)
    shards[1].write_bytes(b"PK")
    with pytest.raises(GgufError, match="tiny-00002-of-00002"):
        read_shards(shards[0])


def test_a_directory_that_cannot_be_written_is_said(tmp_path: Path, whole: Path) -> None:
    shards = read_shards(split(whole, tmp_path, 2)[0])
    target = tmp_path / "merged.gguf"
    target.write_bytes(b"precious")
    with pytest.raises(PackError, match="file exists"):
        merge(shards, target, Silent())


@settings(
    deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(count=st.integers(2, 6), named=st.integers(0, 5), seed=st.integers(0, 3))
def test_merged_shards_are_the_whole_model(
    tmp_path: Path, count: int, named: int, seed: int
) -> None:
    folder = tmp_path / f"{count}-{named}-{seed}"
    folder.mkdir(exist_ok=True)
    whole = folder / "tiny.gguf"
    whole.write_bytes(tiny_model(seed))
    shards = split(whole, folder, count)
    target = folder / "merged.gguf"
    target.unlink(missing_ok=True)
    merge(read_shards(shards[named % count]), target, Silent())
    merged, original = read_header(target), read_header(whole)
    assert dict(merged.metadata) == dict(original.metadata)
    assert tensors_of(target) == tensors_of(whole)


def tensors_of(path: Path) -> dict[str, tuple[tuple[int, ...], str, bytes]]:
    header, data = read_header(path), path.read_bytes()
    return {
        one.name: (
            one.dimensions,
            one.ggml_type,
            data[header.data_offset_bytes + one.offset_bytes :][: one.size_bytes],
        )
        for one in header.tensors
    }


def test_names_of_shards() -> None:
    assert shard_names("m.gguf") == ("m.gguf",)
    assert shard_names("a-00002-of-00002.gguf") == (
        "a-00001-of-00002.gguf",
        "a-00002-of-00002.gguf",
    )
    assert merged_name("a-00002-of-00002.gguf") == "a.gguf"


def test_a_split_model_is_packed_as_one_file(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shards = split(whole, tmp_path, 2)
    (tmp_path / "stick").mkdir()
    assert run(["keygen", "release", "--no-passphrase"]) == 0
    pack = ["--name", "demo", "--key", "release.key", "--out", "stick"]
    assert run(["pack", str(shards[1]), *pack]) == 0
    assert run(["pack", str(shards[0]), *pack]) == 0
    assert "already there, every byte checked" in capsys.readouterr().out


def test_the_source_of_a_file_is_told_without_its_directory(tmp_path: Path) -> None:
    path = tmp_path / "a b.gguf"
    path.write_bytes(tiny_model())
    origin = open_path(path, tmp_path, Silent()).origin
    assert origin.uri == "file:a%20b.gguf"
    assert origin.digest is not None


LAYOUTS = [
    ("gptoss", {}, "x", "gpt-oss"),
    ("qwen25vl", {}, "x", "qwen2vl"),
    ("gemma3", {"gemma3.mm.tokens_per_image": 256}, "x", "key gemma3.mm.tokens_per_image"),
    ("gemma3", {}, "v.blk.0.attn_q.weight", "vision tensors such as v.blk.0.attn_q.weight"),
    ("gemma3", {}, "x", "no key gemma3.attention.layer_norm_rms_epsilon"),
    ("gemma3", {}, "dense.0.weight", "tensor dense.0.weight"),
    ("mistral3", {"mistral3.rope.scaling_beta": 1.0}, "x", "key mistral3.rope.scaling_beta"),
    ("llama4", {}, "mm.linear.weight", "projector tensors"),
    ("gemma4", {}, "a.conv.weight", "audio tensors"),
    ("qwen35", {}, "blk.0.ssm_dt", "tensor blk.0.ssm_dt"),
    ("qwen35moe", {}, "mtp.layers.0.x", "multi-token prediction tensors"),
    ("qwen3vl", {"qwen3vl.vision.block_count": 2}, "x", "key qwen3vl.vision.block_count"),
    ("lfm2", {}, "output_norm.weight", "token_embd_norm.weight is expected"),
    ("laguna", {}, "blk.3.attn_g.weight", "tensor blk.3.attn_g.weight"),
    ("bert", {"tokenizer.ggml.precompiled_charsmap": ["A", "B"]}, "x", "as a list of texts"),
]


@pytest.mark.parametrize(("architecture", "keys", "tensor", "mark"), LAYOUTS)
def test_layouts_of_ollamas_own_are_told_by_their_marks(
    tmp_path: Path, architecture: str, keys: dict[str, object], tensor: str, mark: str
) -> None:
    path = write_gguf(
        tmp_path / "x.gguf",
        {"general.architecture": architecture, **keys},
        [Tensor(tensor, (32,))],
    )
    found = foreign_layout(read_header(path))
    assert found is not None
    assert mark in found
    with pytest.raises(ForeignLayoutError, match="Ollama's own layout"):
        open_path(path, tmp_path, Silent())


def test_gemma3n_of_unequal_vocabularies_is_told(tmp_path: Path) -> None:
    tensors = [Tensor("token_embd.weight", (32, 5)), Tensor("per_layer_token_embd.weight", (32, 4))]
    path = write_gguf(tmp_path / "x.gguf", {"general.architecture": "gemma3n"}, tensors)
    assert "unequal vocabularies" in str(foreign_layout(read_header(path)))


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "clip", "bert", "gemma3n", "lfm2"])
def test_llama_cpp_s_own_layouts_are_let_through(tmp_path: Path, architecture: str) -> None:
    tensors = tiny_llama_tensors()
    if architecture == "clip":
        tensors = [Tensor("v.blk.0.x", (32,))]
    elif architecture == "lfm2":
        tensors = [Tensor("token_embd_norm.weight", (32,))]
    path = write_gguf(tmp_path / "x.gguf", {"general.architecture": architecture}, tensors)
    assert foreign_layout(read_header(path)) is None


def test_the_demo_model_is_llama_cpp_s() -> None:
    header = read_header(DEMO)
    assert foreign_layout(header) is None
    assert layout_warnings(header) == ()


def test_a_tokenizer_without_its_splitting_is_warned_of(tmp_path: Path) -> None:
    keys = {**tiny_llama_metadata(), "tokenizer.ggml.model": "gpt2"}
    path = write_gguf(tmp_path / "x.gguf", keys, tiny_llama_tensors())
    assert "tokenizer.ggml.pre" in layout_warnings(read_header(path))[0]
