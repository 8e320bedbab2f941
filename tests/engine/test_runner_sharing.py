"""Common beginnings on the real engine: computed once, and no text changed by it."""

from __future__ import annotations

import pytest

from server.runner import protocol
from tests.engine.runner_driver import Driver, settings

pytestmark = pytest.mark.engine

BEGIN = tuple(5 + 7 * n % 3000 for n in range(400))
PROMPTS = [(*BEGIN, *range(20 * n + 10, 20 * n + 18)) for n in range(8)]


@pytest.fixture(scope="module")
def alone() -> list[str]:
    """Each prompt's text on an engine that has seen nothing."""
    texts = []
    with Driver(settings(num_ctx=512, slots=8)) as driver:
        for prompt in PROMPTS:
            texts.append(driver.generate(tokens=prompt, num_predict=8).text)
            driver.generate(tokens=tuple(range(2000, 2500)), num_predict=1)
    return texts


def test_eight_requests_at_once_compute_their_common_beginning_once(alone: list[str]) -> None:
    with Driver(settings(num_ctx=512, slots=8)) as driver:
        commands = [driver.command(tokens=prompt, num_predict=8) for prompt in PROMPTS]
        driver.send(*commands)
        rows = [driver.finish(command.id) for command in commands]

    assert sum(row.prompt_tokens - row.cached_tokens for row in rows) == 400 + 8 * 8
    assert [row.text for row in rows] == alone


def test_followers_survive_a_leader_that_is_cancelled(alone: list[str]) -> None:
    with Driver(settings(num_ctx=512, slots=8, num_batch=64, num_ubatch=64)) as driver:
        commands = [driver.command(tokens=prompt, num_predict=8) for prompt in PROMPTS]
        driver.send(*commands, protocol.Cancel(id=commands[0].id))
        rows = [driver.finish(command.id) for command in commands]

    assert [row.text for row in rows[1:]] == alone[1:]
    assert rows[0].done == "cancelled"


def test_scopes_share_nothing_and_answer_the_same(alone: list[str]) -> None:
    with Driver(settings(num_ctx=512, slots=2)) as driver:
        rows = [
            driver.generate(tokens=PROMPTS[n], num_predict=8, tenant=scope, scope=scope)
            for n, scope in ((0, "a"), (1, "b"), (2, "a"), (3, "b"))
        ]

    assert [row.cached_tokens for row in rows] == [0, 0, 400, 400]
    assert [row.text for row in rows] == alone[:4]
