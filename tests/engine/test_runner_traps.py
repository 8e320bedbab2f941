"""Every call that would end the process is refused before the engine gets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hwprobe.settings import EngineSettings
from server.runner import protocol
from tests.engine.runner_driver import DEMO, Driver, settings
from tests.fakes import trap_child

pytestmark = pytest.mark.engine

GRAMMARS = frozenset(
    {
        "grammar of nothing",
        "grammar with a zero byte",
        "grammar the engine does not take",
        "grammar without its root",
    }
)
"""A client's mistake, and told to it; the others are ours."""


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-P", trap_child.__file__],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("case", [*trap_child.CASES, "closed engine"])
def test_misuse_is_refused_before_the_call(told: dict[str, Any], case: str) -> None:
    kind, message = told["raised"][case]

    assert kind == ("EngineRefusedError" if case in GRAMMARS else "MisuseError"), message
    assert message


def test_engine_answers_as_before_after_all_of_it(told: dict[str, Any]) -> None:
    assert told["same"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"kv_type": "q8_0", "flash_attention": False}, "flash_attention"),
        ({"kv_type": "q4_0", "flash_attention": False}, "flash_attention"),
        ({"num_ctx": 1 << 30, "slots": 2}, "num_ctx"),
        ({"num_ctx": 0}, "num_ctx"),
        ({"num_batch": 32}, "num_ubatch"),
        ({"pooled": True, "num_ubatch": 64}, "num_ubatch"),
        ({"slots": 0}, "slots"),
    ],
)
def test_settings_that_the_engine_would_not_survive_are_no_settings(
    changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        settings(**changes)


class TestLoads:
    def refused(self, engine: EngineSettings, *adapters: tuple[str, float]) -> str:
        with Driver(load=False) as driver:
            load = protocol.Load(model_path=str(DEMO), settings=engine, adapters=adapters)
            driver.send(load)
            driver.until(lambda: driver.ready is not None or driver.failed is not None)
            assert driver.ready is None
            assert driver.failed is not None
            message = driver.failed.message
        assert driver.process.returncode == 1  # by itself: no signal
        return message

    def test_context_beyond_the_machine_is_refused_not_killed(self) -> None:
        assert "num_ctx" in self.refused(settings(num_ctx=2_000_000_000, slots=1))

    def test_file_that_is_no_adapter_is_refused(self, tmp_path: Path) -> None:
        text = tmp_path / "a.gguf"
        text.write_bytes(b"GGUF" + bytes(64))

        assert "adapter" in self.refused(settings(), (str(text), 1.0))

    def test_model_is_no_adapter(self) -> None:
        assert "adapter" in self.refused(settings(), (str(DEMO), 1.0))
