"""Each link from the signature to the served file broken in turn, all links above it whole.

A reader that skips one comparison takes one of these bundles: apt-offline checked the list's
signature and not the list's files. Every lie here is signed again as far up as it has to be.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance import waiting
from appliance.approving import add_approval, go_on
from appliance.errors import ApprovalMissingError, UnusableModelError
from appliance.importer import import_bundle
from appliance.policyfile import load_policy, save_policy
from appliance.site import Request
from bundler.format.digest import Digest
from bundler.format.errors import (
    BadSignatureError,
    BundleError,
    ChunkIndexError,
    DamagedError,
    ManifestError,
)
from bundler.format.index import encode_index, parse_index
from bundler.format.keys import SigningKey
from bundler.format.manifest import BlobRef, sum_totals
from tests.appliance.sites import Desk, make_desk, snapshot
from tests.fakes.forge import Forged, flip, forge, tiny_model

OLD = {"F32": tiny_model(1)}
NEW = {"F32": tiny_model(2)}
HONEST = forge(NEW, seq=2, encoding="zstd-frames", layers=[("license", b"MIT")])


def with_index(bundle: Forged, data: bytes) -> Forged:
    """The bundle with another chunk index, which the statement names as its own."""
    (artifact,) = bundle.manifest.artifacts
    index = BlobRef(digest=Digest.of(data), size_bytes=len(data))
    artifacts = (replace(artifact, index=index),)
    changed = bundle.with_manifest(
        artifacts=artifacts, totals=sum_totals(artifacts, bundle.manifest.blobs)
    )
    return changed.with_file(data, named=index.digest)


def the_index(bundle: Forged) -> Any:
    return parse_index(bundle.files[bundle.manifest.artifacts[0].index.digest.hex])


def envelope_to_statement(medium: Path) -> Path:
    directory = HONEST.write(medium)
    members = json.loads((directory / "bundle.dsse.json").read_bytes())
    other = json.loads(HONEST.with_bundle(notes="other").envelope())
    members["payload"] = other["payload"]
    (directory / "bundle.dsse.json").write_text(json.dumps(members))
    return directory


def statement_to_index(medium: Path) -> Path:
    other = forge({"F32": tiny_model(3)}, encoding="zstd-frames")
    named = HONEST.manifest.artifacts[0].index.digest
    theirs = other.files[other.manifest.artifacts[0].index.digest.hex]
    return HONEST.with_file(theirs, named=named).write(medium)


def index_to_statement(medium: Path) -> Path:
    other = the_index(forge({"F32": tiny_model(3)}, encoding="zstd-frames"))
    return with_index(HONEST, encode_index(other)).write(medium)


def index_to_stored_chunk(medium: Path) -> Path:
    directory = HONEST.write(medium)
    flip(HONEST.segment_path(medium), 40)
    return directory


def stored_to_plain_chunk(medium: Path) -> Path:
    index = the_index(HONEST)
    first = replace(index.records[0], plain_digest=hashlib.sha256(b"other").digest())
    return with_index(
        HONEST, encode_index(replace(index, records=(first, *index.records[1:])))
    ).write(medium)


def chunks_to_file(medium: Path) -> Path:
    index = the_index(HONEST)
    lie = Digest.of(b"another file")
    bundle = with_index(HONEST, encode_index(replace(index, file_digest=lie)))
    (artifact,) = bundle.manifest.artifacts
    (model,) = bundle.manifest.models
    variants = tuple(replace(one, artifact=lie) for one in model.variants)
    return bundle.with_manifest(
        artifacts=(replace(artifact, digest=lie),), models=(replace(model, variants=variants),)
    ).write(medium)


def file_to_facts(medium: Path) -> Path:
    (artifact,) = HONEST.manifest.artifacts
    assert artifact.gguf is not None
    facts = replace(artifact.gguf, metadata_digest=Digest.of(b"other"))
    return HONEST.with_manifest(artifacts=(replace(artifact, gguf=facts),)).write(medium)


def file_to_profile(medium: Path) -> Path:
    def lie(statement: dict[str, Any]) -> None:
        profile = statement["predicate"]["models"][0]["variants"][0]["profile"]
        profile["context_length"] += 1

    return HONEST.edited(lie).write(medium)


def statement_to_layer(medium: Path) -> Path:
    return HONEST.with_file(b"GPL", named=Digest.of(b"MIT")).write(medium)


def statement_to_itself(medium: Path) -> Path:
    def lie(statement: dict[str, Any]) -> None:
        statement["subject"][0]["digest"]["sha256"] = "0" * 64

    return HONEST.edited(lie).write(medium)


LINKS: list[tuple[Callable[[Path], Path], type[Exception]]] = [
    (envelope_to_statement, BadSignatureError),
    (statement_to_itself, ManifestError),
    (statement_to_index, DamagedError),
    (index_to_statement, ChunkIndexError),
    (index_to_stored_chunk, DamagedError),
    (stored_to_plain_chunk, DamagedError),
    (chunks_to_file, DamagedError),
    (file_to_facts, UnusableModelError),
    (file_to_profile, UnusableModelError),
    (statement_to_layer, DamagedError),
]


@pytest.fixture
def served(tmp_path: Path) -> Desk:
    """A site that serves a model, whose successor is a lie."""
    desk = make_desk(tmp_path)
    desk.carry(forge(OLD, seq=1))
    return desk


@pytest.mark.parametrize(("lie", "error"), LINKS, ids=[lie.__name__ for lie, _ in LINKS])
def test_a_broken_link_is_refused_and_the_old_model_stays(
    served: Desk, lie: Callable[[Path], Path], error: type[Exception]
) -> None:
    directory = lie(served.medium)
    before = snapshot(served.store.paths.root)
    assert any(isinstance(one, error) for one in _findings(served, directory))
    with pytest.raises(error):
        served.take(directory)
    after = snapshot(served.store.paths.root)
    assert {path: after.get(path) for path in before} == before
    assert [path for path in after if path not in before and "staging" not in path] == []
    assert served.store.list()[0].model_path.read_bytes() == OLD["F32"]


def _findings(desk: Desk, directory: Path) -> list[Exception]:
    try:
        return list(desk.check(directory).findings)
    except BundleError as refused:
        return [refused]


def test_nothing_is_broken_in_the_honest_bundle(served: Desk) -> None:
    assert served.take(HONEST.write(served.medium)).changed


def test_a_medium_that_changes_while_it_is_read_gives_signed_bytes_or_nothing(
    served: Desk,
) -> None:
    """Bytes that differ on each read: whatever is stored was hashed, or nothing is."""
    directory = HONEST.write(served.medium)
    segment = HONEST.segment_path(served.medium)
    honest = segment.read_bytes()
    stop = threading.Event()

    def lie() -> None:
        place = 0
        with segment.open("r+b") as file:
            while not stop.is_set():
                place = (place + 977) % len(honest)
                os.pwrite(file.fileno(), bytes([honest[place] ^ 1]), place)
                os.pwrite(file.fileno(), honest[place : place + 1], place)

    liar = threading.Thread(target=lie)
    liar.start()
    try:
        for _ in range(5):
            try:
                import_bundle(Request(medium=directory), served.site, served.observer)
            except BundleError:
                continue
    finally:
        stop.set()
        liar.join()
    (model,) = served.store.list()
    assert model.model_path.read_bytes() in (OLD["F32"], NEW["F32"])
    for blob in served.store.paths.blobs.iterdir():
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name.removeprefix("sha256-")


def test_an_envelope_swapped_while_it_waits_for_approval_is_not_imported(served: Desk) -> None:
    alice = SigningKey.from_seed(b"A" * 32)
    with served.store.writing():
        policy = load_policy(served.store.paths.trust)
        policy = policy.with_approver(alice.public_key, label="alice", added_at="2026-11-20")
        save_policy(served.store.paths.trust, policy.with_approvals(1))
    with pytest.raises(ApprovalMissingError):
        served.take(HONEST.write(served.medium))
    one = add_approval("prod:2", alice, served.site).waiting
    (found,) = waiting.all_waiting(served.store.paths)
    (found.path / "bundle.dsse.json").write_bytes(HONEST.signed_by(alice).envelope())
    with pytest.raises(BundleError):
        go_on(one, served.site, served.observer)
    assert served.store.list()[0].model_path.read_bytes() == OLD["F32"]


ZSTD = shutil.which("zstd")

if ZSTD:  # the reference tool agrees, where it is installed

    def test_zstd_restores_a_segment_without_filters(tmp_path: Path) -> None:
        from bundler.format.chunks import ChunkEncoder
        from bundler.format.index import Codec, Filter

        plain = tiny_model(7)
        frames = b"".join(
            bytes(ChunkEncoder().encode(plain[at : at + 4096], Codec.ZSTD, Filter.NONE))
            for at in range(0, len(plain), 4096)
        )
        (tmp_path / "segment.zst").write_bytes(frames)
        done = subprocess.run(
            [str(ZSTD), "-dc", str(tmp_path / "segment.zst")], check=True, capture_output=True
        )
        assert done.stdout == plain
        assert (
            subprocess.run(
                [str(ZSTD), "-t", "-q", str(tmp_path / "segment.zst")], check=False
            ).returncode
            == 0
        )
