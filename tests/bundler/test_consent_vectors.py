"""Trust updates on paper, approvals and permits are read as when they were frozen."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from bundler.format import errors
from bundler.format.chain import verify_first, walk
from bundler.format.consent import verify_approval, verify_permit
from bundler.format.envelope import KeyRole
from bundler.format.paper import join
from bundler.format.update import parse_update
from tests.fakes.forge import trusting
from tests.fakes.roots import make_root, signed
from tests.vectors.make_consent_vectors import ALICE, BOB, SITE, STATEMENT, vectors

VECTORS = Path(__file__).parents[1] / "vectors" / "consents-v1"
CASES: dict[str, Any] = json.loads((VECTORS / "expectations.json").read_bytes())
FROZEN = "7fd00ba8e4f9b2d54899e938f6bf15c1f6cbd1098839b7acaae32b73d9295e8a"
"""SHA-256 over the names and bytes of every file, in order: they never change."""
ROLE = KeyRole(keys=trusting(ALICE, BOB), threshold=2)


def read(kind: str, data: bytes) -> None:
    if kind == "update":
        found = parse_update(join(data.decode().splitlines()))
        roots = walk(verify_first(signed(make_root())), found.get)
        assert [one.root.version for one in roots] == [2, 3]
    elif kind == "approval":
        assert verify_approval(data, ROLE, statement=STATEMENT, site=SITE)
    else:
        assert verify_permit(data, ROLE).permit.statement == STATEMENT


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_consent_is_read_as_it_was_when_it_was_frozen(name: str) -> None:
    case, data = CASES[name], (VECTORS / name).read_bytes()
    if case["outcome"] == "ok":
        read(case["kind"], data)
        return
    with pytest.raises(getattr(errors, case["outcome"])):
        read(case["kind"], data)


def test_no_consent_was_edited_or_forgotten() -> None:
    files = sorted(path for path in VECTORS.iterdir() if path.name != "expectations.json")
    assert {path.name for path in files} == set(CASES) == set(vectors())
    found = hashlib.sha256()
    for path in files:
        found.update(f"{path.name}\n".encode() + path.read_bytes())
    assert found.hexdigest() == FROZEN


def test_the_writer_still_writes_what_it_wrote_when_they_were_frozen() -> None:
    for name, vector in vectors().items():
        if vector.kind != "update":  # another build of zlib may write other bytes
            assert (VECTORS / name).read_bytes() == vector.data, name
