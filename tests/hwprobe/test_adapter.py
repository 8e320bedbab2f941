"""Adapters that do not go with a model, and the memory of those that do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hwprobe.adapter import adapted, check_adapter
from hwprobe.errors import AdapterError
from hwprobe.estimate import WEIGHTS, estimate
from hwprobe.gguf import model_profile, read_header
from hwprobe.settings import EngineSettings
from tests.fakes.adapters import write_adapter
from tests.fakes.gguf_writer import Tensor

DEMO = Path(__file__).parents[1] / "demo-model" / "demo-f16.gguf"


def thin(name: str, down: tuple[int, ...], up: tuple[int, ...]) -> list[Tensor]:
    return [Tensor(f"{name}.lora_a", down), Tensor(f"{name}.lora_b", up)]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"metadata": {"general.type": "model"}}, "expected a LoRA adapter, found model/lora"),
        ({"metadata": {"adapter.type": "x"}}, "expected a LoRA adapter, found adapter/x"),
        ({"metadata": {"general.architecture": "gemma3"}}, "expected one for llama, found one for"),
        ({"tensors": []}, "expected pairs of matrices, found none"),
        ({"tensors": [Tensor("blk.0.attn_q.weight", (4, 4))]}, "found blk.0.attn_q.weight"),
        ({"tensors": thin("blk.99.attn_q.weight", (4, 4), (4, 4))}, "which the model has not"),
        ({"tensors": thin("blk.0.attn_q.weight", (5, 4), (4, 5))}, "which do not go with"),
        ({"tensors": thin("blk.0.attn_q.weight", (5,), (4,))}, "which do not go with"),
        (
            {"tensors": thin("blk.0.attn_q.weight", (4, 4), (4, 4))[:1]},
            "expected two matrices for blk.0.attn_q.weight, found one",
        ),
    ],
)
def test_adapter_that_does_not_fit_is_refused(
    changes: dict[str, Any], text: str, tmp_path: Path
) -> None:
    path = write_adapter(tmp_path / "a.gguf", DEMO, **changes)
    with pytest.raises(AdapterError, match=text):
        check_adapter(read_header(path), read_header(DEMO))


def test_adapter_counts_with_the_blocks_it_belongs_to(tmp_path: Path) -> None:
    adapter = read_header(write_adapter(tmp_path / "a.gguf", DEMO))
    model = read_header(DEMO)
    check_adapter(adapter, model)
    plain = model_profile(model)
    profile = adapted(plain, [adapter, adapter])
    size = sum(-(-tensor.size_bytes // 32) * 32 for tensor in adapter.tensors)
    assert profile.weights_bytes - plain.weights_bytes == 2 * size
    assert sum(profile.block_bytes) - sum(plain.block_bytes) == 2 * size
    one = EngineSettings(num_ctx=256)
    grown = estimate(profile, one).term_bytes(WEIGHTS) - estimate(plain, one).term_bytes(WEIGHTS)
    assert grown == 2 * size
