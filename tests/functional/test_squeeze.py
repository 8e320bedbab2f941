"""A real runner within a limit that is its plan and 3 %, and a plan that is refused below it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import squeeze
from hwprobe.settings import EngineSettings
from server.errors import ServerError

DEMO = Path(__file__).parents[1] / "demo-model" / "demo-f16.gguf"


@pytest.mark.engine
def test_full_slots_stay_within_the_plan_and_less_is_refused() -> None:
    """In a control group where one can be made; else the peak is compared with the limit."""
    settings = EngineSettings(num_ctx=512, slots=4, use_mmap=False)
    found = squeeze.squeeze(DEMO, settings)
    assert found.tokens > 0.98 * settings.num_ctx * settings.slots
    assert found.peak_bytes <= found.limit_bytes
    if found.method == "a control group":
        assert "no variant fits this machine" in found.refusal
        assert "short" in found.refusal


@pytest.mark.engine
def test_runner_that_is_given_too_little_is_told_apart_from_one_that_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The measurement itself: half of the plan is not enough, and that is seen."""
    monkeypatch.setattr(squeeze, "MORE_SHARE", -0.5)
    settings = EngineSettings(num_ctx=512, slots=4, use_mmap=False)
    with squeeze.group() as possible:
        limits = possible is not None
    if limits:
        with pytest.raises(ServerError, match=r"SIGKILL|memory|allocate"):
            squeeze.squeeze(DEMO, settings)
    else:
        found = squeeze.squeeze(DEMO, settings)
        assert found.peak_bytes > found.limit_bytes
