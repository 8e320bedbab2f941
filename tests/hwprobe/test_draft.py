"""Draft models: which go with a model, and what they add."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hwprobe.draft import MOST_EXTRA_TOKENS, check_draft, drafted
from hwprobe.errors import DraftError, GgufError
from hwprobe.estimate import DRAFT, PROGRAM, draft_settings, estimate
from hwprobe.gguf import GgufHeader, ModelProfile, model_profile, read_header
from hwprobe.settings import EngineSettings
from tests.fakes.gguf_writer import write_tiny_llama
from tests.fakes.random_models import write_random

DEMO = Path(__file__).parents[1] / "demo-model" / "demo-f16.gguf"
TOKENS = [f"token {number}" for number in range(300)]


def header(path: Path, **changes: Any) -> GgufHeader:
    return read_header(write_tiny_llama(path, **{"tokenizer.ggml.tokens": TOKENS, **changes}))


def test_a_model_goes_with_itself() -> None:
    check_draft(read_header(DEMO), read_header(DEMO))


@pytest.mark.parametrize("extra", [0, 1, MOST_EXTRA_TOKENS])
def test_a_vocabulary_may_be_rounded_up(tmp_path: Path, extra: int) -> None:
    model = header(tmp_path / "m.gguf")
    more = [*TOKENS, *(f"<pad {number}>" for number in range(extra))]
    other = header(tmp_path / "d.gguf", **{"tokenizer.ggml.tokens": more})
    check_draft(other, model)
    check_draft(model, other)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"tokenizer.ggml.tokens": TOKENS[: -MOST_EXTRA_TOKENS - 1]},
         "draft: expected a vocabulary of 300 tokens, found 171"),
        ({"tokenizer.ggml.tokens": [*TOKENS[:7], "b", *TOKENS[8:]]},
         "draft: expected the model's vocabulary, found another: token 7 is 'b', not 'token 7'"),
        ({"tokenizer.ggml.model": "other"},
         "draft: expected a vocabulary of kind llama, found other"),
        ({"llama.pooling_type": 1}, "draft: the draft model generates no text"),
        ({"general.architecture": "gemma2", "gemma2.attention.sliding_window": 64,
          "gemma2.block_count": 1, "gemma2.embedding_length": 32, "gemma2.context_length": 64,
          "gemma2.attention.head_count": 2, "gemma2.feed_forward_length": 64},
         "draft: the draft model has a sliding window, and cannot take tokens back"),
    ],
)  # fmt: skip
def test_others_are_refused(tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    model = header(tmp_path / "m.gguf")
    other = header(tmp_path / "d.gguf", **changes)
    with pytest.raises(DraftError) as caught:
        check_draft(other, model)
    assert str(caught.value) == text


@pytest.mark.parametrize("kind", ["recurrent", "hybrid"])
def test_a_running_state_goes_neither_way(tmp_path: Path, kind: str) -> None:
    plain = header(tmp_path / "plain.gguf")
    other = read_header(write_random(kind, tmp_path / "other.gguf"))
    with pytest.raises(DraftError, match="draft: the draft model keeps a running state"):
        check_draft(other, plain)
    with pytest.raises(DraftError, match="draft: the model keeps a running state"):
        check_draft(plain, other)


def together() -> tuple[ModelProfile, ModelProfile]:
    small = read_header(DEMO)
    large = replace(model_profile(small), block_bytes=(1 << 30,) * 6)
    return large, drafted(large, small)


@pytest.mark.parametrize("settings", [
    EngineSettings(num_ctx=2048, slots=4),
    EngineSettings(num_ctx=512, kv_type="q8_0", spare_sequences=8),
    EngineSettings(num_ctx=2048, num_gpu=5),
    EngineSettings(num_ctx=2048, num_gpu=2, tensor_split=(1.0, 3.0)),
])  # fmt: skip
def test_it_takes_what_it_would_take_alone_but_for_the_program(settings: EngineSettings) -> None:
    plain, both = together()
    assert both.draft is not None
    alone = estimate(both.draft, draft_settings(settings, both.draft))
    need = estimate(both, settings)
    assert need.term_bytes(DRAFT) == alone.total_bytes() - alone.term_bytes(PROGRAM)
    assert need.total_bytes() == estimate(plain, settings).total_bytes() + need.term_bytes(DRAFT)
    on_gpus = alone.total_bytes() - alone.total_bytes("host")
    assert (on_gpus > 0) == (settings.num_gpu > 0)


def test_its_cache_has_a_type_its_heads_allow() -> None:
    _, both = together()
    assert both.draft is not None
    odd = replace(both.draft, key_length=20)
    settings = EngineSettings(num_ctx=512, kv_type="q8_0")
    assert draft_settings(settings, odd).kv_type == "f16"
    assert draft_settings(settings, both.draft).kv_type == "q8_0"


def test_a_profile_with_a_draft_survives_json() -> None:
    plain, both = together()
    assert "draft" not in plain.to_json()
    assert ModelProfile.from_json(both.to_json()) == both
    wrongs: tuple[Any, ...] = (3, [], {}, both.to_json())
    for wrong in wrongs:
        with pytest.raises(GgufError):
            ModelProfile.from_json({**plain.to_json(), "draft": wrong})
