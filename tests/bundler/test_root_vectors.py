from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from bundler.format import errors
from bundler.format.chain import verify_first, walk
from bundler.format.root import encode_root
from tests.vectors.make_root_vectors import vectors

VECTORS = Path(__file__).parents[1] / "vectors" / "root-v1"
CASES: dict[str, Any] = json.loads((VECTORS / "expectations.json").read_bytes())
FROZEN = "344eca812038e6b91906366b0a0bf165aac5812fd6c93cdae603e20a2f90e37b"
"""SHA-256 over the names and bytes of every vector's files, in order: they never change."""


def read(name: str, version: int) -> bytes | None:
    path = VECTORS / name / f"{version}.root.dsse.json"
    return path.read_bytes() if path.exists() else None


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_chain_is_read_as_it_was_when_it_was_frozen(name: str) -> None:
    case = CASES[name]
    first = read(name, 1)
    assert first is not None
    pinned = verify_first(first)
    if case["outcome"] == "ok":
        (*_, last) = (pinned, *walk(pinned, lambda version: read(name, version)))
        assert last.root.version == case["version"]
        assert encode_root(last.root) == last.payload
        return
    with pytest.raises(getattr(errors, case["outcome"])):
        walk(pinned, lambda version: read(name, version))


def test_no_chain_was_edited_or_forgotten() -> None:
    files = sorted(VECTORS.glob("*/*.root.dsse.json"))
    assert {path.parent.name for path in files} == set(CASES) == set(vectors())
    found = hashlib.sha256()
    for path in files:
        found.update(f"{path.parent.name}/{path.name}\n".encode() + path.read_bytes())
    assert found.hexdigest() == FROZEN
