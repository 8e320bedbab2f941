"""Many requests that come, go and leave at once: nobody's answer changes and nothing is lost."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from server.runner import protocol
from tests.engine.runner_driver import DEMO, Driver, settings

pytestmark = pytest.mark.engine

CASES: list[dict[str, Any]] = json.loads(DEMO.with_name("golden.json").read_text())["cases"]


def test_greedy_text_is_the_same_alone_and_among_fifteen_others() -> None:
    with Driver(settings(num_ctx=512, slots=16)) as driver:
        for case in CASES[:3]:
            length = len(case["tokens"]) + 1
            alone = driver.generate(case["prompt"], num_predict=length)
            others = [
                driver.start(f"{number} {'word ' * (7 * number)}", num_predict=40 + number)
                for number in range(15)
            ]
            among = driver.generate(case["prompt"], num_predict=length)
            for other in others:
                assert driver.finish(other).fault is None
            assert among.text == alone.text == case["text"]
            assert list(among.tokens) == case["tokens"]


def test_storm_of_cancels_in_a_full_cache_ends_every_request_once() -> None:
    """The driver itself refuses a row behind the last one of a request."""
    dice = random.Random(20261125)
    with Driver(settings(num_ctx=256, slots=4, num_batch=64, num_ubatch=64)) as driver:
        requests, cancelled = [], set()
        for number in range(200):
            prompt = " ".join(f"w{dice.randrange(50)}" for _ in range(dice.randrange(1, 60)))
            requests.append(driver.start(prompt, num_predict=dice.choice([1, 5, 150])))
            for _ in range(dice.randrange(3)):
                victim = dice.choice(requests)
                cancelled.add(victim)
                driver.send(protocol.Cancel(id=victim))
            if number % 20 == 0:
                driver.read(0.05)
        rows = {request: driver.finish(request) for request in requests}
        case = CASES[0]
        after = driver.generate(case["prompt"], num_predict=len(case["tokens"]) + 1)

    assert [row.fault for row in rows.values()] == [None] * 200
    reasons = {request: row.done for request, row in rows.items()}
    assert {request for request, done in reasons.items() if done == "cancelled"} <= cancelled
    assert "cancelled" in reasons.values()
    assert after.text == case["text"]
