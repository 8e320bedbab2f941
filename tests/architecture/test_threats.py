"""Every threat of the model is attacked by tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "threat-model.md").read_text()
ROWS = re.findall(r"^\| (\d+) \| ([^|]+) \| ([^|]+) \|$", PAGE, re.MULTILINE)
TESTS = {
    name
    for path in (ROOT / "tests").rglob("test_*.py")
    for name in re.findall(r"^\s*def (test_\w+)", path.read_text(), re.MULTILINE)
}
THREATS = 35
"""Rows of the threat model the design began with."""


def test_every_threat_has_its_row() -> None:
    assert [int(number) for number, _, _ in ROWS] == list(range(1, THREATS + 1))


@pytest.mark.parametrize(("number", "threat", "cell"), ROWS, ids=lambda text: text[:24])
def test_a_threat_is_attacked_by_tests_that_exist(number: str, threat: str, cell: str) -> None:
    named = re.findall(r"`(\w+)`", cell)
    assert named, f"{number} {threat}"
    assert [name for name in named if name not in TESTS] == []
