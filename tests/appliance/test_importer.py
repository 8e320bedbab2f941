"""What an import does when nothing is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from appliance.errors import ModelTooLargeError, RequestError
from appliance.journal import Journal
from bundler.format.digest import Digest
from bundler.format.name import ModelName
from tests.appliance.sites import CRAMPED, Desk, snapshot
from tests.fakes.forge import forge, tiny_model

TWO = {"Q8_0": tiny_model(1), "F32": tiny_model(2)}


def test_an_imported_model_is_byte_for_byte_the_packed_file(desk: Desk) -> None:
    data = tiny_model(7)
    desk.carry(forge({"F32": data}))
    model = desk.store.resolve(ModelName.parse("demo"))
    assert model.model_path.read_bytes() == data
    assert model.model_path.name == f"sha256-{Digest.of(data).hex}"
    assert model.model_path.stat().st_mode & 0o777 == 0o444


@pytest.mark.parametrize("encoding", ["identity", "zstd-frames"])
def test_every_encoding_gives_the_same_file(desk: Desk, encoding: str) -> None:
    data = tiny_model(7)
    desk.carry(forge({"F32": data}, encoding=encoding, segment_bytes=9000))  # type: ignore[arg-type]
    assert desk.store.resolve(ModelName.parse("demo")).model_path.read_bytes() == data


def test_layers_become_the_model_s_texts_and_parameters(desk: Desk) -> None:
    layers = (
        ("template", b"{{ .Prompt }}"),
        ("system", b"Be brief."),
        ("params", b'{"stop":["<end>"],"temperature":0.5}'),
        ("messages", b'[{"role":"user","content":"hi"}]'),
        ("license", b"MIT"),
        ("license", b"and more"),
    )
    desk.carry(forge(layers=layers))  # type: ignore[arg-type]
    model = desk.store.resolve(ModelName.parse("demo"))
    assert model.template == "{{ .Prompt }}"
    assert model.system == "Be brief."
    assert model.parameters == {"stop": ["<end>"], "temperature": 0.5}
    assert model.messages == (("user", "hi"),)
    assert model.licenses == ("MIT", "and more")


def test_only_the_chosen_variant_is_read_and_installed(desk: Desk) -> None:
    bundle = forge(TWO)
    directory = bundle.write(desk.medium)
    other = next(
        artifact
        for artifact in bundle.manifest.artifacts
        if artifact.digest != bundle.manifest.models[0].variants[1].artifact
    )
    for segment in other.segments:
        bundle.blob_path(desk.medium, segment.digest).unlink()
    receipt = desk.take(directory)
    assert [entry.variant for entry in receipt.installed] == ["f32"]
    assert desk.names() == ["demo:latest"]


def test_a_variant_asked_for_gets_the_model_s_own_name(desk: Desk) -> None:
    desk.carry(forge(TWO), variants=("q8_0",))
    model = desk.store.resolve(ModelName.parse("demo"))
    assert model.provenance is not None
    assert model.provenance.variant == "q8_0"


def test_all_variants_get_tags_besides_the_chosen_one(desk: Desk) -> None:
    desk.carry(forge(TWO), all_variants=True)
    assert desk.names() == ["demo:latest", "demo:q8_0"]


def test_a_name_takes_over_what_another_gives_up_in_the_same_import(desk: Desk) -> None:
    """``demo:latest`` leaves the weights that ``demo:q8_0`` is about to stand for."""
    desk.carry(forge(TWO), variants=("q8_0",))
    receipt = desk.carry(forge(TWO), all_variants=True)
    assert desk.names() == ["demo:latest", "demo:q8_0"]
    assert desk.store.survey().faults == ()
    for entry in receipt.installed:
        model = desk.store.resolve(ModelName.parse(entry.name))
        assert model.provenance is not None
        assert model.provenance.variant == entry.variant
        assert model.model_path.is_file()


def test_an_unknown_variant_is_refused(desk: Desk) -> None:
    with pytest.raises(RequestError, match="q8_0, f32"):
        desk.carry(forge(TWO), variants=("q2_k",))


def test_a_model_that_fits_nowhere_is_refused(desk: Desk) -> None:
    with pytest.raises(ModelTooLargeError) as caught:
        desk.on(CRAMPED).carry(forge(TWO))
    assert caught.value.exit_code == 14


def test_a_variant_asked_for_comes_in_although_it_does_not_fit(desk: Desk) -> None:
    cramped = desk.on(CRAMPED)
    cramped.carry(forge(TWO), variants=("f32",))
    assert desk.names() == ["demo:latest"]
    assert "does not fit" in cramped.observer.choices[0].warning


def test_the_same_bundle_again_changes_nothing(desk: Desk) -> None:
    bundle = forge()
    assert desk.carry(bundle).changed
    before = snapshot(desk.store.paths.root)
    journal = Journal(desk.store.paths.journal).events()
    receipt = desk.carry(bundle)
    assert not receipt.changed
    assert receipt.number == 0
    assert snapshot(desk.store.paths.root) == before
    assert Journal(desk.store.paths.journal).events() == journal


def test_a_rotten_blob_is_noticed_and_replaced(desk: Desk) -> None:
    data = tiny_model(3)
    bundle = forge({"F32": data})
    desk.carry(bundle)
    path = desk.store.paths.blob(Digest.of(data))
    path.chmod(0o644)
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert desk.carry(bundle).changed
    assert path.read_bytes() == data


def test_a_newer_bundle_replaces_the_model_and_frees_the_old_weights(desk: Desk) -> None:
    """Where none is kept for a rollback; see test_rolling."""
    desk = desk.configured(store__previous=0)
    old = tiny_model(1)
    desk.carry(forge({"F32": old}, seq=1))
    desk.carry(forge({"F32": tiny_model(2)}, seq=2))
    assert desk.names() == ["demo:latest"]
    assert not desk.store.paths.blob(Digest.of(old)).exists()
    assert len(list(desk.store.paths.blobs.iterdir())) == 2  # weights and config
    assert len(list(desk.store.paths.provenances.iterdir())) == 1


def test_staging_is_empty_after_an_import(desk: Desk) -> None:
    (desk.store.paths.staging / "left by an earlier run").write_bytes(b"?")
    desk.carry(forge())
    assert list(desk.store.paths.staging.iterdir()) == []


def test_the_medium_is_the_same_after_an_import(desk: Desk) -> None:
    directory = forge().write(desk.medium)
    before = snapshot(desk.medium)
    desk.take(directory)
    desk.check(directory)
    assert snapshot(desk.medium) == before


def test_the_receipts_are_chained_and_the_journal_tells_the_story(desk: Desk) -> None:
    desk.carry(forge(seq=1))
    desk.carry(forge({"F32": tiny_model(2)}, seq=2))
    folder = desk.store.paths.journal / "receipts"
    first, second = sorted(folder.iterdir())
    assert (first.name, second.name) == ("000001.json", "000002.json")
    assert json.loads(second.read_bytes())["previous"] == str(Digest.of(first.read_bytes()))
    events = Journal(desk.store.paths.journal).events()
    assert [event.kind for event in events] == ["imported", "imported"]
    assert events[1].details["names"] == ["demo:latest"]


def test_ids_do_not_depend_on_the_site(desk: Desk, tmp_path: Path) -> None:
    from tests.appliance.sites import make_desk

    (tmp_path / "other").mkdir()
    other = make_desk(tmp_path / "other")
    bundle = forge()
    first, second = desk.carry(bundle), other.carry(bundle)
    assert first.installed == second.installed


def test_the_medium_root_and_the_bundle_directory_both_work(desk: Desk) -> None:
    bundle = forge()
    bundle.write(desk.medium)
    assert desk.take(desk.medium).changed
    assert not desk.take(desk.medium / "satchel").changed


def test_verify_finds_nothing_wrong_and_writes_nothing(desk: Desk) -> None:
    bundle = forge(TWO, encoding="zstd-frames", layers=(("license", b"MIT"),))
    directory = bundle.write(desk.medium)
    before = snapshot(desk.store.paths.root)
    report = desk.check(directory)
    assert report.findings == ()
    assert report.checked_bytes == sum(len(data) for data in TWO.values())
    assert snapshot(desk.store.paths.root) == before
    assert not (desk.store.paths.journal / "events.jsonl").exists()


def test_progress_adds_up_to_the_size_of_the_file(desk: Desk) -> None:
    data = tiny_model(7)
    desk.carry(forge({"F32": data}))
    assert desk.observer.done_bytes == len(data)
