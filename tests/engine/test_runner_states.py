"""Prompts that leave the cache and come back: the same greedy text, from real models."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from server.runner import protocol
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


def lived(
    model: Path,
    folder: Path,
    *prompts: tuple[int, ...],
    binding: str = "5" * 64,
    scope: str = "",
    limit_bytes: int = 64 << 20,
    kill: bool = False,
) -> list[tuple[object, ...]]:
    """As `ask`, by a runner that puts what it computed on the shelf when it ends."""
    kept = protocol.Keepsakes(folder=str(folder), binding=binding, limit_bytes=limit_bytes)
    engine = settings(num_ctx=512, slots=1, spare_sequences=3)
    with Driver(engine, model=model, keepsakes=kept) as driver:
        rows = [driver.generate(tokens=one, num_predict=12, scope=scope) for one in prompts]
        if kill:
            driver.socket.close()
            driver.process.kill()
    assert all(row.fault is None for row in rows)
    return [(row.cached_tokens, row.tokens) for row in rows]


TURN = (*FIRST, 301, 302, 303)


def test_prompt_outlives_its_runner(model: Path, tmp_path: Path) -> None:
    ((_, alone),) = ask(model, TURN)
    lived(model, tmp_path / "states", FIRST, OTHER)

    ((cached, tokens),) = lived(model, tmp_path / "states", TURN)

    assert cached == len(FIRST)
    assert tokens == alone


def test_other_key_other_binding_or_no_room_gets_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "states"
    lived(DEMO, folder, FIRST, scope="a")
    cached = [
        lived(DEMO, folder, FIRST, scope="b", limit_bytes=1)[0][0],
        lived(DEMO, folder, FIRST, scope="a", binding="6" * 64, limit_bytes=1)[0][0],
        lived(DEMO, folder, FIRST, scope="a")[0][0],
        lived(DEMO, tmp_path / "none", FIRST, limit_bytes=1)[0][0],
    ]

    assert cached == [0, 0, len(FIRST) - 1, 0]
    assert [path.name for path in (tmp_path / "none").iterdir()] == ["lock"]


def test_file_that_was_changed_is_computed_again_and_removed(tmp_path: Path) -> None:
    ((_, alone),) = lived(DEMO, tmp_path, FIRST)
    (path,) = tmp_path.glob("*.state")
    data = bytearray(path.read_bytes())
    data[-100] ^= 255
    path.write_bytes(data)

    ((cached, tokens),) = lived(DEMO, tmp_path, FIRST, kill=True)

    assert (cached, tokens) == (0, alone)
    # A runner that was quicker than its kill has put a good one in its place.
    assert not path.exists() or path.read_bytes() != data


def test_runner_that_is_killed_while_it_ends_leaves_nothing_that_is_believed(
    tmp_path: Path,
) -> None:
    ((_, alone),) = lived(DEMO, tmp_path, FIRST, kill=True)
    for _ in range(3):
        ((_cached, tokens),) = lived(DEMO, tmp_path, FIRST, OTHER, kill=True)[:1]
        assert tokens == alone


PREEMPTED = """
import sys
from pathlib import Path
from hwprobe.settings import EngineSettings
from server.runner.inbox import Arrival, Inbox
from server.runner.library import NO_ROOM, Engine
from server.runner.loop import Loop
from server.runner.work import Work
from server.wishes import SamplingOptions

settings = EngineSettings(num_ctx=512, slots=2, saved_bytes=64 << 20)
engine = Engine(model_path=Path(sys.argv[1]), settings=settings)
never_ending = tuple((token, -1e6) for token in engine.vocabulary.end_tokens)
decode, load_state = engine.decode, engine.load_state
restored = []

def told(preempt):
    texts, computed, steps, ended = {1: (), 2: ()}, [], [0], set()

    def once_without_room():
        steps[0] += 1
        if preempt and steps[0] == 10:
            return NO_ROOM
        computed.append(engine.batch.size)
        return decode()

    def loaded(sequence, source):
        restored.append(sequence)
        return load_state(sequence, source)

    def send(step):
        for row in step.rows:
            assert row.fault is None, row.fault
            texts[row.id] += row.tokens
            if row.done:
                ended.add(row.id)
        if ended == {1, 2}:
            inbox.close()

    engine.decode, engine.load_state = once_without_room, loaded
    inbox = Inbox(engine.abort, engine.rearm)
    loop = Loop(engine, slots=2, inbox=inbox, send=send)
    for number in (1, 2):
        prompt = tuple(300 + (7 + number) * n % 200 for n in range(200))
        inbox.put(
            Arrival(
                work=Work(id=number, prompt=prompt, most_tokens=40),
                sampling=SamplingOptions(
                    temperature=0.0, num_predict=40, speculate=False, logit_bias=never_ending
                ),
                top_logprobs=None,
                gate=None,
            )
        )
    loop.run()
    loop.close()
    engine.forget()
    return texts, sum(computed)

calm, usual = told(False)
assert not restored
disturbed, computed = told(True)
assert len(restored) == 1, restored
assert disturbed == calm, (disturbed, calm)
assert all(len(tokens) == 40 for tokens in calm.values())
assert computed == usual, (computed, usual)
engine.close()
"""


def test_request_that_was_preempted_goes_on_from_memory_with_the_same_text() -> None:
    """Nothing is computed twice, and greedily nothing is said differently."""
    done = subprocess.run(
        [sys.executable, "-c", PREEMPTED, str(DEMO)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr[-2000:]


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
