from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from bundler.format import envelope, errors
from bundler.format.errors import BundleError
from bundler.format.keys import PublicKey
from bundler.format.manifest import encode_manifest, identified
from bundler.format.statement import parse_manifest
from tests.fakes.forge import unpack
from tests.vectors.make_vectors import vectors

VECTORS = Path(__file__).parents[1] / "vectors" / "v1"
EXPECTATIONS: dict[str, Any] = json.loads((VECTORS / "expectations.json").read_bytes())
CASES: dict[str, Any] = EXPECTATIONS["cases"]


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_vector_is_read_as_it_was_when_it_was_frozen(name: str) -> None:
    case = CASES[name]
    trusted = [PublicKey.parse(EXPECTATIONS["keys"][key]) for key in case["trusted"]]
    keys = {key.key_id: key for key in trusted}
    if case["outcome"] == "ok":
        files = unpack(VECTORS / name, keys, case["threshold"])
        assert sorted(files) == case["files"]
        for digest, data in files.items():
            assert digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
        return
    with pytest.raises(getattr(errors, case["outcome"])) as caught:
        unpack(VECTORS / name, keys, case["threshold"])
    assert isinstance(caught.value, BundleError)
    assert caught.value.exit_code == case["exit_code"]


def test_no_vector_was_edited_or_forgotten() -> None:
    lines = (VECTORS / "SHA256SUMS").read_text().splitlines()
    listed = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    found = {
        str(path.relative_to(VECTORS)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in VECTORS.rglob("*")
        if path.is_file() and path.parent != VECTORS
    }
    assert found == listed
    assert {Path(name).parts[0] for name in found} == set(CASES) == set(vectors())


def test_the_writer_still_writes_what_it_wrote_when_the_vectors_were_frozen() -> None:
    for name, case in CASES.items():
        if case["outcome"] != "ok" or name == "honest-other-spelling":
            continue
        (path,) = (VECTORS / name).rglob("bundle.dsse.json")
        frozen = envelope.parse(path.read_bytes())
        manifest = parse_manifest(frozen.payload)
        assert encode_manifest(identified(manifest)) == frozen.payload, name
        assert envelope.encode(frozen) == path.read_bytes(), name
