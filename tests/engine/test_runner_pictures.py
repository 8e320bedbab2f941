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


def say(driver: Driver, *images: bytes) -> protocol.Row:
    tokens = prompt(driver, *range(len(images)))
    return driver.generate(tokens=tokens, images=coded(*images), num_predict=12)


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


def test_pictures_and_text_run_together_and_keep_their_answers(projector: Path) -> None:
    with Driver(settings(slots=4), projector=projector) as driver:
        plain = HEAD + TAIL
        alone = [say(driver, RED).tokens, say(driver, BLUE, RED).tokens]
        text = driver.generate(plain, num_predict=40).tokens
        started = [
            driver.start(plain, num_predict=40),
            driver.start(tokens=prompt(driver, 0), images=coded(RED), num_predict=12),
            driver.start(tokens=prompt(driver, 0, 1), images=coded(BLUE, RED), num_predict=12),
        ]
        together = [driver.finish(request).tokens for request in started]
    assert together == [text, *alone]


def test_a_picture_larger_than_a_step_is_decoded_in_parts(projector: Path) -> None:
    with Driver(settings(slots=2), projector=projector) as whole:
        expected = say(whole, STRIPES, RED).tokens
    small = settings(slots=2, num_batch=3, num_ubatch=3)
    with Driver(small, projector=projector) as parts:
        assert say(parts, STRIPES, RED).tokens == expected


def test_refusals(projector: Path) -> None:
    with Driver(settings(), projector=projector) as driver:
        missing = driver.generate(tokens=(1, -2), images=coded(RED))
        assert missing.fault == "images: the prompt names more images than there are"
        broken = driver.generate(tokens=(1, -1), images=coded(RED[:-30]))
        assert broken.fault == "image 0: broken PNG: it ends too early"
        long = driver.generate(tokens=(*([5] * 510), -1), images=coded(RED))
        assert long.fault == "the input length exceeds the context length"
        assert say(driver, RED).done
    with Driver(settings()) as blind:
        assert blind.generate(tokens=(1, -1), images=coded(RED)).fault == (
            "this model sees no images"
        )


def test_cancelled_among_pictures_the_others_go_on(projector: Path) -> None:
    with Driver(settings(slots=3), projector=projector) as driver:
        expected = say(driver, STRIPES).tokens
        images = coded(*(png((shade, 0, 0)) for shade in range(0, 240, 10)))
        tokens = prompt(driver, *range(len(images)))
        gone = driver.start(tokens=tokens, images=images, num_predict=200)
        stays = driver.start(tokens=prompt(driver, 0), images=coded(STRIPES), num_predict=12)
        driver.send(protocol.Cancel(id=gone))
        assert driver.finish(gone).done == "cancelled"
        assert driver.finish(stays).tokens == expected


def test_killed_among_pictures_it_ends_at_once(projector: Path) -> None:
    driver = Driver(settings(), projector=projector)
    images = coded(*(png((shade, 0, 0)) for shade in range(0, 240, 10)))
    driver.start(tokens=prompt(driver, *range(len(images))), images=images)
    assert driver.hang_up() == 0


@pytest.mark.parametrize(
    ("changes", "width", "text"),
    [
        ({}, 192, "the engine could not load the projector"),
        ({"clip.projector_type": "unheard"}, 256, "the engine could not load the projector"),
    ],
)
def test_a_projector_that_does_not_fit_fails_the_load(
    tmp_path: Path, changes: dict[str, object], width: int, text: str
) -> None:
    path = write_projector(tmp_path / "mmproj.gguf", width=width, metadata=dict(changes))
    with Driver(projector=path) as driver:
        assert driver.failed is not None
        assert text in driver.failed.message
