"""Adapters in a real runner: other texts, the same again, and none at scale 0."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.runner import protocol
from tests.engine.runner_driver import DEMO, Driver, settings
from tests.fakes.adapters import write_adapter

pytestmark = pytest.mark.engine

PROMPT = "<|im_start|>user\nWhat colour is the sky?<|im_end|>\n<|im_start|>assistant\n"


def load(driver: Driver, *adapters: tuple[str, float]) -> Driver:
    driver.send(protocol.Load(model_path=str(DEMO), settings=settings(slots=3), adapters=adapters))
    driver.until(lambda: driver.ready is not None or driver.failed is not None)
    return driver


def say(driver: Driver, *lora: tuple[int, float]) -> str:
    return driver.generate(PROMPT, num_predict=16, lora=lora).text


def test_adapter_changes_the_text_and_scale_0_does_not(tmp_path: Path) -> None:
    path = str(write_adapter(tmp_path / "a.gguf", DEMO))
    with Driver(settings(slots=3)) as plain:
        base = plain.generate(PROMPT, num_predict=16).text
        assert plain.ready is not None
        before = sum(plain.ready.memory.values())
    with load(Driver(load=False), (path, 1.0)) as driver:
        usual = driver.generate(PROMPT, num_predict=16).text
        assert usual != base
        assert say(driver, (0, 1.0)) == usual
        assert say(driver, (0, 0.0)) == base
        assert say(driver) == base
        assert driver.generate(PROMPT, num_predict=16).text == usual
        assert driver.ready is not None
        size = Path(path).stat().st_size
        assert abs(sum(driver.ready.memory.values()) - before - size) < 64 << 10


def test_requests_at_different_scales_run_together_and_keep_their_texts(tmp_path: Path) -> None:
    path = str(write_adapter(tmp_path / "a.gguf", DEMO))
    other = str(write_adapter(tmp_path / "b.gguf", DEMO, seed=2))
    wishes: list[tuple[tuple[int, float], ...]] = [
        ((0, 1.0),),
        ((1, 1.0),),
        ((0, 0.5), (1, 0.5)),
        (),
    ]
    with load(Driver(load=False), (path, 1.0), (other, 0.0)) as driver:
        alone = [say(driver, *wish) for wish in wishes]
        started = [driver.start(PROMPT, num_predict=16, lora=wish) for wish in wishes]
        together = [driver.finish(request).text for request in started]
        unknown = driver.generate(PROMPT, num_predict=2, lora=((2, 1.0),))
    assert len(set(alone)) == 4
    assert together == alone
    assert unknown.fault == "lora: expected an id below 2, found 2"
    assert unknown.refused


def test_adapter_for_another_model_is_refused_at_load(tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "a.gguf", DEMO, metadata={"general.architecture": "gemma3"})
    with load(Driver(load=False), (str(path), 1.0)) as driver:
        assert driver.failed is not None
        assert "not an adapter for this model" in driver.failed.message
        assert str(tmp_path) not in driver.failed.message.partition(":")[0]
