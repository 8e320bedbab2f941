"""Calibration and prediction of speed: what is refused, what is solved, what is kept."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprobe.calibrate import (
    CALIBRATION_FILE,
    calibrate,
    keep_calibration,
    machine_identity,
    read_calibration,
    wide_shape,
)
from hwprobe.canary import Shape, canary_bytes
from hwprobe.gguf import ModelProfile, model_profile, read_header
from hwprobe.inventory import take_inventory
from hwprobe.settings import EngineSettings
from hwprobe.speed import (
    MAX_MEASURED,
    Calibration,
    Timing,
    calibration_of,
    decode_bytes,
    predicted_speed,
    speed_key,
    with_measured,
)
from tests.fakes.synthetic_models import write_family
from tests.hwprobe.test_cli import DEMO, _probe

KNOWN = Calibration(
    identity="engine cpu",
    threads=4,
    bandwidth_bytes_per_s=1e10,
    block_s=1e-4,
    operations_per_s=1e11,
)
SETTINGS = EngineSettings(num_ctx=4096, threads=4)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelProfile]:
    directory = tmp_path_factory.mktemp("families")
    names = ("llama-8b", "qwen3-30b-a3b", "gemma3-4b")
    return {name: model_profile(read_header(write_family(name, directory))) for name in names}


_SOUND = {
    "identity": "engine cpu",
    "threads": 4,
    "bandwidth_bytes_per_s": 1.0,
    "block_s": 0.0,
    "operations_per_s": 1.0,
    "measured": {},
}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        json.dumps({**_SOUND, "bandwidth_bytes_per_s": -1.0}),
        json.dumps({**_SOUND, "bandwidth_bytes_per_s": 1.5}).replace("1.5", "1e999"),
        json.dumps({**_SOUND, "block_s": -1.0}),
        json.dumps({**_SOUND, "measured": {"a": {"decode": 0, "prompt": 1}}}),
        json.dumps({**_SOUND, "threads": "4"}),
    ],
)
def test_damaged_calibration_is_an_absence(tmp_path: Path, text: str) -> None:
    (tmp_path / CALIBRATION_FILE).write_text(text)
    assert read_calibration(tmp_path, "engine cpu") is None


def test_calibration_of_another_engine_or_processor_is_an_absence(tmp_path: Path) -> None:
    keep_calibration(tmp_path, KNOWN)
    assert read_calibration(tmp_path, "other") is None
    assert read_calibration(tmp_path, "engine cpu") == KNOWN


@settings(deadline=None)
@given(
    bandwidth=st.floats(1e8, 1e12),
    block_s=st.floats(0, 1e-2),
    operations=st.floats(1e9, 1e15),
)
def test_two_models_give_back_what_the_machine_does(
    bandwidth: float, block_s: float, operations: float
) -> None:
    def timing(size: int, blocks: int) -> Timing:
        return Timing(
            decode_bytes=size,
            blocks=blocks,
            parameters=2 * size,
            token_s=size / bandwidth + blocks * block_s,
            prompt_tokens=256,
            prompt_s=2 * 2 * size * 256 / operations,
        )

    found = calibration_of(timing(17 << 20, 48), timing(174 << 20, 6), identity="one", threads=2)
    wide_s = (174 << 20) / bandwidth + 6 * block_s
    solved_s = (174 << 20) / found.bandwidth_bytes_per_s + 6 * found.block_s
    assert math.isclose(solved_s, wide_s, rel_tol=1e-6)
    assert math.isclose(found.operations_per_s, operations, rel_tol=1e-9)
    if block_s > 1e-6 and bandwidth < 1e11:
        assert math.isclose(found.block_s, block_s, rel_tol=1e-3)


@settings(deadline=None)
@given(thin_s=st.floats(1e-6, 10), wide_s=st.floats(1e-6, 10))
def test_noise_never_gives_a_calibration_that_predicts_nonsense(
    thin_s: float, wide_s: float
) -> None:
    one = Timing(
        decode_bytes=1 << 24,
        blocks=48,
        parameters=1 << 25,
        token_s=thin_s,
        prompt_tokens=256,
        prompt_s=1,
    )
    wide = replace(one, decode_bytes=1 << 28, blocks=6, token_s=wide_s)
    found = calibration_of(one, wide, identity="one", threads=1)
    assert found.bandwidth_bytes_per_s > 0
    assert found.block_s >= 0


def test_token_reads_all_weights_but_the_looked_up_ones(models: dict[str, ModelProfile]) -> None:
    llama = models["llama-8b"]
    assert decode_bytes(llama) == llama.weights_bytes - llama.input_bytes


def test_tied_embedding_is_read_as_output(models: dict[str, ModelProfile]) -> None:
    gemma = models["gemma3-4b"]
    assert gemma.tied_output_bytes > 0
    assert decode_bytes(gemma) > sum(gemma.block_bytes) + gemma.output_bytes


def test_mixture_reads_only_the_experts_it_passes(models: dict[str, ModelProfile]) -> None:
    """Published as 30.5 billion parameters, 3.3 of them used."""
    mixture = models["qwen3-30b-a3b"]
    share = decode_bytes(mixture) / mixture.weights_bytes
    assert 0.08 < share < 0.14


def test_measured_speed_replaces_the_prediction_and_narrows_the_band(
    models: dict[str, ModelProfile],
) -> None:
    llama = models["llama-8b"]
    before = predicted_speed(llama, SETTINGS, KNOWN)
    assert before is not None
    assert not before.measured
    seconds = decode_bytes(llama) / 1e10 + 32 * 1e-4
    assert before.decode == pytest.approx(1 / seconds)
    learned = with_measured(KNOWN, speed_key(llama, SETTINGS), decode=10, prompt=100)
    learned = with_measured(learned, speed_key(llama, SETTINGS), decode=20, prompt=100)
    after = predicted_speed(llama, SETTINGS, learned)
    assert after is not None
    assert after.measured
    assert after.decode == pytest.approx(13)
    assert after.error_share < before.error_share


@pytest.mark.parametrize("decode", [0, -1, math.inf, math.nan])
def test_number_that_is_no_speed_teaches_nothing(decode: float) -> None:
    assert with_measured(KNOWN, "key", decode=decode, prompt=1) == KNOWN


def test_oldest_measurements_are_forgotten() -> None:
    learned = KNOWN
    for number in range(MAX_MEASURED + 5):
        learned = with_measured(learned, str(number), decode=1, prompt=1)
    assert len(learned.measured) == MAX_MEASURED
    assert "0" not in learned.measured


def test_nothing_is_predicted_for_layers_on_a_gpu(models: dict[str, ModelProfile]) -> None:
    assert predicted_speed(models["llama-8b"], replace(SETTINGS, num_gpu=5), KNOWN) is None


def test_wide_model_outgrows_the_caches_within_bounds() -> None:
    assert len(wide_shape(0).quantizations) == 6
    assert len(wide_shape(256 << 20).quantizations) == 17
    assert len(wide_shape(1 << 40).quantizations) == 35


def test_canary_has_not_changed() -> None:
    """Verdicts that are kept name the model they were reached with."""
    assert hashlib.sha256(canary_bytes()).hexdigest() == CANARY_SHA256


CANARY_SHA256 = "3ef174c9131398ab4809de3f329080af774891634e907720bfa83c881278f274"


@pytest.mark.engine
def test_engine_is_timed_and_fit_predicts_from_it(tmp_path: Path) -> None:
    machine = take_inventory()
    little = Shape(
        embedding=512, feed_forward=1024, heads=8, vocabulary=320, quantizations=("Q4_K",) * 3
    )
    found = calibrate(machine, tmp_path, wide=little)
    assert list(tmp_path.iterdir()) == []
    assert found.bandwidth_bytes_per_s > 0
    assert found.operations_per_s > 0
    assert found.identity == machine_identity(machine)
    keep_calibration(tmp_path / "satchel" / "engine", found)
    done = _probe("fit", DEMO, "--models", tmp_path)
    assert "predicted" in done.stdout, done.stderr
    assert "tokens/s" in done.stdout
    timed = _probe("calibrate", "--model", DEMO, "--models", tmp_path)
    assert timed.returncode == 0, timed.stderr
    assert "measured" in timed.stdout
    assert "measured" in _probe("fit", DEMO, "--models", tmp_path).stdout


def test_model_is_not_timed_before_the_machine(tmp_path: Path) -> None:
    done = _probe("calibrate", "--model", DEMO, "--models", tmp_path)
    assert done.returncode == 1
    assert "nothing is known" in done.stderr
