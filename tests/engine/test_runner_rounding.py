"""Where the engine makes answers depend on who else is computed: on how much, never on what.

Logits of one prompt are compared bit for bit. Greedy and seeded texts follow from them.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.engine.runner_driver import DEMO

pytestmark = pytest.mark.engine

ROUNDING = """
import json, sys
from pathlib import Path
import numpy as np
from hwprobe.settings import EngineSettings
from server.runner.library import Engine

engine = Engine(model_path=Path(sys.argv[1]), settings=EngineSettings(num_ctx=512, slots=8))

def tokens(seed, count):
    return tuple(np.random.default_rng(seed).integers(300, 900, count).tolist())

PROMPT, LAST = tokens(1, 120), tokens(2, 1)

def computed(*parts):
    engine.batch.clear()
    for sequence, start, ids in parts:
        engine.batch.add(ids, position=start, sequence=sequence, output=True)
    assert engine.decode() == 0
    return engine.logits(0).copy()

def logits(*, before=(), beside=(), at_once=120):
    engine.forget()
    for sequence, seed in enumerate(before, 1):
        computed((sequence, 0, tokens(seed, 50)))
    for start in range(0, 120, at_once):
        computed((0, start, PROMPT[start : start + at_once]))
    for sequence, seed in enumerate(beside, 1):
        computed((sequence, 0, tokens(seed, 50)))
    rows = [(sequence, 50, tokens(seed + 1, 1)) for sequence, seed in enumerate(beside, 1)]
    return computed((0, 120, LAST), *rows)

alone = logits()
pairs = {
    "nothing else": (alone, logits()),
    "what others say": (logits(beside=(10, 20, 30)), logits(beside=(40, 50, 60))),
    "what others hold": (logits(before=(10, 20, 30)), logits(before=(40, 50, 60))),
    "rows in the step": (alone, logits(beside=(10, 20, 30))),
    "place in the cache": (alone, logits(before=(10, 20, 30))),
    "cuts of the prompt": (alone, logits(at_once=40)),
}
told = {
    name: (bool(np.array_equal(one, other)), float(np.abs(one - other).max() / alone.std()))
    for name, (one, other) in pairs.items()
}
engine.close()
print(json.dumps(told))
"""


def test_logits_depend_on_how_much_else_is_computed_and_not_on_what() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ROUNDING, str(DEMO)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)

    equal = {name for name, (same, _difference) in told.items() if same}
    assert equal >= {"nothing else", "what others say", "what others hold"}
    assert max(difference for _same, difference in told.values()) < 0.02, told
