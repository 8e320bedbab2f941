"""PEFT adapters become GGUF adapters that the engine adds as their definition says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bundler.cli import run
from bundler.convert.adapter import convert_adapter
from bundler.convert.directory import convert_directory
from bundler.errors import PackError
from bundler.progress import Silent
from bundler.signing import open_envelope
from hwprobe.gguf import read_header
from tests.fakes.checkpoints import forward, write_checkpoint, write_safetensors
from tests.fakes.engine_child import ask

TOKENS = [5, 17, 300, 42, 42, 7, 99]
RANK, ALPHA = 4, 12.0


def base(tmp_path: Path, family: str) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    config, weights = write_checkpoint(tmp_path / "tiny", family)
    convert_directory(tmp_path / "tiny", tmp_path / "tiny.gguf", Silent())
    return tmp_path / "tiny.gguf", config, weights


def write_adapter(
    folder: Path, weights: dict[str, Any], *, rows: int | None = None, **settings: Any
) -> dict[str, Any]:
    """An adapter for some matrices; returns what it adds to each, before scaling."""
    folder.mkdir()
    random = np.random.default_rng(1)
    tensors: dict[str, Any] = {}
    added: dict[str, Any] = {}
    for name, matrix in weights.items():
        if "layers." in name and name.endswith(
            ("q_proj.weight", "k_proj.weight", "up_proj.weight")
        ):
            a = random.standard_normal((RANK, matrix.shape[1])).astype(np.float32) / 8
            b = random.standard_normal((rows or matrix.shape[0], RANK)).astype(np.float32) / 8
            stem = "base_model.model." + name.removesuffix(".weight")
            tensors |= {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}
            added[name] = b @ a
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return added


@pytest.mark.parametrize(("family", "stable"), [("llama", False), ("qwen2", True)])
def test_the_engine_adds_the_adapter_as_its_definition_says(
    tmp_path: Path, family: str, *, stable: bool
) -> None:
    model, config, weights = base(tmp_path, family)
    added = write_adapter(tmp_path / "lora", weights, use_rslora=stable)
    convert_adapter(tmp_path / "lora", read_header(model), tmp_path / "lora.gguf", Silent())
    (found,) = ask(model, [{"logits": TOKENS}], adapter=tmp_path / "lora.gguf")
    scale = ALPHA / (RANK**0.5 if stable else RANK)
    merged = {name: data + scale * added.get(name, 0) for name, data in weights.items()}
    expected = forward(config, merged, TOKENS)
    assert np.abs(np.array(found) - expected).max() < 1e-4
    assert np.abs(expected - forward(config, weights, TOKENS)).max() > 0.1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"peft_type": "IA3"}, "peft_type: expected LORA"),
        ({"use_dora": True}, "use_dora: expected none"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save: expected none"),
        ({"bias": "all"}, "bias: expected none"),
        ({"lora_alpha": "x"}, "lora_alpha: expected a number"),
        ({"rows": 7}, "expected weights for a matrix of"),
    ],
)
def test_what_is_not_understood_is_refused(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    model, _, weights = base(tmp_path, "llama")
    write_adapter(tmp_path / "lora", weights, **settings)
    with pytest.raises(PackError, match=said):
        convert_adapter(tmp_path / "lora", read_header(model), tmp_path / "x.gguf", Silent())
    assert not (tmp_path / "x.gguf").exists()


def test_half_a_pair_and_foreign_tensors_are_refused(tmp_path: Path) -> None:
    model, _, weights = base(tmp_path, "llama")
    write_adapter(tmp_path / "lora", weights)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    for tensors, said in (
        ({name: np.zeros((4, 64), np.float32)}, "expected pairs"),
        ({"lm_head.weight": np.zeros((4, 64), np.float32)}, "expected LoRA weights"),
    ):
        write_safetensors(tmp_path / "lora" / "adapter_model.safetensors", tensors)
        with pytest.raises(PackError, match=said):
            convert_adapter(tmp_path / "lora", read_header(model), tmp_path / "x.gguf", Silent())


def test_an_adapter_s_directory_is_packed_with_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _, _, weights = base(tmp_path, "llama")
    write_adapter(tmp_path / "lora", weights)
    (tmp_path / "stick").mkdir()
    assert run(["keygen", "release", "--no-passphrase"]) == 0
    pack = ["pack", "tiny.gguf", "--name", "demo", "--key", "release.key", "--out", "stick"]
    assert run([*pack, "--adapter", "stick"]) == 1
    assert "found neither" in capsys.readouterr().err
    assert run([*pack, "--adapter", "lora"]) == 0
    (variant,) = open_envelope(tmp_path / "stick").manifest.models[0].variants
    assert len(variant.adapters) == 1
    again = ["pack", "../tiny.gguf", "--name", "demo", "--key", "../release.key", "--out", "out"]
    assert [str(one) for one in adapters_by_modelfile(tmp_path, monkeypatch, again)] == [
        str(one) for one in variant.adapters
    ]
    assert run([*again, "--modelfile", "Missing"]) == 1
    assert "nowhere" in capsys.readouterr().err


def adapters_by_modelfile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: list[str]
) -> tuple[Any, ...]:
    """The same adapter, named in a Modelfile: its path begins where that lies."""
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "out").mkdir(parents=True)
    monkeypatch.chdir(elsewhere)
    (tmp_path / "Modelfile").write_text("FROM tiny.gguf\nADAPTER gone\nADAPTER ./lora\n")
    (elsewhere / "Missing").write_text("FROM tiny.gguf\nADAPTER ./nowhere\n")
    assert run([*pack, "--modelfile", "../Modelfile"]) == 0
    (variant,) = open_envelope(elsewhere / "out").manifest.models[0].variants
    return variant.adapters
