"""Making models of signed ones: what they remember, and what the site's policy allows."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.cli import run
from appliance.creating import Workshop, create
from appliance.creation import CreateRequest
from appliance.errors import OlderBundleError, SwitchedOffError, UnusableModelError
from appliance.model import Creation, Origin, parse_origin
from appliance.uploads import UploadLimits
from bundler.format.digest import Digest
from bundler.format.name import ModelName
from tests.appliance.killed_create import workshop
from tests.appliance.sites import Desk
from tests.fakes.forge import forge, tiny_model
from tests.fakes.gguf_writer import tiny_llama_metadata, tiny_llama_tensors, write_gguf

MADE = ModelName.parse("made")
DEMO = ModelName.parse("demo")


def shop(desk: Desk, **changes: Any) -> Workshop:
    return replace(workshop(desk.store.paths.root), **changes)


def make(desk: Desk, **fields: Any) -> None:
    request = CreateRequest(**{"name": "made", "base": "demo", **fields})
    create(request, shop(desk), lambda _: None)


def send(desk: Desk, data: bytes) -> str:
    digest = Digest.of(data)
    with desk.store.receiving(digest, UploadLimits(max_bytes=0, reserve_bytes=0)) as upload:
        upload.write(data)
    return str(digest)


@pytest.mark.parametrize("allowed", ["signed", "off"])
def test_weights_nobody_signed_are_refused_where_the_site_says_so(desk: Desk, allowed: str) -> None:
    desk.carry(forge())
    files = (("m.gguf", send(desk, tiny_model(3))),)
    with pytest.raises(SwitchedOffError):
        create(CreateRequest(name="made", files=files), shop(desk, allowed=allowed), print)
    make(desk, base="", files=files)  # allowed before the policy was
    request = CreateRequest(name="grandchild", base="made", system="x")
    with pytest.raises(SwitchedOffError):
        create(request, shop(desk, allowed=allowed), print)


def test_signed_weights_may_be_dressed_anew_and_keep_their_bundle(desk: Desk) -> None:
    desk.carry(forge())
    request = CreateRequest(name="made", base="demo", system="x")
    create(request, shop(desk, allowed="signed"), lambda _: None)
    made, base = desk.store.resolve(MADE), desk.store.resolve(DEMO)
    assert made.provenance == base.provenance
    assert made.creation is not None
    assert (made.creation.base, made.creation.weights) == ("demo:latest", "signed")
    assert made.signed
    grandchild = CreateRequest(name="grandchild", base="made", system="y")
    create(grandchild, shop(desk, allowed="signed"), lambda _: None)
    assert desk.store.resolve(ModelName.parse("grandchild")).signed


def test_a_model_made_here_does_not_let_an_older_bundle_in(desk: Desk) -> None:
    desk.carry(forge(seq=2))
    make(desk, system="x")
    desk.store.remove(DEMO)
    with pytest.raises(OlderBundleError):
        desk.take(forge(seq=1).write(desk.medium / "old"))


def test_an_import_takes_the_name_of_a_model_that_was_made_of_the_same_weights(desk: Desk) -> None:
    weights = tiny_model(1)
    make(desk, name="demo", base="", files=(("m.gguf", send(desk, weights)),))
    assert not desk.store.resolve(DEMO).signed
    assert desk.carry(forge({"F32": weights})).changed
    assert desk.store.resolve(DEMO).signed


def test_it_is_shown_that_nobody_signed_it(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    make(desk, base="", files=(("m.gguf", send(desk, tiny_model(3))),))
    store = ["--store", str(desk.store.paths.root)]
    assert run(["show", "made", *store]) == 0
    assert "unsigned" in capsys.readouterr().out
    assert run(["list", "--json", *store]) == 0
    (listed,) = json.loads(capsys.readouterr().out)["models"]
    assert listed["bundle"] is None
    assert listed["made_here"]["weights"] == "unsigned"


def test_unused_blobs_past_their_grace_go_when_the_next_model_is_made(desk: Desk) -> None:
    desk.carry(forge())
    sent = desk.store.paths.blob(Digest.parse(send(desk, b"never used")))
    make(desk, system="x")
    assert sent.exists()
    request = CreateRequest(name="made", base="demo", system="y")
    create(request, shop(desk, now_s=workshop(sent).now_s + 90_000), lambda _: None)
    assert not sent.exists()


TEXTS = st.text(max_size=20)


@given(
    base=TEXTS,
    pairs=st.lists(st.tuples(TEXTS, TEXTS), max_size=3).map(tuple),
    template=st.none() | TEXTS,
    licenses=st.lists(TEXTS, max_size=3).map(tuple),
    parameters=st.dictionaries(TEXTS, st.integers() | st.booleans() | st.lists(TEXTS), max_size=3),
)
def test_a_request_survives_the_pipe(
    base: str,
    pairs: tuple[tuple[str, str], ...],
    template: str | None,
    licenses: tuple[str, ...],
    parameters: dict[str, Any],
) -> None:
    request = CreateRequest(
        name="x",
        base=base,
        files=pairs,
        adapters=pairs,
        template=template,
        licenses=licenses,
        parameters=parameters,
        messages=pairs,
    )
    assert CreateRequest.from_json(json.loads(json.dumps(request.to_json()))) == request


def test_a_record_of_origin_reads_back(desk: Desk) -> None:
    desk.carry(forge())
    provenance = desk.store.resolve(DEMO).provenance
    creation = Creation(base="demo", weights="signed", created_at="2026-11-25T00:00:00Z")
    for origin in (
        Origin(provenance=provenance),
        Origin(creation=creation),
        Origin(provenance=provenance, creation=creation),
    ):
        assert parse_origin(origin.encode()) == origin


def test_an_import_of_a_layout_of_ollamas_own_is_refused_by_name(desk: Desk) -> None:
    folder = desk.medium / "foreign.gguf"
    keys = {
        key.replace("llama.", "gptoss."): value
        for key, value in tiny_llama_metadata(**{"general.architecture": "gptoss"}).items()
    }
    data = write_gguf(folder, keys, tiny_llama_tensors()).read_bytes()
    folder.unlink()
    with pytest.raises(UnusableModelError, match="in Ollama's own layout"):
        desk.carry(forge({"F32": data}))
