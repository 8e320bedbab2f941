"""Margins learn from loads, within bounds, and forget."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprobe.estimate import HOST, estimate
from hwprobe.gguf import ModelProfile, model_profile, read_header
from hwprobe.ladder import lacked_memory, step_down
from hwprobe.loads import LOADS_FILE, MARGINS_FILE, MAX_RECORD_BYTES, OLD_LOADS_FILE, Loads
from hwprobe.margins import (
    EARNED_RUNS,
    MOST_EXCESS_SHARE,
    UNTRIED,
    Margin,
    learned,
    margin_bytes,
)
from hwprobe.settings import EngineSettings
from hwprobe.verdict import Wish

DEMO = Path(__file__).parents[1] / "demo-model" / "demo-f16.gguf"
GIB = 1 << 30


@pytest.fixture(scope="module")
def profile() -> ModelProfile:
    return model_profile(read_header(DEMO))


@given(st.lists(st.integers(0, 4 * GIB), max_size=30))
def test_margin_stays_within_bounds_whatever_is_measured(measured: list[int]) -> None:
    margin = UNTRIED
    for size in measured:
        margin = learned(margin, predicted_bytes=GIB, measured_bytes=size)
        assert 0 <= margin.excess_share <= MOST_EXCESS_SHARE
        assert 0 < margin_bytes(HOST, GIB, margin) <= 0.28 * GIB
    assert margin.runs == len(measured)


def test_excess_counts_at_once_and_is_forgotten_slowly() -> None:
    margin = learned(UNTRIED, predicted_bytes=1000, measured_bytes=1100)
    assert margin.excess_share == 0.1
    shares = []
    for _ in range(10):
        margin = learned(margin, predicted_bytes=1000, measured_bytes=900)
        shares.append(margin.excess_share)
    assert shares[0] == pytest.approx(0.08)
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 0.02


def test_loads_as_predicted_earn_a_smaller_margin() -> None:
    margin = UNTRIED
    for _ in range(EARNED_RUNS):
        margin = learned(margin, predicted_bytes=GIB, measured_bytes=GIB)
    for need in (GIB // 10, 10 * GIB):
        assert margin_bytes(HOST, need, margin) < margin_bytes(HOST, need)
    assert margin_bytes("gpu0", GIB, margin) == margin_bytes("gpu0", GIB)


def test_nonsense_teaches_nothing() -> None:
    assert learned(UNTRIED, predicted_bytes=0, measured_bytes=5) == UNTRIED
    assert learned(UNTRIED, predicted_bytes=5, measured_bytes=-1) == UNTRIED


def test_margins_hold_for_one_build_and_one_model(profile: ModelProfile, tmp_path: Path) -> None:
    loads = Loads(tmp_path, identity="build 1")
    loads.learn(profile, predicted_bytes=100, measured_bytes=110)
    assert Loads(tmp_path, identity="build 1").margin(profile) == Margin(excess_share=0.1, runs=1)
    assert Loads(tmp_path, identity="build 2").margin(profile) == UNTRIED
    assert loads.margin(replace(profile, quantization="Q8_0")) == UNTRIED


@pytest.mark.parametrize(
    "damage",
    [
        *(b"", b"{", b"[]", b'{"identity": "b"}', b'{"identity": "b", "margins": 5}', b"\xff"),
        b'{"identity": "b", "margins": {"x": {"excess_share": -1, "runs": 1}}}',
    ],
)
def test_damaged_margins_read_as_none(profile: ModelProfile, tmp_path: Path, damage: bytes) -> None:
    (tmp_path / MARGINS_FILE).write_bytes(damage)
    loads = Loads(tmp_path, identity="b")
    assert loads.margin(profile) == UNTRIED
    loads.learn(profile, predicted_bytes=100, measured_bytes=100)
    assert loads.margin(profile).runs == 1


def test_records_are_kept_in_bounds_and_the_latest_is_found(tmp_path: Path) -> None:
    loads = Loads(tmp_path / "new", identity="b")
    assert loads.last("m") is None
    for number in range(30):
        loads.keep({"model": "m", "number": number, "filler": "x" * 100_000})
    loads.keep({"model": "other"})
    found = loads.last("m")
    assert found is not None
    assert found["number"] == 29
    sizes = [(tmp_path / "new" / name).stat().st_size for name in (LOADS_FILE, OLD_LOADS_FILE)]
    assert all(size <= MAX_RECORD_BYTES for size in sizes)


def test_torn_line_of_a_record_is_skipped(tmp_path: Path) -> None:
    loads = Loads(tmp_path, identity="b")
    loads.keep({"model": "m", "number": 1})
    with (tmp_path / LOADS_FILE).open("ab") as file:
        file.write(json.dumps({"model": "m", "number": 2}).encode()[:-3])
    found = loads.last("m")
    assert found is not None
    assert found["number"] == 1


def test_what_cannot_be_kept_is_forgotten(profile: ModelProfile, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    loads = Loads(tmp_path / "file" / "engine", identity="b")
    loads.keep({"model": "m"})
    loads.learn(profile, predicted_bytes=100, measured_bytes=100)
    assert loads.margin(profile) == UNTRIED


@given(
    slots=st.integers(1, 16),
    ctx=st.integers(1, 64).map(lambda number: 256 * number),
    ubatch=st.sampled_from([64, 128, 512, 2048]),
    wish=st.builds(
        Wish,
        num_ctx=st.none() | st.just(4096),
        slots=st.none() | st.just(4),
        kv_type=st.sampled_from([None, "f16"]),
        num_gpu=st.sampled_from([None, -1, 3]),
    ),
)
def test_ladder_only_goes_down_keeps_wishes_and_ends(
    profile: ModelProfile, slots: int, ctx: int, ubatch: int, wish: Wish
) -> None:
    """Each step takes no more host memory but for layers that leave a GPU, and the ladder ends."""
    first = EngineSettings(
        num_ctx=ctx,
        slots=slots,
        num_batch=2048,
        num_ubatch=ubatch,
        num_gpu=3,
        saved_bytes=GIB,
        spare_sequences=8,
    )
    settings, seen = first, [first]
    while step := step_down(profile, wish, settings):
        assert step.words
        before = estimate(profile, settings).total_bytes()
        assert estimate(profile, step.settings).total_bytes() <= before or settings.num_gpu
        settings = step.settings
        assert settings not in seen
        seen.append(settings)
        assert len(seen) < 100
    assert settings.num_ctx == (first.num_ctx if wish.num_ctx else 256)
    assert settings.slots == (first.slots if wish.slots else 1)
    assert (settings.kv_type == "f16") == (wish.kv_type == "f16")
    assert settings.num_gpu == (3 if wish.num_gpu == 3 else 0)
    assert (settings.saved_bytes, settings.spare_sequences, settings.repack) == (0, 0, False)


@pytest.mark.parametrize(
    ("message", "lacked"),
    [
        ("ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 16", True),
        ("while loading: the model's runner was killed by SIGKILL", True),
        ("cudaMalloc failed: out of memory", True),
        ("the model's runner was killed by SIGSEGV", False),
        ("invalid magic characters", False),
    ],
)
def test_want_of_memory_is_told_from_other_failures(message: str, *, lacked: bool) -> None:
    assert lacked_memory(message) is lacked
