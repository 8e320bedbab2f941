"""Every parser of untrusted bytes, in a child with 256 MiB and two seconds of CPU per input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COUNT = int(os.environ.get("SATCHEL_FUZZ_INPUTS", "150"))
"""Inputs per parser and seed."""


@pytest.mark.parametrize("seed", range(2))
def test_mutated_documents_are_refused_or_read_within_bounds(seed: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fakes.fuzz_child", str(seed), str(COUNT)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["taken"].values()) == {COUNT}
    assert len(found["taken"]) == 12
