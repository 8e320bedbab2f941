"""Kinds of projectors beside LLaVA's in a real runner, against the engine's own helpers.

Qwen2-VL's rows have several positions (M-RoPE), and Gemma 3's see each other.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from server.runner import protocol
from tests.engine.runner_driver import Driver, settings
from tests.fakes.picture_child import Part, continued
from tests.fakes.projectors import GEMMA_TOKENS, Kind, png, write_projector
from tests.fakes.random_models import WIDE, write_random

pytestmark = pytest.mark.engine

WIDE_ONE = png(lambda x, y: (255 * (x > 70), 3 * y, x), 140, 84)
TALL_ONE = png(lambda x, y: (2 * y, 255 * (y % 9 > 4), x), 56, 112)
HEAD, BETWEEN, TAIL = (5, 6, 7, 21, 22), (8, 30), (9, 40, 41)
ANSWER = 12


@dataclass(frozen=True, slots=True)
class Eyes:
    """A model with its projector."""

    kind: Kind
    model: Path
    projector: Path

    def driver(self, **changes: object) -> Driver:
        chosen = settings(**{"slots": 3, "num_ctx": 512, **changes})
        return Driver(chosen, model=self.model, projector=self.projector)


@pytest.fixture(scope="module", params=["qwen2vl_merger", "gemma3"])
def eyes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Eyes:
    kind: Kind = request.param
    folder = tmp_path_factory.mktemp(kind)
    model = write_random("sectioned" if kind == "qwen2vl_merger" else "sighted", folder / "m.gguf")
    projector = write_projector(folder / "p.gguf", kind=kind, width=WIDE)
    return Eyes(kind, model, projector)


@pytest.fixture(scope="module")
def driver(eyes: Eyes) -> Iterator[Driver]:
    with eyes.driver() as running:
        yield running


def coded(*images: bytes) -> tuple[str, ...]:
    return tuple(base64.b64encode(data).decode() for data in images)


def two(driver: Driver, *, first: bytes = WIDE_ONE, more: int = 0) -> protocol.Row:
    """An answer to two pictures between tokens."""
    tokens = (*HEAD, -1, *BETWEEN, -2, *TAIL[: len(TAIL) - more])
    return driver.generate(tokens=tokens, images=coded(first, TALL_ONE), num_predict=ANSWER)


def test_pictures_stand_where_the_engines_helpers_put_them(eyes: Eyes, driver: Driver) -> None:
    row = two(driver)
    assert not row.fault, row.fault
    parts: list[Part] = [HEAD, WIDE_ONE, BETWEEN, TALL_ONE, TAIL]
    assert row.tokens == continued(eyes.model, eyes.projector, parts, ANSWER)
    assert len(set(row.tokens)) > 2
    assert two(driver, first=TALL_ONE).tokens != row.tokens


def test_rows_are_those_of_the_kind(eyes: Eyes, driver: Driver) -> None:
    one = driver.generate(tokens=(*HEAD, -1, *TAIL), images=coded(WIDE_ONE), num_predict=1)
    both = two(driver)
    per_picture = {"gemma3": GEMMA_TOKENS}.get(eyes.kind, 2 * 4)
    around = both.prompt_tokens - one.prompt_tokens - len(BETWEEN)
    assert around >= per_picture


def test_what_was_computed_is_used_again_behind_pictures(eyes: Eyes, driver: Driver) -> None:
    row = two(driver)
    again = two(driver)
    assert (again.tokens, again.cached_tokens) == (row.tokens, row.prompt_tokens - 1)
    other = (*HEAD, -1, *BETWEEN, *TAIL)
    shared = driver.generate(tokens=other, images=coded(WIDE_ONE), num_predict=ANSWER)
    assert shared.cached_tokens >= row.prompt_tokens // 2
    parts: list[Part] = [HEAD, WIDE_ONE, BETWEEN, TAIL]
    assert shared.tokens == continued(eyes.model, eyes.projector, parts, ANSWER)
    follows = (*other, *shared.tokens, 50, 51)
    on = driver.generate(tokens=follows, images=coded(WIDE_ONE), num_predict=ANSWER)
    assert on.cached_tokens > shared.prompt_tokens
    parts = [HEAD, WIDE_ONE, (*BETWEEN, *TAIL, *shared.tokens, 50, 51)]
    assert on.tokens == continued(eyes.model, eyes.projector, parts, ANSWER)


def test_together_they_answer_as_alone(eyes: Eyes, driver: Driver) -> None:
    alone = [two(driver).tokens, two(driver, first=TALL_ONE).tokens, two(driver, more=1).tokens]
    text = driver.generate(tokens=(*HEAD, *TAIL), num_predict=40).tokens
    with eyes.driver(slots=4) as fresh:
        started = [
            fresh.start(tokens=(*HEAD, *TAIL), num_predict=40),
            *(
                fresh.start(
                    tokens=(*HEAD, -1, *BETWEEN, -2, *TAIL[: len(TAIL) - more]),
                    images=coded(first, TALL_ONE),
                    num_predict=ANSWER,
                )
                for first, more in ((WIDE_ONE, 0), (TALL_ONE, 0), (WIDE_ONE, 1))
            ),
        ]
        assert [fresh.finish(request).tokens for request in started] == [text, *alone]


def test_a_step_smaller_than_a_picture(eyes: Eyes, driver: Driver) -> None:
    with eyes.driver(num_batch=3, num_ubatch=3) as small:
        row = two(small)
    if eyes.kind == "gemma3":
        assert row.fault is not None
        assert "load it with a larger num_batch" in row.fault
    else:
        assert row.tokens == two(driver).tokens


def test_cancelled_inside_pictures_the_others_go_on(eyes: Eyes, driver: Driver) -> None:
    expected = two(driver).tokens
    with eyes.driver(num_ctx=1024) as fresh:
        many = [png((shade, 2 * shade, 0), 140, 140) for shade in range(0, 96, 8)]
        tokens = tuple(-1 - index for index in range(len(many)))
        gone = fresh.start(tokens=(*HEAD, *tokens), images=coded(*many), num_predict=100)
        stays = fresh.start(
            tokens=(*HEAD, -1, *BETWEEN, -2, *TAIL),
            images=coded(WIDE_ONE, TALL_ONE),
            num_predict=ANSWER,
        )
        fresh.send(protocol.Cancel(id=gone))
        assert fresh.finish(gone).done == "cancelled"
        assert fresh.finish(stays).tokens == expected
        again = fresh.generate(tokens=(*HEAD, *tokens[:3]), images=coded(*many[:3]), num_predict=4)
        assert again.tokens == continued(eyes.model, eyes.projector, [HEAD, *many[:3]], 4)
