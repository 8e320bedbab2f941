"""Pictures in a real runner: what is said depends on them, and on nothing else."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from server.runner import protocol
from tests.engine.runner_driver import Driver, settings
from tests.fakes.projectors import TOKENS, png, write_projector

pytestmark = pytest.mark.engine

RED, BLUE = png((250, 10, 10)), png((10, 10, 250))
STRIPES = png(lambda x, y: (0, 255 * (y % 2), 255 * (x % 3 == 0)), 40, 20)
HEAD = "<|im_start|>user\n"
TAIL = "What colour is it?<|im_end|>\n<|im_start|>assistant\n"


def coded(*images: bytes) -> tuple[str, ...]:
    return tuple(base64.b64encode(data).decode() for data in images)


def prompt(driver: Driver, *numbers: int) -> tuple[int, ...]:
    """Pictures between a head and a tail."""
    places = tuple(-1 - number for number in numbers)
    return (*driver.tokenize(HEAD), *places, *driver.tokenize(TAIL, add_bos=False))


def say(driver: Driver, *images: bytes, **options: object) -> protocol.Row:
    tokens = prompt(driver, *range(len(images)))
    return driver.generate(tokens=tokens, images=coded(*images), num_predict=12, **options)


@pytest.fixture(scope="module")
def projector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_projector(tmp_path_factory.mktemp("projector") / "mmproj.gguf")


def test_pictures_change_the_answer_and_the_same_one_does_not(projector: Path) -> None:
    with Driver(settings(slots=3), projector=projector) as driver:
        red, blue, stripes = (say(driver, one) for one in (RED, BLUE, STRIPES))
        assert not red.fault, red.fault
        assert len({red.tokens, blue.tokens, stripes.tokens}) == 3
        again = say(driver, RED)
        assert again.tokens == red.tokens
        assert again.cached_tokens == red.prompt_tokens - 1
        assert red.prompt_tokens == len(prompt(driver)) + TOKENS
        assert red.prompt_ids == prompt(driver)
        two, swapped = say(driver, RED, BLUE), say(driver, BLUE, RED)
        assert two.tokens != swapped.tokens
        assert swapped.cached_tokens == blue.prompt_tokens - len(
            driver.tokenize(TAIL, add_bos=False)
        )
