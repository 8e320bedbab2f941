"""Models whose memory cannot go back: the same greedy text with and without reuse."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from server.runner import protocol
from tests.engine.runner_driver import Driver, settings
from tests.fakes.random_models import write_random

pytestmark = pytest.mark.engine

KINDS = ["plain", "windowed", "recurrent", "hybrid"]
BEGIN = tuple(300 + 7 * n % 200 for n in range(100))
FIRST = (*BEGIN, 301, 302)
SECOND = (*BEGIN, 311, 312, 313)
THIRD = (*BEGIN, 321, 322, 323, 324)
ENGINE = settings(num_ctx=512, slots=4, spare_sequences=8)


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random(request.param, tmp_path_factory.mktemp("model") / f"{request.param}.gguf")


@functools.cache
def fresh(model: Path, prompt: tuple[int, ...], count: int = 12) -> tuple[int, ...]:
    """The tokens that follow a prompt on an engine that has seen nothing."""
    with Driver(ENGINE, model=model) as driver:
        row = driver.generate(tokens=prompt, num_predict=count)
    assert row.fault is None
    assert row.cached_tokens == 0
    return row.tokens


def test_what_is_said_depends_on_what_is_shared(model: Path) -> None:
    other = (*BEGIN[:90], *range(400, 410))
    assert fresh(model, FIRST) != fresh(model, (*other, *FIRST[100:]))


def test_next_turn_goes_on_behind_the_last_one(model: Path) -> None:
    with Driver(ENGINE, model=model) as driver:
        answer = driver.generate(tokens=FIRST, num_predict=8).tokens
        turn = (*FIRST, *answer, *range(310, 330))
        row = driver.generate(tokens=turn, num_predict=12)

    assert row.cached_tokens == len(FIRST) + len(answer) - 1
    assert row.tokens == fresh(model, turn)


def test_answer_that_was_rewritten_is_computed_behind_the_prompt(model: Path) -> None:
    turn = (*FIRST, *range(310, 330))
    with Driver(ENGINE, model=model) as driver:
        driver.generate(tokens=FIRST, num_predict=60)
        row = driver.generate(tokens=turn, num_predict=12)

    assert row.cached_tokens == len(FIRST)
    assert row.tokens == fresh(model, turn)


def test_third_prompt_finds_the_common_beginning_of_two(model: Path) -> None:
    with Driver(ENGINE, model=model) as driver:
        rows = [driver.generate(tokens=one, num_predict=12) for one in (FIRST, SECOND, THIRD)]

    assert rows[2].cached_tokens == 100
    assert [row.tokens for row in rows] == [fresh(model, one) for one in (FIRST, SECOND, THIRD)]


def test_prompts_that_come_together_share_their_beginning(model: Path) -> None:
    with Driver(ENGINE, model=model) as driver:
        commands = [driver.command(tokens=one, num_predict=12) for one in (FIRST, SECOND, THIRD)]
        driver.send(*commands)
        rows = [driver.finish(command.id) for command in commands]

    assert sorted(row.cached_tokens for row in rows) == [0, 100, 100]
    assert [row.tokens for row in rows] == [fresh(model, one) for one in (FIRST, SECOND, THIRD)]


def test_cancel_leaves_the_others_as_they_were(model: Path) -> None:
    long = tuple(300 + 17 * n % 200 for n in range(400))
    with Driver(ENGINE, model=model) as driver:
        kept = driver.start(tokens=FIRST, num_predict=40)
        lost = driver.command(tokens=long, num_predict=40)
        driver.send(lost, protocol.Cancel(id=lost.id))
        row = driver.finish(kept)
        again = driver.generate(tokens=long, num_predict=12)

    assert row.tokens == fresh(model, FIRST, 40)
    assert again.tokens == fresh(model, long)
