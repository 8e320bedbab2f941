"""Prompts that leave the cache and come back: the same greedy text, from real models."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.runner_driver import DEMO, Driver, settings
from tests.fakes.random_models import write_random

pytestmark = pytest.mark.engine

FIRST = tuple(300 + 7 * n % 200 for n in range(200))
OTHER = tuple(301 + 11 * n % 190 for n in range(200))


@pytest.fixture(scope="module", params=["demo", "plain", "windowed", "recurrent", "hybrid"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "demo":
        return DEMO
    return write_random(request.param, tmp_path_factory.mktemp("model") / f"{request.param}.gguf")


def ask(model: Path, *prompts: tuple[int, ...], saved_bytes: int = 0) -> list[tuple[object, ...]]:
    """Cached tokens and answer of each prompt, one after another, in a cache for one of them."""
    engine = settings(num_ctx=256, slots=1, spare_sequences=1, saved_bytes=saved_bytes)
    with Driver(engine, model=model) as driver:
        rows = [driver.generate(tokens=one, num_predict=12) for one in prompts]
    assert all(row.fault is None for row in rows)
    return [(row.cached_tokens, row.tokens) for row in rows]


def test_prompt_comes_back_after_another_one_took_its_cells(model: Path) -> None:
    turn = (*FIRST, 301, 302, 303)
    (_, alone), *_rest = ask(model, turn)

    _, _, (cached, tokens) = ask(model, FIRST, OTHER, turn, saved_bytes=64 << 20)

    assert cached == len(FIRST)
    assert tokens == alone


def test_without_memory_for_it_the_prompt_is_computed_again(model: Path) -> None:
    _, _, (cached, _tokens) = ask(model, FIRST, OTHER, FIRST, saved_bytes=1000)

    assert cached == 0


SPOILED = """
import sys
from pathlib import Path
import numpy as np
from hwprobe.settings import EngineSettings
from server.runner.library import Engine
from server.runner.states import States

settings = EngineSettings(num_ctx=256, spare_sequences=2)
engine = Engine(model_path=Path(sys.argv[1]), settings=settings)
engine.batch.clear()
engine.batch.add([5, 6, 7], position=0, sequence=0, output=True)
assert engine.decode() == 0
size = engine.state_bytes(0)
whole = np.empty(size, np.uint8)
assert engine.save_state(0, whole)
noise = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
for bad in (whole[: size // 2].copy(), whole[: size - 1].copy(), noise, noise[:0]):
    assert not engine.load_state(1, bad)
    assert engine.last_position(1) == -1
states = States(engine)
assert not states.save(0, 1, size + 1)
assert not states.restore(1, 1)
assert states.save(0, 1, size)
assert states.restore(1, 1)
assert engine.last_position(1) == 2
states.discard(1)
assert not states.restore(1, 2)
engine.close()
"""


def test_state_that_is_cut_or_noise_is_refused_and_leaves_nothing(model: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SPOILED, str(model)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr[-2000:]
