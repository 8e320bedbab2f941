from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import architectures, memory
from hwprobe.engine import dry_runs
from hwprobe.estimate import (
    CHECKED_ARCHITECTURES,
    ENGINE_TERMS,
    HOST,
    KV_CACHE,
    OUTPUT,
    TIED_COPY,
    UNCHECKED,
    UNFUSED_ARCHITECTURES,
    WEIGHTS,
    MemoryEstimate,
    cache_cells,
    compute_bytes,
    estimate,
    layer_pools,
    repacked_types,
    with_measured,
)
from hwprobe.gguf import ModelProfile, model_profile, read_header
from hwprobe.inventory import take_inventory
from hwprobe.machine import Cpu
from hwprobe.settings import EngineSettings, KvType
from tests.fakes.embedding_models import SHAPES, write_shape
from tests.fakes.synthetic_models import FAMILIES, write_family

DEMO = Path(__file__).parents[1] / "demo-model" / "demo-f16.gguf"
MIB = 1 << 20


@pytest.fixture(scope="module")
def profiles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, ModelProfile]]:
    directory = tmp_path_factory.mktemp("families")
    files = {"demo": DEMO, **{name: write_family(name, directory) for name in FAMILIES}}
    return {name: (file, model_profile(read_header(file))) for name, file in files.items()}


def _engine_bytes(memory: MemoryEstimate) -> int:
    return sum(memory.term_bytes(name) for name in ENGINE_TERMS)


def _configurations() -> list[EngineSettings]:
    kinds: tuple[KvType, ...] = ("f16", "q8_0", "q4_0")
    grid = [
        EngineSettings(
            num_ctx=ctx,
            slots=slots,
            kv_type=kv_type,
            num_batch=512,
            num_ubatch=ubatch,
            flash_attention=fused or kv_type != "f16",
            repack=repack,
        )
        for ctx, slots in ((256, 1), (2048, 1), (4096, 4), (512, 16), (32768, 2))
        for ubatch in (64, 512)
        for kv_type in kinds
        for fused in (True, False)
        for repack in (True, False)
    ]
    return list(dict.fromkeys(grid))


@pytest.mark.engine
@pytest.mark.parametrize("name", ["demo", *FAMILIES])
def test_estimate_is_within_2_percent_or_8_mib_of_the_engine(
    name: str, profiles: dict[str, tuple[Path, ModelProfile]]
) -> None:
    path, profile = profiles[name]
    repacked = repacked_types(take_inventory().cpu)
    configurations = _configurations()
    for one, measured in zip(configurations, dry_runs(path, profile, configurations), strict=True):
        predicted = estimate(profile, one, repacked=repacked)
        truth = _engine_bytes(measured)
        error = _engine_bytes(predicted) - truth
        assert abs(error) <= max(8 * MIB, 0.02 * truth), (one, error, truth)
        copies = predicted.term_bytes(WEIGHTS) + predicted.term_bytes(TIED_COPY)
        assert copies == measured.term_bytes(WEIGHTS), one
        assert predicted.term_bytes(KV_CACHE) == measured.term_bytes(KV_CACHE), one


_KINDS = (
    *(
        "command-r-35b",
        "cohere2-7b",
        "deepseek2-lite",
        "exaone4-32b",
        "falcon-h1-7b",
        "gemma3n-e4b",
    ),
    *("gemma4-31b", "gpt-oss-20b", "granitehybrid-7b", "jamba-small", "lfm2-1.2b", "llama4-scout"),
    *("mamba2-2.7b", "nemotron-4b", "phi2", "qwen3next-80b", "rwkv7-1.5b", "smallthinker-21b"),
)
"""One of each kind of cache, state, window, gate and expert; bench.memory has them all."""


@pytest.mark.engine
@pytest.mark.parametrize("name", _KINDS)
def test_estimate_holds_for_every_kind_of_memory(name: str, tmp_path: Path) -> None:
    """Latent attention, shared caches, windows of every pattern, states, experts, no gate."""
    rows = list(memory.simulated(name, tmp_path))
    assert len(rows) == len(memory.CONFIGURATIONS)
    for row in rows:
        assert row.good, str(row)
    assert rows[0].architecture in CHECKED_ARCHITECTURES


def test_every_checked_architecture_is_compared() -> None:
    compared = {architecture for architecture, _ in architectures.SHAPES.values()}
    assert compared | UNFUSED_ARCHITECTURES == CHECKED_ARCHITECTURES


@pytest.mark.engine
@pytest.mark.parametrize("name", SHAPES)
def test_estimate_of_encoders_is_within_2_percent_or_1_mib_of_the_engine(
    name: str, tmp_path: Path
) -> None:
    path = write_shape(name, tmp_path)
    profile = model_profile(read_header(path))
    configurations = [
        EngineSettings(
            num_ctx=ctx,
            num_batch=ctx,
            num_ubatch=ctx,
            spare_sequences=spare,
            flash_attention=fused,
            pooled=True,
        )
        for ctx in (256, 512, 2048, 8192)
        for spare in (0, 63)
        for fused in (True, False)
    ]
    assert profile.pools
    for one, measured in zip(configurations, dry_runs(path, profile, configurations), strict=True):
        predicted = estimate(profile, one)
        truth = _engine_bytes(measured)
        error = _engine_bytes(predicted) - truth
        assert 0 <= error <= max(MIB, 0.02 * truth), (one, error, truth)
        assert predicted.term_bytes(WEIGHTS) == measured.term_bytes(WEIGHTS)
        assert predicted.term_bytes(KV_CACHE) == measured.term_bytes(KV_CACHE) == 0
        assert predicted.term_bytes(UNCHECKED) == 0


@pytest.mark.engine
def test_estimate_of_a_pooling_decoder_counts_logits_of_every_token(tmp_path: Path) -> None:
    """A causal model that pools computes logits nobody reads."""
    path = write_family("qwen3-0.6b", tmp_path, {"qwen3.pooling_type": 1})
    profile = model_profile(read_header(path))
    one = EngineSettings(num_ctx=512, num_batch=512, num_ubatch=512, pooled=True)
    (measured,) = dry_runs(path, profile, [one])
    assert profile.pools
    truth = _engine_bytes(measured)
    predicted = estimate(profile, one, repacked=repacked_types(take_inventory().cpu))
    assert abs(_engine_bytes(predicted) - truth) <= max(8 * MIB, 0.02 * truth)
    rows = 512 * (profile.vocabulary_size + profile.embedding_length)
    assert predicted.term_bytes(OUTPUT) == 4 * rows


@pytest.mark.engine
@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K", "Q6_K", "Q8_0", "F16"])
def test_second_copy_of_a_tied_embedding_is_predicted(kind: str, tmp_path: Path) -> None:
    path = write_family("llama-1b", tmp_path, ggml_type=kind, output_type=kind)
    profile = model_profile(read_header(path))
    repacked = repacked_types(take_inventory().cpu)
    both = [EngineSettings(num_ctx=256, repack=repack) for repack in (True, False)]
    for one, measured in zip(both, dry_runs(path, profile, both), strict=True):
        predicted = estimate(profile, one, repacked=repacked)
        copies = predicted.term_bytes(WEIGHTS) + predicted.term_bytes(TIED_COPY)
        assert copies == measured.term_bytes(WEIGHTS)


def test_estimate_without_a_processor_holds_for_all_of_them(
    profiles: dict[str, tuple[Path, ModelProfile]],
) -> None:
    chips = (Cpu(features=("asimddp",)), Cpu(features=("avx2",)), Cpu(features=("avx512f",)))
    for _, profile in profiles.values():
        one = EngineSettings(num_ctx=2048)
        most = estimate(profile, one).total_bytes()
        for chip in chips:
            assert estimate(profile, one, repacked=repacked_types(chip)).total_bytes() <= most


def test_terms_add_up_to_the_total(profiles: dict[str, tuple[Path, ModelProfile]]) -> None:
    _, profile = profiles["qwen3-0.6b"]
    memory = estimate(profile, EngineSettings(num_ctx=8192, slots=2, num_gpu=10))
    assert memory.pools == (HOST, "gpu0")
    assert memory.total_bytes() == sum(memory.total_bytes(pool) for pool in memory.pools)
    record = memory.to_json()["pools"]
    for pool in memory.pools:
        terms = {name: size for name, size in record[pool].items() if name != "total"}
        assert sum(terms.values()) == record[pool]["total"] == memory.total_bytes(pool)


def test_cache_of_a_sliding_block_is_a_window_and_a_batch(
    profiles: dict[str, tuple[Path, ModelProfile]],
) -> None:
    _, profile = profiles["gemma3-4b"]
    one = EngineSettings(num_ctx=32768, num_ubatch=512)
    assert cache_cells(profile, one, 0) == 1536
    assert cache_cells(profile, one, 5) == 32768
    assert cache_cells(profile, replace(one, slots=4), 0) == 4608


def test_output_layer_leaves_the_host_first_and_blocks_follow_from_the_end(
    profiles: dict[str, tuple[Path, ModelProfile]],
) -> None:
    _, profile = profiles["demo"]
    pools = layer_pools(profile, EngineSettings(num_ctx=256, num_gpu=3))
    assert pools == (HOST,) * 4 + ("gpu0",) * 3
    assert layer_pools(profile, EngineSettings(num_ctx=256, num_gpu=99)) == ("gpu0",) * 7


def test_tied_embedding_is_copied_to_the_gpu(
    profiles: dict[str, tuple[Path, ModelProfile]],
) -> None:
    _, profile = profiles["gemma2-2b"]
    memory = estimate(profile, EngineSettings(num_ctx=256, num_gpu=1))
    assert memory.term_bytes(TIED_COPY, "gpu0") == profile.tied_output_bytes
    assert memory.term_bytes(WEIGHTS, HOST) >= profile.input_bytes


def test_layers_are_dealt_out_by_the_split(
    profiles: dict[str, tuple[Path, ModelProfile]],
) -> None:
    _, profile = profiles["llama-8b"]
    split = (21.5, 0.0, 11.5)
    pools = layer_pools(profile, EngineSettings(num_ctx=256, num_gpu=33, tensor_split=split))
    assert pools == ("gpu0",) * 22 + ("gpu2",) * 11


def test_unchecked_architecture_gets_an_allowance(
    profiles: dict[str, tuple[Path, ModelProfile]],
) -> None:
    _, profile = profiles["llama-8b"]
    one = EngineSettings(num_ctx=8192)
    known = estimate(profile, one)
    unknown = estimate(replace(profile, architecture="novel"), one)
    assert known.term_bytes(UNCHECKED) == 0
    assert unknown.term_bytes(UNCHECKED) > 0.2 * known.term_bytes(KV_CACHE)


def test_measured_figures_replace_the_formulas_and_keep_the_rest(
    profiles: dict[str, tuple[Path, ModelProfile]],
) -> None:
    _, profile = profiles["llama-8b"]
    predicted = estimate(profile, EngineSettings(num_ctx=256, num_gpu=33))
    figures = {"weights": 10, "context": 20, "compute": 30}
    buffers = {
        "CPU": {"host": True, "device": "", **figures},
        "CUDA_Host": {"host": True, "device": "CUDA0", **figures},
        "CUDA1": {"host": False, "device": "CUDA1", **figures},
    }
    memory = with_measured(predicted, buffers)
    assert memory.measured
    assert memory.total_bytes("gpu1") == 60
    assert memory.term_bytes(WEIGHTS, HOST) == 20
    assert memory.total_bytes("gpu0") == 0
    assert memory.term_bytes("tokenizer") == predicted.term_bytes("tokenizer")


@settings(deadline=None, max_examples=200)
@given(
    name=st.sampled_from(["demo", *FAMILIES]),
    asked=st.builds(
        EngineSettings,
        num_ctx=st.integers(1, 65536),
        slots=st.integers(1, 16),
        num_batch=st.just(1024),
        num_ubatch=st.sampled_from([16, 64, 512]),
        num_gpu=st.integers(0, 60),
    ),
    more=st.sampled_from(["num_ctx", "slots", "num_ubatch"]),
)
def test_need_never_shrinks_when_more_is_asked(
    name: str,
    asked: EngineSettings,
    more: str,
    profiles: dict[str, tuple[Path, ModelProfile]],
) -> None:
    """The need grows with context, slots and batch; placement's binary search relies on it."""
    _, profile = profiles[name]
    larger = replace(asked, **{more: getattr(asked, more) * 2})
    for pool in (HOST, "gpu0"):
        need = estimate(profile, asked).total_bytes(pool)
        assert need <= estimate(profile, larger).total_bytes(pool)
    assert 0 < compute_bytes(profile, asked) <= compute_bytes(profile, larger)


def test_build_of_the_backend_decides_what_is_repacked_not_the_processor() -> None:
    chip = Cpu(features=("avx2", "avx512f"))
    assert repacked_types(chip, "baseline") == frozenset()
    assert "Q2_K" not in repacked_types(chip, "avx2")
    assert "Q2_K" in repacked_types(chip, "avx512")
    assert repacked_types(chip) == repacked_types(chip, "avx512"), "unknown: all it could"
    assert repacked_types(Cpu(features=("asimddp",)), "own") == repacked_types(
        Cpu(features=("asimddp",))
    )
