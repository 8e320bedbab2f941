from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprobe.budgets import (
    gpu_reserve_bytes,
    host_reserve_bytes,
    host_reserve_terms,
    pool_budgets,
)
from hwprobe.decision import Question, record_of, replayed
from hwprobe.errors import DoesNotFitError
from hwprobe.estimate import HOST, KV_CACHE, WEIGHTS, estimate, layer_pools, repacked_types
from hwprobe.gguf import ModelProfile, model_profile, read_header
from hwprobe.machine import Board, Cpu, Gpu, Machine, Memory, Numa, NumaNode, Nvidia
from hwprobe.margins import Margin, margin_bytes
from hwprobe.placement import Candidate, Placement, Wish, place
from hwprobe.settings import EngineSettings
from tests.fakes.embedding_models import write_shape
from tests.fakes.synthetic_models import FAMILIES, write_family

DEMO = Path(__file__).parents[1] / "demo-model" / "demo-f16.gguf"
GIB = 1 << 30
MIB = 1 << 20


@pytest.fixture(scope="module")
def profiles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelProfile]:
    directory = tmp_path_factory.mktemp("families")
    files = {"demo": DEMO, **{name: write_family(name, directory) for name in FAMILIES}}
    for kind in ("Q8_0", "Q6_K", "Q4_K", "Q2_K"):
        (directory / kind).mkdir()
        files[kind] = write_family("llama-8b", directory / kind, ggml_type=kind, output_type=kind)
    return {name: model_profile(read_header(file)) for name, file in files.items()}


def _host(size_bytes: int, *, board: Board | None = None, gpus: tuple[Gpu, ...] = ()) -> Machine:
    return Machine(
        cpu=Cpu(online=8, allowed=8, allowed_cores=8, big_cores=8, features=("avx2",)),
        memory=Memory(total_bytes=size_bytes, available_bytes=size_bytes),
        board=board or Board(),
        gpus=gpus,
        engine_offload=bool(gpus),
    )


def _gpu(index: int, size_bytes: int, **facts: object) -> Gpu:
    gpu = Gpu(index=index, total_bytes=size_bytes, free_bytes=size_bytes, compute_capability=(8, 9))
    return replace(gpu, **facts)  # type: ignore[arg-type]


def _variants(profiles: dict[str, ModelProfile]) -> list[Candidate]:
    return [
        Candidate(variant=name, profile=profiles[name]) for name in ("Q2_K", "Q8_0", "Q4_K", "Q6_K")
    ]


def _one(profiles: dict[str, ModelProfile], name: str) -> list[Candidate]:
    return [Candidate(variant=name, profile=profiles[name])]


def test_no_candidate_is_a_refusal() -> None:
    with pytest.raises(DoesNotFitError, match="no variant to choose from"):
        place(_host(GIB), [], Wish())


def test_model_larger_than_memory_is_refused_with_need_budget_and_shortfall(
    profiles: dict[str, ModelProfile],
) -> None:
    with pytest.raises(DoesNotFitError, match="Q2_K") as caught:
        place(_host(2 * GIB), _variants(profiles), Wish())
    rejected = {one.variant: one for one in caught.value.rejected}
    assert set(rejected) == {"Q2_K", "Q4_K", "Q6_K", "Q8_0"}
    for one in rejected.values():
        assert one.pool == HOST
        assert one.need_bytes - one.budget_bytes == one.shortfall_bytes > 0
    assert rejected["Q2_K"].shortfall_bytes < rejected["Q8_0"].shortfall_bytes
    assert "smaller variant" in caught.value.hint


def test_wished_context_that_does_not_fit_is_refused_with_the_largest_that_does(
    profiles: dict[str, ModelProfile],
) -> None:
    machine = _host(8 * GIB)
    with pytest.raises(DoesNotFitError, match="131072 tokens") as caught:
        place(machine, _one(profiles, "llama-8b"), Wish(num_ctx=131072))
    words = caught.value.hint.split()
    assert words[:3] == ["a", "context", "of"]
    fitting = place(machine, _one(profiles, "llama-8b"), Wish(num_ctx=int(words[3])))
    assert fitting.settings.num_ctx == int(words[3])
    with pytest.raises(DoesNotFitError):
        place(machine, _one(profiles, "llama-8b"), Wish(num_ctx=int(words[3]) + 256))


def test_wished_cache_type_the_engine_refuses_is_refused_first(
    profiles: dict[str, ModelProfile],
) -> None:
    odd = replace(profiles["demo"], key_length=80, value_length=80)
    with pytest.raises(DoesNotFitError, match="whole blocks of 32"):
        place(_host(GIB), [Candidate(variant="odd", profile=odd)], Wish(kv_type="q8_0"))


@pytest.mark.parametrize("slots", [0, -1, 257])
def test_impossible_number_of_slots_is_refused(
    profiles: dict[str, ModelProfile], slots: int
) -> None:
    with pytest.raises(DoesNotFitError, match="slots: expected 1 to 256"):
        place(_host(GIB), _one(profiles, "demo"), Wish(slots=slots))


def test_empty_wish_gets_8192_tokens_and_four_slots(profiles: dict[str, ModelProfile]) -> None:
    settings = place(_host(64 * GIB), _one(profiles, "llama-8b"), Wish()).settings
    assert (settings.num_ctx, settings.slots, settings.kv_type) == (8192, 4, "f16")
    assert settings.num_ubatch == 512
    assert settings.repack
    assert settings.use_mmap
    assert settings.num_gpu == 0
    assert settings.threads == 7


def test_context_never_exceeds_the_trained_one(profiles: dict[str, ModelProfile]) -> None:
    placement = place(_host(8 * GIB), _one(profiles, "demo"), Wish(num_ctx=16384))
    assert placement.settings.num_ctx == 2048
    assert "context cut from 16384 to the trained 2048 tokens" in placement.reasons


@pytest.mark.parametrize(
    ("shape", "wished", "context"),
    [
        ("minilm-l6", None, 512),
        ("minilm-l6", 8192, 512),
        ("bge-m3", None, 2048),
        ("bge-m3", 4096, 4096),
        ("nomic-embed", 1000, 1024),
    ],
)
def test_batch_of_an_encoder_holds_its_longest_text(
    shape: str, wished: int | None, context: int, tmp_path: Path
) -> None:
    profile = model_profile(read_header(write_shape(shape, tmp_path)))
    wish = Wish(num_ctx=wished, slots=4, num_batch=64)
    found = place(_host(64 * GIB), [Candidate(variant="F16", profile=profile)], wish).settings
    assert found.pooled
    assert found.num_ctx == found.num_batch == found.num_ubatch == context
    assert found.slots == 1
    assert found.sequences == 64


def test_context_of_an_encoder_shrinks_to_what_its_vocabulary_leaves(tmp_path: Path) -> None:
    """Every token of a batch takes a row of the vocabulary, a megabyte for bge-m3."""
    profile = model_profile(read_header(write_shape("bge-m3", tmp_path)))
    candidates = [Candidate(variant="F16", profile=profile)]
    found = place(_host(3 * GIB), candidates, Wish()).settings
    assert 256 <= found.num_ctx < 2048
    with pytest.raises(DoesNotFitError) as refused:
        place(_host(3 * GIB), candidates, Wish(num_ctx=8192))
    assert "tokens fits" in refused.value.hint


def test_wishes_are_met_to_the_letter(profiles: dict[str, ModelProfile]) -> None:
    wish = Wish(
        num_ctx=1000, slots=3, kv_type="q4_0", threads=5, num_batch=100, use_mmap=False, num_gpu=7
    )
    settings = place(_host(64 * GIB), _one(profiles, "llama-8b"), wish).settings
    assert settings.num_ctx == 1024, "rounded up as the engine does"
    assert (settings.slots, settings.kv_type, settings.threads) == (3, "q4_0", 5)
    assert (settings.num_batch, settings.num_ubatch, settings.use_mmap) == (100, 100, False)
    assert settings.num_gpu == 0, "there is no GPU"


@pytest.mark.parametrize(
    ("gib", "variant"), [(64, "Q8_0"), (10, "Q8_0"), (8.5, "Q6_K"), (6.7, "Q4_K"), (4.7, "Q2_K")]
)
def test_best_variant_that_fits_is_chosen(
    profiles: dict[str, ModelProfile], gib: float, variant: str
) -> None:
    placement = place(_host(int(gib * GIB)), _variants(profiles), Wish())
    assert placement.variant == variant
    better = [one.variant for one in placement.rejected]
    assert better == ["Q8_0", "Q6_K", "Q4_K", "Q2_K"][: len(better)]
    assert variant not in better


def test_choice_of_a_variant_is_explained(profiles: dict[str, ModelProfile]) -> None:
    first = place(_host(64 * GIB), _variants(profiles), Wish()).reasons[0]
    third = place(_host(8 * GIB), _variants(profiles), Wish()).reasons[0]
    alone = place(_host(64 * GIB), _one(profiles, "Q4_K"), Wish()).reasons[0]

    assert first == "Q8_0: the best quality, before Q6_K, Q4_K, Q2_K"
    assert third == "Q6_K: the best quality that fits, before Q4_K, Q2_K"
    assert "quality" not in alone


def test_preferred_candidate_comes_before_more_bits(profiles: dict[str, ModelProfile]) -> None:
    candidates = [
        *_variants(profiles),
        Candidate(variant="tuned", profile=profiles["Q4_K"], prefer=1),
    ]
    assert place(_host(64 * GIB), candidates, Wish()).variant == "tuned"


def test_quantized_cache_is_taken_before_a_worse_variant(
    profiles: dict[str, ModelProfile],
) -> None:
    sizes = (GIB * step / 10 for step in range(40, 120))
    placements = [
        place(_host(int(size)), _variants(profiles), Wish()) for size in sizes if size > 4.4 * GIB
    ]
    kinds = {(one.variant, one.settings.kv_type) for one in placements}
    assert ("Q8_0", "q8_0") in kinds
    assert ("Q8_0", "f16") in kinds
    for placement in placements:
        if placement.settings.kv_type == "q8_0":
            assert any("f16 does not fit" in reason for reason in placement.reasons)


def test_context_shrinks_below_the_floor_only_when_nothing_else_fits(
    profiles: dict[str, ModelProfile],
) -> None:
    placement = place(_host(int(5.4 * GIB)), _one(profiles, "llama-8b"), Wish())
    assert 256 <= placement.settings.num_ctx < 8192
    assert any("below the floor for chats" in reason for reason in placement.reasons)


def test_small_boards_accept_half_the_floor_and_keep_less_free(
    profiles: dict[str, ModelProfile],
) -> None:
    size = int(5.4 * GIB)
    board = _host(size, board=Board(single_board=True))
    assert host_reserve_bytes(board) < host_reserve_bytes(_host(size))
    placement = place(board, _one(profiles, "llama-8b"), Wish())
    assert placement.settings.num_ctx >= 4096


def test_reserved_memory_is_not_planned_with(profiles: dict[str, ModelProfile]) -> None:
    machine = _host(16 * GIB)
    free = place(machine, _variants(profiles), Wish())
    tight = place(machine, _variants(profiles), Wish(), reserved_bytes={HOST: 8 * GIB})
    assert free.variant == "Q8_0"
    assert tight.variant != "Q8_0"
    assert tight.budgets[HOST] == free.budgets[HOST] - 8 * GIB
    with pytest.raises(DoesNotFitError):
        place(machine, _variants(profiles), Wish(), reserved_bytes={HOST: 100 * GIB})


def test_gpus_are_not_planned_with_when_the_engine_cannot_use_them(
    profiles: dict[str, ModelProfile],
) -> None:
    machine = replace(
        _host(64 * GIB, gpus=(_gpu(0, 24 * GIB),)),
        engine_offload=False,
        nvidia=Nvidia(state="usable"),
    )
    placement = place(machine, _one(profiles, "llama-8b"), Wish())
    assert placement.settings.num_gpu == 0
    assert any("built without GPU support" in reason for reason in placement.reasons)


def test_whole_model_goes_to_one_gpu_when_it_fits(profiles: dict[str, ModelProfile]) -> None:
    machine = _host(64 * GIB, gpus=(_gpu(0, 12 * GIB), _gpu(1, 24 * GIB)))
    placement = place(machine, _one(profiles, "llama-8b"), Wish())
    assert placement.settings.num_gpu == 33
    assert placement.settings.tensor_split == (0.0, 33.0), "the roomiest GPU alone"
    assert "all 33 layers on GPU" in placement.reasons


def test_model_too_large_for_one_gpu_is_split_over_two(profiles: dict[str, ModelProfile]) -> None:
    machine = _host(64 * GIB, gpus=(_gpu(0, 24 * GIB), _gpu(1, 12 * GIB)))
    placement = place(machine, _one(profiles, "mixtral-8x7b"), Wish())
    assert placement.settings.num_gpu == 33
    pools = layer_pools(profiles["mixtral-8x7b"], placement.settings)
    assert 0 < pools.count("gpu1") < pools.count("gpu0")


def test_smaller_variant_whole_on_the_gpu_beats_a_larger_one_spilling_over(
    profiles: dict[str, ModelProfile],
) -> None:
    machine = _host(64 * GIB, gpus=(_gpu(0, 8 * GIB),))
    placement = place(machine, _variants(profiles), Wish())
    assert placement.settings.num_gpu == 33
    assert placement.variant == "Q6_K", "Q8_0 would leave layers on the host"


def test_layers_that_do_not_fit_the_gpu_stay_on_the_host(
    profiles: dict[str, ModelProfile],
) -> None:
    machine = _host(64 * GIB, gpus=(_gpu(0, 5 * GIB),))
    placement = place(machine, _one(profiles, "qwen3-8b"), Wish())
    assert 0 < placement.settings.num_gpu < 37
    assert any("stay in host memory" in reason for reason in placement.reasons)


def test_experts_leave_the_gpu_before_layers_do(profiles: dict[str, ModelProfile]) -> None:
    profile = profiles["mixtral-8x7b"]
    kept = []
    for gib in (28, 16, 8, 3, 2):
        machine = _host(64 * GIB, gpus=(_gpu(0, gib * GIB),))
        placement = place(machine, _one(profiles, "mixtral-8x7b"), Wish())
        kept.append((placement.settings.num_gpu, placement.settings.cpu_experts))
        expected = sum(profile.expert_bytes[: placement.settings.cpu_experts])
        apart = placement.estimate.term_bytes(WEIGHTS, HOST) - profile.input_bytes
        assert apart >= expected
        if placement.settings.num_gpu == 33:
            assert apart == expected
    assert kept[0] == (33, 0)
    assert kept[1][0] == kept[2][0] == 33
    assert 0 < kept[1][1] < kept[2][1] <= 32
    assert kept[-1][0] < 33
    assert not place(_host(64 * GIB), _one(profiles, "mixtral-8x7b"), Wish()).settings.cpu_experts


def test_mapped_experts_are_slow_so_the_file_is_read(profiles: dict[str, ModelProfile]) -> None:
    machine = _host(64 * GIB, gpus=(_gpu(0, 8 * GIB),))
    candidates = _one(profiles, "mixtral-8x7b")
    assert not place(machine, candidates, Wish()).settings.use_mmap
    assert place(machine, candidates, Wish(use_mmap=True)).settings.use_mmap


@pytest.mark.parametrize("name", ["mixtral-8x7b", "qwen3-8b"])
def test_growing_never_pushes_weights_off_a_gpu(
    name: str, profiles: dict[str, ModelProfile]
) -> None:
    """Slots and micro-batches are spent from what is left, not from what the model needs."""
    for gib in range(2, 16):
        machine = _host(64 * GIB, gpus=(_gpu(0, gib * GIB),))
        full = place(machine, _one(profiles, name), Wish()).settings
        least = place(machine, _one(profiles, name), Wish(slots=1, num_batch=64)).settings
        assert (full.num_gpu, -full.cpu_experts) >= (least.num_gpu - 1, -least.cpu_experts - 1)


def test_large_micro_batches_are_for_gpus(profiles: dict[str, ModelProfile]) -> None:
    candidates = _one(profiles, "llama-8b")
    assert place(_host(64 * GIB), candidates, Wish()).settings.num_ubatch == 512
    with_gpu = _host(64 * GIB, gpus=(_gpu(0, 24 * GIB),))
    settings = place(with_gpu, candidates, Wish()).settings
    assert (settings.num_ubatch, settings.num_batch) == (2048, 2048)
    wished = place(with_gpu, candidates, Wish(num_batch=100)).settings
    assert (wished.num_ubatch, wished.num_batch) == (100, 100)


def _unified(size: int, **changes: Any) -> Machine:
    gpu = Gpu(index=0, name="GB10", unified=True, compute_capability=(12, 1))
    return replace(
        _host(size), gpus=(gpu,), engine_offload=True, nvidia=Nvidia(state="usable"), **changes
    )


def test_memory_that_is_shared_with_a_gpu_is_counted_once(
    profiles: dict[str, ModelProfile],
) -> None:
    shared, alone = (
        place(machine, _one(profiles, "llama-8b"), Wish())
        for machine in (_unified(64 * GIB), _host(64 * GIB))
    )
    assert (shared.settings.num_gpu, shared.settings.unified) == (33, True)
    assert not shared.settings.use_mmap, "the file would be in memory beside its copy"
    assert shared.estimate.pools == (HOST,)
    assert set(shared.budgets) == {HOST}
    assert shared.budgets[HOST] == alone.budgets[HOST] - 600 * MIB, "the driver's own part"
    weights = shared.estimate.term_bytes(WEIGHTS)
    assert weights == profiles["llama-8b"].weights_bytes
    assert "33 of 33 layers on a GPU that shares the memory" in shared.reasons
    assert shared.estimate.total_bytes() <= shared.budgets[HOST]


def test_shared_memory_that_is_too_small_for_the_gpus_part_keeps_the_cpu(
    profiles: dict[str, ModelProfile],
) -> None:
    """The output matrix is stored again for the GPU, and the graph has two parts."""
    found = set()
    for step in range(60):
        machine = _unified(5 * GIB + step * 32 * MIB)
        plan = _try(machine, _one(profiles, "gemma2-2b"), Wish(num_ctx=8192, slots=4), {})
        if isinstance(plan, Placement):
            found.add(plan.settings.unified)
    assert found == {False, True}
    asked = place(_unified(64 * GIB), _one(profiles, "llama-8b"), Wish(num_gpu=0))
    assert (asked.settings.num_gpu, asked.settings.unified) == (0, False)
    some = place(_unified(64 * GIB), _one(profiles, "llama-8b"), Wish(num_gpu=7))
    assert (some.settings.num_gpu, some.settings.unified) == (7, True)


def test_gpu_with_memory_of_its_own_is_taken_before_one_that_shares() -> None:
    machine = _unified(64 * GIB)
    both = replace(machine, gpus=(*machine.gpus, _gpu(1, 8 * GIB)))
    assert both.unified_gpus == ()
    assert [gpu.index for gpu in both.planned_gpus] == [1]


def test_what_is_kept_free_is_named_and_adds_up() -> None:
    plain = _host(8 * GIB)
    assert host_reserve_bytes(plain) == sum(size for _, size in host_reserve_terms(plain))
    swap = replace(plain, memory=replace(plain.memory, zram_size_bytes=3 * GIB))
    assert host_reserve_bytes(swap) > host_reserve_bytes(plain)
    full = replace(swap, memory=replace(swap.memory, zram_bytes=GIB))
    assert host_reserve_bytes(full) == host_reserve_bytes(plain), "it cannot take more"
    device = replace(plain, memory=replace(plain.memory, cma_free_bytes=GIB))
    assert host_reserve_bytes(device) == host_reserve_bytes(plain)
    rockchip = replace(device, board=Board(family="rockchip"))
    assert host_reserve_bytes(rockchip) == host_reserve_bytes(plain) + GIB


def test_model_that_no_memory_node_holds_says_so(profiles: dict[str, ModelProfile]) -> None:
    nodes = tuple(NumaNode(index=index, free_bytes=8 * GIB) for index in range(2))
    machine = replace(_host(16 * GIB), numa=Numa(nodes=nodes))
    large, small = (
        place(machine, _one(profiles, name), Wish()).reasons for name in ("Q8_0", "llama-1b")
    )
    assert any("several memory nodes" in reason for reason in large)
    assert not any("several memory nodes" in reason for reason in small)


def test_memory_that_is_left_over_says_what_it_is_good_for(
    profiles: dict[str, ModelProfile],
) -> None:
    placement = place(_host(24 * GIB), _one(profiles, "llama-8b"), Wish())
    (line,) = [reason for reason in placement.reasons if "memory is left" in reason]
    ctx = int(line.split(" tokens")[0].rsplit(" ", 1)[1])
    assert ctx > 8192
    slots = placement.settings.slots
    asked = place(_host(24 * GIB), _one(profiles, "llama-8b"), Wish(num_ctx=ctx, slots=slots))
    assert asked.settings.num_ctx == ctx
    wish = Wish(num_ctx=ctx + 2048, slots=slots, kv_type="f16")
    with pytest.raises(DoesNotFitError):
        place(_host(24 * GIB), _one(profiles, "llama-8b"), wish)


@pytest.mark.parametrize("layers", [0, 1, 20, 33, 999])
def test_wished_gpu_layers_are_honoured(profiles: dict[str, ModelProfile], layers: int) -> None:
    machine = _host(64 * GIB, gpus=(_gpu(0, 24 * GIB), _gpu(1, 24 * GIB)))
    placement = place(machine, _one(profiles, "llama-8b"), Wish(num_gpu=layers))
    pools = layer_pools(profiles["llama-8b"], placement.settings)
    assert len(pools) - pools.count(HOST) == min(layers, 33)


def test_screen_and_age_of_a_gpu_lower_its_budget() -> None:
    plain = _gpu(0, 8 * GIB)
    assert gpu_reserve_bytes(replace(plain, display=True)) > gpu_reserve_bytes(plain)
    old = replace(plain, compute_capability=(7, 5))
    assert gpu_reserve_bytes(old) < gpu_reserve_bytes(plain)
    assert gpu_reserve_bytes(replace(plain, compute_capability=None)) == gpu_reserve_bytes(plain)


def test_budgets_are_never_negative() -> None:
    machine = _host(100 * MIB, gpus=(_gpu(0, 100 * MIB),))
    assert pool_budgets(machine, {}) == {HOST: 0, "gpu0": 0}


_MACHINES = st.builds(
    _host,
    st.integers(64 * MIB, 96 * GIB),
    board=st.sampled_from([Board(), Board(single_board=True)]),
    gpus=st.lists(st.integers(256 * MIB, 48 * GIB), max_size=3).map(
        lambda sizes: tuple(_gpu(index, size) for index, size in enumerate(sizes))
    ),
)
_WISHES = st.builds(
    Wish,
    num_ctx=st.none() | st.integers(1, 300_000),
    slots=st.none() | st.integers(1, 16),
    kv_type=st.sampled_from([None, "f16", "q8_0"]),
    num_gpu=st.none() | st.integers(-1, 60),
    num_batch=st.none() | st.integers(1, 4096),
)


_MARGINS = st.builds(Margin, excess_share=st.floats(0, 0.25), runs=st.integers(0, 9))


def _try(
    machine: Machine, candidates: list[Candidate], wish: Wish, reserved: dict[str, int]
) -> Placement | str:
    try:
        return place(machine, candidates, wish, reserved_bytes=reserved)
    except DoesNotFitError as error:
        return str(error)


@settings(deadline=None, max_examples=150)
@given(
    machine=_MACHINES,
    wish=_WISHES,
    reserved=st.integers(0, 8 * GIB),
    names=st.lists(st.sampled_from(["demo", *FAMILIES]), min_size=1, max_size=4, unique=True),
)
def test_plan_fits_meets_the_wish_and_is_the_same_again(
    machine: Machine,
    wish: Wish,
    reserved: int,
    names: list[str],
    profiles: dict[str, ModelProfile],
) -> None:
    """A plan stays within every budget, honours every wish, and is deterministic."""
    candidates = [Candidate(variant=name, profile=profiles[name]) for name in names]
    plan = _try(machine, candidates, wish, {HOST: reserved})
    assert _try(machine, candidates[::-1], wish, {HOST: reserved}) == plan
    if isinstance(plan, str):
        return
    profile = profiles[plan.variant]
    for pool in plan.estimate.pools:
        assert plan.estimate.total_bytes(pool) <= plan.budgets[pool]
    assert plan.settings.num_ctx < profile.context_length + 256
    if wish.num_ctx is not None:
        assert plan.settings.num_ctx >= min(wish.num_ctx, profile.context_length)
    assert wish.slots in (None, plan.settings.slots)
    assert wish.kv_type in (None, plan.settings.kv_type)


@settings(deadline=None, max_examples=60)
@given(size=st.integers(3 * GIB, 40 * GIB), more=st.integers(0, 20 * GIB))
def test_more_memory_never_makes_the_plan_worse(
    size: int, more: int, profiles: dict[str, ModelProfile]
) -> None:
    """More memory: no worse variant, and with the same one no shorter context."""
    order = ["Q8_0", "Q6_K", "Q4_K", "Q2_K"]
    small = _try(_host(size), _variants(profiles), Wish(), {})
    large = _try(_host(size + more), _variants(profiles), Wish(), {})
    if isinstance(small, str):
        return
    assert isinstance(large, Placement)
    full = small.settings.num_ctx == large.settings.num_ctx
    if full:
        assert order.index(large.variant) <= order.index(small.variant)
    else:
        assert large.settings.num_ctx > small.settings.num_ctx or large.variant != small.variant


def test_saved_prompts_get_only_what_is_left_over(profiles: dict[str, ModelProfile]) -> None:
    candidates = _one(profiles, "demo")
    wish = Wish(saved_bytes=4 * GIB)
    plain, roomy, tight = (
        place(_host(size), candidates, one)
        for size, one in ((64 * GIB, Wish()), (64 * GIB, wish), (3 * GIB, wish))
    )

    assert roomy.settings == replace(plain.settings, saved_bytes=4 * GIB)
    assert roomy.estimate.total_bytes() == plain.estimate.total_bytes() + 4 * GIB
    assert tight.settings.num_ctx == plain.settings.num_ctx
    assert tight.settings.saved_bytes == 0


@settings(deadline=None, max_examples=150)
@given(
    machine=_MACHINES,
    wish=_WISHES,
    name=st.sampled_from(["demo", *FAMILIES]),
    margin=_MARGINS,
    wrong=st.floats(-0.05, 0.05),
)
def test_plan_holds_when_the_prediction_is_wrong_by_what_its_margin_allows(  # noqa: PLR0917
    machine: Machine,
    wish: Wish,
    name: str,
    margin: Margin,
    wrong: float,
    profiles: dict[str, ModelProfile],
) -> None:
    """Needs off by up to 5 %, machines measured 5 % off: a plan stays within what there is."""
    candidates = [Candidate(variant=name, profile=profiles[name], margin=margin)]
    memory = machine.memory
    moved = replace(
        machine,
        memory=replace(memory, available_bytes=int(memory.available_bytes * (1 - abs(wrong)))),
        gpus=tuple(
            replace(gpu, free_bytes=int(gpu.free_bytes * (1 - abs(wrong)))) for gpu in machine.gpus
        ),
    )
    for one in (machine, moved):
        plan = _try(one, candidates, wish, {})
        if isinstance(plan, str):
            assert "short" in plan or "expected" in plan or "cannot keep" in plan
            continue
        for pool in plan.estimate.pools:
            need = plan.estimate.total_bytes(pool)
            assert need + margin_bytes(pool, need, margin) <= plan.budgets[pool]
        held = plan.estimate.total_bytes(HOST) * (1 + wrong)
        if wrong <= margin.excess_share + 0.01:
            assert held <= plan.budgets[HOST]
        assert held <= one.memory.available_bytes, "the reserve covers the rest"


_SETTINGS = st.builds(
    EngineSettings,
    num_ctx=st.integers(1, 64).map(lambda number: 512 * number),
    slots=st.integers(1, 8),
    spare_sequences=st.integers(0, 8),
    kv_type=st.sampled_from(["f16", "q8_0"]),
    num_gpu=st.integers(0, 60),
    num_batch=st.just(2048),
    num_ubatch=st.sampled_from([64, 128, 256, 512, 1024, 2048]),
    repack=st.booleans(),
    cpu_experts=st.integers(0, 4),
    unified=st.booleans(),
)


@settings(deadline=None, max_examples=300)
@given(
    first=_SETTINGS,
    change=st.sampled_from(["num_ctx", "slots", "num_ubatch", "spare_sequences"]),
    name=st.sampled_from(["demo", *FAMILIES]),
)
def test_need_never_shrinks_with_context_slots_or_micro_batch(
    first: EngineSettings, change: str, name: str, profiles: dict[str, ModelProfile]
) -> None:
    """Every pool needs at least as much; a cache that is precise enough needs no less either."""
    profile = profiles[name]
    repacked = repacked_types(Cpu(features=("avx2",)))
    more = replace(first, **{change: min(2048, 2 * getattr(first, change)) + (change == "slots")})
    if change == "num_ctx":
        more = replace(first, num_ctx=2 * first.num_ctx)
    before, after = (estimate(profile, one, repacked=repacked) for one in (first, more))
    for pool in {*before.pools, *after.pools}:
        assert after.total_bytes(pool) >= before.total_bytes(pool)
    coarse = estimate(profile, replace(first, kv_type="q8_0"), repacked=repacked)
    precise = estimate(profile, replace(first, kv_type="f16"), repacked=repacked)
    assert coarse.term_bytes(KV_CACHE) <= precise.term_bytes(KV_CACHE)


@settings(deadline=None, max_examples=60)
@given(
    machine=_MACHINES,
    wish=_WISHES,
    names=st.lists(st.sampled_from(["demo", *FAMILIES]), min_size=1, max_size=3, unique=True),
    margin=_MARGINS,
    reserved=st.integers(0, 4 * GIB),
)
def test_every_decision_replays_byte_for_byte(  # noqa: PLR0917 - drawn by name
    machine: Machine,
    wish: Wish,
    names: list[str],
    margin: Margin,
    reserved: int,
    profiles: dict[str, ModelProfile],
) -> None:
    """A plan or an explained refusal, and the record of it gives the same bytes again."""
    question = Question(
        machine=machine,
        candidates=tuple(
            Candidate(variant=name, profile=profiles[name], margin=margin) for name in names
        ),
        wish=wish,
        reserved_bytes={HOST: reserved},
    )
    record = record_of(question)
    again = replayed(record)
    assert again.same
    assert record_of(again.question) == record
    if not again.answer["fits"]:
        assert again.answer["message"]
