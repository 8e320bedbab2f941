from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hwprobe.gguf import GgufError, ModelProfile, model_profile, read_header
from tests.fakes.gguf_writer import Tensor, write_gguf, write_tiny_llama
from tests.fakes.synthetic_models import write_family

DEMO = Path(__file__).parents[1] / "demo-model" / "demo-f16.gguf"


def _profile(path: Path, **overrides: Any) -> ModelProfile:
    return model_profile(read_header(write_tiny_llama(path / "x.gguf", **overrides)))


def test_demo_model_has_its_dimensions() -> None:
    profile = model_profile(read_header(DEMO))
    assert profile.architecture == "llama"
    assert profile.quantization == "F16"
    assert profile.parameter_count == 5_508_352
    assert (profile.block_count, profile.head_count, profile.head_count_kv) == (6, 4, 2)
    assert profile.context_length == 2048
    assert profile.vocabulary_size == 3072
    assert profile.tied_output_bytes == 3072 * 256 * 2
    assert profile.chat_template
    assert profile.file_size_bytes == DEMO.stat().st_size


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.block_count", 0),
        ("llama.block_count", 513),
        ("llama.block_count", "one"),
        ("llama.embedding_length", 0),
        ("llama.context_length", 0),
        ("llama.context_length", 2**31),
        ("llama.attention.head_count", [4, 4, 4]),
        ("llama.attention.head_count_kv", ["two"]),
        ("general.architecture", 7),
        ("general.type", "adapter"),
    ],
)
def test_impossible_metadata_is_refused_by_key(tmp_path: Path, key: str, value: Any) -> None:
    overrides: dict[str, Any] = {key: value}
    if key == "llama.attention.head_count":
        overrides["llama.block_count"] = 4
    with pytest.raises(GgufError, match=key):
        _profile(tmp_path, **overrides)


def test_file_without_architecture_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", {"general.name": "x"}, [Tensor("a", (32,))])
    with pytest.raises(GgufError, match=r"general\.architecture"):
        model_profile(read_header(path))


def test_missing_file_type_is_drawn_from_the_tensors(tmp_path: Path) -> None:
    path = write_family("llama-1b", tmp_path)
    assert model_profile(read_header(path)).quantization == "Q4_K"


def test_file_type_names_the_quantization(tmp_path: Path) -> None:
    assert _profile(tmp_path, **{"general.file_type": 15}).quantization == "Q4_K_M"


def test_heads_per_block_are_kept(tmp_path: Path) -> None:
    overrides = {"llama.block_count": 3, "llama.attention.head_count_kv": [2, 0, 1]}
    profile = _profile(tmp_path, **overrides)
    assert profile.kv_heads == (2, 0, 1)
    assert profile.head_count_kv == 2


def test_gemma3_slides_in_five_of_six_blocks(tmp_path: Path) -> None:
    profile = model_profile(read_header(write_family("gemma3-4b", tmp_path)))
    assert profile.sliding_window == 1024
    assert [block for block in range(12) if block not in profile.sliding_blocks] == [5, 11]


def test_phi3_does_not_slide_in_this_engine(tmp_path: Path) -> None:
    profile = model_profile(read_header(write_family("phi3-mini", tmp_path)))
    assert profile.sliding_blocks == ()


def test_weights_are_the_sum_of_their_parts(tmp_path: Path) -> None:
    profile = model_profile(read_header(write_family("mixtral-8x7b", tmp_path)))
    assert profile.weights_bytes == (
        profile.input_bytes + sum(profile.block_bytes) + profile.output_bytes
    )
    assert profile.expert_count == 8
    assert profile.tied_output_bytes == 0


@pytest.mark.parametrize("name", ["llama-8b", "gemma3-4b", "qwen3-30b-a3b"])
def test_profile_survives_json(tmp_path: Path, name: str) -> None:
    profile = model_profile(read_header(write_family(name, tmp_path)))
    text = json.dumps(profile.to_json())
    assert "." not in text.replace(name, ""), "no floats: signed JSON forbids them"
    assert ModelProfile.from_json(json.loads(text)) == profile
    assert hash(ModelProfile.from_json(json.loads(text))) == hash(profile)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("block_count", "6"),
        ("block_count", True),
        ("block_count", -1),
        ("block_bytes", 7),
        ("block_bytes", [1, "2"]),
        ("causal", 1),
        ("architecture", None),
        ("pooling", 3),
    ],
)
def test_damaged_record_is_refused_by_field(name: str, value: object) -> None:
    record = model_profile(read_header(DEMO)).to_json()
    record[name] = value
    with pytest.raises(GgufError, match=name):
        ModelProfile.from_json(record)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("block_count", 0),
        ("block_count", 2**53 - 1),
        ("context_length", 0),
        ("context_length", 2**31),
        ("embedding_length", 0),
        ("sliding_window", 2**31),
        ("expert_count", 1025),
        ("expert_used_count", 1025),
        ("kv_heads", []),
        ("kv_heads", [1] * 500),
        ("block_bytes", []),
        ("sliding_blocks", [512]),
        ("sliding_blocks", [0, 0]),
    ],
)
def test_record_whose_sizes_contradict_each_other_is_refused(name: str, value: object) -> None:
    record = model_profile(read_header(DEMO)).to_json()
    with pytest.raises(GgufError, match=name):
        ModelProfile.from_json({**record, name: value})


def test_record_without_a_field_is_refused_and_without_template_accepted() -> None:
    record = model_profile(read_header(DEMO)).to_json()
    del record["chat_template"]
    assert ModelProfile.from_json(record).chat_template is None
    del record["embedding_length"]
    with pytest.raises(GgufError, match="embedding_length"):
        ModelProfile.from_json(record)


def test_record_of_a_later_release_is_read() -> None:
    """Bundles outlive releases: a field we do not know yet is no reason to refuse one."""
    profile = model_profile(read_header(DEMO))

    assert ModelProfile.from_json({**profile.to_json(), "surprise": 1}) == profile


def test_record_without_a_required_field_is_refused() -> None:
    record = model_profile(read_header(DEMO)).to_json()
    del record["block_count"]
    with pytest.raises(GgufError, match="block_count"):
        ModelProfile.from_json(record)
