from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bundler.errors import BundleExistsError, PackError
from bundler.format import envelope
from bundler.format.digest import Digest
from bundler.format.errors import BundleError, DamagedError, NoSpaceError
from bundler.format.modelfile import parse
from bundler.format.name import ModelName
from bundler.format.volume import find_bundles
from bundler.layers import model_layers
from bundler.pack import Packed, pack
from bundler.plan import PackRequest, check_room, make_plan, plan_lines
from bundler.progress import Silent
from bundler.signing import add_signature, open_envelope
from bundler.site import candidates, fit_source
from hwprobe.errors import GgufError, ProbeError
from hwprobe.gguf import ModelProfile, model_profile, read_header
from tests.fakes.forge import SECOND, STRANGER, TRUSTED, flip, tiny_model, trusting, unpack
from tests.fakes.small_disk import small_disk

EPOCH = datetime(2026, 11, 21, 2, tzinfo=UTC)
DEMO = Path(__file__).parents[1] / "demo-model" / "demo-f16.gguf"


def request_for(tmp_path: Path, **fields: Any) -> PackRequest:
    source = tmp_path / "tiny.gguf"
    if not source.exists():
        source.write_bytes(tiny_model())
    given: dict[str, Any] = {
        "source": source,
        "name": ModelName.parse("demo"),
        "out": tmp_path / "stick",
        "channel": "main",
        "seq": 1,
        "include_source": True,
        "keys": (TRUSTED,),
        "issued": EPOCH,
        "reproducible": True,
        "work": tmp_path,
    }
    return PackRequest(**{**given, **fields})


def run(request: PackRequest) -> Packed:
    profile = model_profile(read_header(request.source))
    return pack(request, make_plan(request, profile), Silent())


def files_of(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_a_packed_bundle_is_verified_and_gives_the_model_back(tmp_path: Path) -> None:
    packed = run(request_for(tmp_path))
    files = unpack(tmp_path / "stick", trusting(TRUSTED))
    assert files == {str(Digest.of(tiny_model())): tiny_model()}
    assert packed.directory == tmp_path / "stick" / "satchel" / "main-000001"
    assert not packed.was_there


def test_equal_inputs_make_equal_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    modelfile = parse("SYSTEM x\nPARAMETER temperature 0.5\nLICENSE MIT", require_from=False)
    for place in (first, second):
        place.mkdir()
        run(request_for(place, layers=model_layers(modelfile), threads=len(place.name)))
    assert files_of(first / "stick") == files_of(second / "stick")


def test_packing_again_finds_the_bundle_and_changes_nothing(tmp_path: Path) -> None:
    run(request_for(tmp_path, reproducible=False))
    before = files_of(tmp_path / "stick")
    later = replace(request_for(tmp_path, reproducible=False), issued=datetime.now(UTC))
    assert run(later).was_there
    assert files_of(tmp_path / "stick") == before


def test_another_bundle_of_the_same_number_is_refused(tmp_path: Path) -> None:
    run(request_for(tmp_path))
    before = files_of(tmp_path / "stick")
    with pytest.raises(BundleExistsError) as caught:
        run(request_for(tmp_path, notes="something else"))
    assert "--seq 2" in caught.value.hint
    assert files_of(tmp_path / "stick") == before


def test_a_bundle_that_is_there_but_damaged_is_refused(tmp_path: Path) -> None:
    packed = run(request_for(tmp_path))
    segment = packed.manifest.artifacts[0].segments[0]
    flip(packed.directory / "blobs" / "sha256" / segment.digest.hex, 500)
    with pytest.raises(DamagedError):
        run(request_for(tmp_path))


def test_a_bundle_that_is_there_but_signed_by_others_is_refused(tmp_path: Path) -> None:
    run(request_for(tmp_path))
    with pytest.raises(BundleError) as caught:
        run(request_for(tmp_path, keys=(SECOND,)))
    assert caught.value.exit_code == 11


def test_two_bundles_share_a_medium(tmp_path: Path) -> None:
    run(request_for(tmp_path))
    run(request_for(tmp_path, seq=2))
    assert len(find_bundles(tmp_path / "stick")) == 2


def test_several_keys_sign_at_once(tmp_path: Path) -> None:
    run(request_for(tmp_path, keys=(TRUSTED, SECOND)))
    assert unpack(tmp_path / "stick", trusting(TRUSTED, SECOND), threshold=2)


def test_the_envelope_is_the_last_file_written(tmp_path: Path) -> None:
    packed = run(request_for(tmp_path))
    marker = packed.directory / "bundle.dsse.json"
    others = [path for path in packed.directory.rglob("*") if path.is_file() and path != marker]
    assert all(path.stat().st_mtime_ns <= marker.stat().st_mtime_ns for path in others)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"keys": ()}, PackError),
        ({"channel": "Main"}, BundleError),
        ({"channel": ".."}, BundleError),
        ({"seq": 0}, BundleError),
        ({"seq": 2**53}, BundleError),
        ({"quantizations": ("Q9_X",)}, PackError),
        ({"quantizations": ("Q8_0", "q8_0")}, PackError),
        ({"quantizations": ("F32",)}, PackError),
    ],
)
def test_what_cannot_be_packed_is_refused_before_anything_is_written(
    tmp_path: Path, fields: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        run(request_for(tmp_path, **fields))
    assert not (tmp_path / "stick").exists()


@pytest.mark.parametrize(
    "fields", [{"audience": ("Site 7",)}, {"notes": "\x1b"}, {"licences": ("x" * 200,)}]
)
def test_what_the_reader_would_refuse_is_not_handed_out(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    with pytest.raises(BundleError):
        run(request_for(tmp_path, **fields))
    assert not (tmp_path / "stick" / "satchel").exists()


def test_a_source_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"PK\x03\x04 not a model")
    with pytest.raises(GgufError):
        run(request_for(tmp_path))


def test_a_quantized_source_is_not_quantized_again(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(
        tiny_model(ggml_type="Q8_0", metadata={"general.file_type": 7})
    )
    with pytest.raises(PackError, match="expected F32, F16 or BF16"):
        run(request_for(tmp_path, quantizations=("Q4_0",)))


def test_metadata_too_long_for_a_statement_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    (tmp_path / "tiny.gguf").write_bytes(tiny_model(metadata={"general.name": "x" * 70_000}))
    with pytest.raises(BundleError):
        run(request_for(tmp_path))
    assert not (tmp_path / "stick").exists()


def test_leftovers_of_an_interrupted_pack_are_replaced(tmp_path: Path) -> None:
    packed = run(request_for(tmp_path))
    before = files_of(tmp_path / "stick")
    (packed.directory / "bundle.dsse.json").unlink()
    (packed.directory / "blobs" / "sha256" / "part-3").write_bytes(b"half")
    assert not run(request_for(tmp_path)).was_there
    assert files_of(tmp_path / "stick") == before


def test_a_directory_with_other_peoples_files_is_left_alone(tmp_path: Path) -> None:
    directory = tmp_path / "stick" / "satchel" / "main-000001"
    directory.mkdir(parents=True)
    (directory / "thesis.odt").write_text("precious")
    with pytest.raises(BundleExistsError, match="leftovers"):
        run(request_for(tmp_path))
    assert files_of(directory) == {"thesis.odt": b"precious"}


def test_a_medium_without_room_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    request = request_for(tmp_path)
    plan = make_plan(request, model_profile(read_header(request.source)))
    with pytest.raises(NoSpaceError) as caught:
        pack(request, replace(plan, medium_bytes=1 << 60), Silent())
    assert "--out" in caught.value.hint
    assert not (tmp_path / "stick").exists()
    with pytest.raises(NoSpaceError):
        check_room(replace(plan, work_bytes=1 << 60), tmp_path / "stick", tmp_path / "work")


@pytest.mark.parametrize("place", ["satchel", "satchel/main-000001", "satchel/main-000001/blobs"])
def test_a_medium_whose_directories_lead_elsewhere_is_refused(tmp_path: Path, place: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link = tmp_path / "stick" / place
    link.parent.mkdir(parents=True)
    link.symlink_to(elsewhere)
    with contextlib.suppress(PackError):
        run(request_for(tmp_path))
    assert list(elsewhere.iterdir()) == []


def test_the_medium_itself_may_be_named_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "stick").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "stick")
    run(request_for(tmp_path, out=tmp_path / "link"))
    assert unpack(tmp_path / "stick", trusting(TRUSTED))


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "stick").write_text("x")
    with pytest.raises(BundleError):
        run(request_for(tmp_path))


def test_the_plan_names_every_variant_and_the_time_it_takes(tmp_path: Path) -> None:
    request = request_for(tmp_path, quantizations=("q8_0", "Q4_K_M"))
    text = "\n".join(plan_lines(make_plan(request, model_profile(read_header(request.source)))))
    assert "q8_0" in text
    assert "q4_k_m" in text
    assert "at 30 MB/s" in text


def test_the_statement_carries_what_placement_needs(tmp_path: Path) -> None:
    request = request_for(tmp_path)
    packed = run(request)
    profile = model_profile(read_header(request.source))
    (variant,) = packed.manifest.models[0].variants
    assert "chat_template" not in variant.profile
    assert ModelProfile.from_json(variant.profile) == replace(profile, chat_template=None)
    assert candidates(packed.manifest) == fit_source(tmp_path / "stick")
    with pytest.raises(ProbeError):
        fit_source(tmp_path / "nowhere")


def test_layers_and_modelfile_travel_as_signed_blobs(tmp_path: Path) -> None:
    text = b"SYSTEM be brief\nLICENSE MIT\nPARAMETER top_k 5\n"
    layers = model_layers(parse(text.decode(), require_from=False))
    packed = run(request_for(tmp_path, layers=layers, modelfile=text))
    (model,) = packed.manifest.models
    assert [layer.role for layer in model.layers] == ["system", "params", "license"]
    files = unpack(tmp_path / "stick", trusting(TRUSTED))
    assert [files[str(layer.digest)] for layer in model.layers] == [
        b"be brief",
        b'{"top_k":5}',
        b"MIT",
    ]
    assert model.modelfile is not None
    assert files[str(model.modelfile)] == text


def test_the_oci_documents_lead_to_the_same_files(tmp_path: Path) -> None:
    packed = run(request_for(tmp_path, layers=(("license", b"MIT"),)))
    blobs = packed.directory / "blobs" / "sha256"
    layout = json.loads((packed.directory / "oci-layout").read_bytes())
    assert layout == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((packed.directory / "index.json").read_bytes())
    for entry in index["manifests"]:
        data = (blobs / entry["digest"].removeprefix("sha256:")).read_bytes()
        assert (str(Digest.of(data)), len(data)) == (entry["digest"], entry["size"])
        document = json.loads(data)
        for layer in [document["config"], *document["layers"]]:
            path = blobs / layer["digest"].removeprefix("sha256:")
            assert path.stat().st_size == layer["size"]


def test_a_second_signature_is_added_without_the_weights(tmp_path: Path) -> None:
    packed = run(request_for(tmp_path))
    alone = tmp_path / "bundle.dsse.json"
    shutil.copy(packed.directory / "bundle.dsse.json", alone)
    signers = add_signature(open_envelope(alone), [SECOND])
    assert set(signers) == {TRUSTED.public_key.key_id, SECOND.public_key.key_id}
    shutil.copy(alone, packed.directory / "bundle.dsse.json")
    assert unpack(tmp_path / "stick", trusting(TRUSTED, SECOND), threshold=2)


def test_signing_twice_with_one_key_changes_nothing(tmp_path: Path) -> None:
    run(request_for(tmp_path))
    before = files_of(tmp_path / "stick")
    add_signature(open_envelope(tmp_path / "stick"), [TRUSTED])
    assert files_of(tmp_path / "stick") == before


def test_which_of_several_bundles_to_sign_must_be_said(tmp_path: Path) -> None:
    run(request_for(tmp_path))
    run(request_for(tmp_path, seq=2))
    with pytest.raises(BundleError, match="expected one bundle"):
        open_envelope(tmp_path / "stick")


def mutations() -> list[Callable[[bytes], bytes]]:
    return [
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data[:0],
        lambda data: bytes(len(data)),
        lambda data: (
            data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
        ),
    ]


def test_no_damaged_file_of_a_bundle_is_read_as_something_else(tmp_path: Path) -> None:
    """Every signed file, damaged in every way: refused, and the refusal is a bundle's error."""
    packed = run(request_for(tmp_path, layers=(("system", b"be brief"),)))
    medium = tmp_path / "stick"
    honest = unpack(medium, trusting(TRUSTED))
    for path in sorted(packed.directory.rglob("*")):
        if not path.is_file():
            continue
        original = path.read_bytes()
        signed = path.name not in ("oci-layout", "index.json")
        for mutate in mutations():
            path.write_bytes(mutate(original))
            try:
                read = unpack(medium, trusting(TRUSTED))
            except BundleError:
                assert signed, path
            else:
                assert read == honest, path
        path.write_bytes(original)


def test_a_strangers_bundle_beside_ours_does_not_help_them(tmp_path: Path) -> None:
    packed = run(request_for(tmp_path, keys=(STRANGER,)))
    data = (packed.directory / "bundle.dsse.json").read_bytes()
    with pytest.raises(BundleError):
        envelope.verify(data, keys=trusting(TRUSTED), threshold=1)


PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.bundler.test_pack import request_for, run
run(request_for(Path(sys.argv[2])))
"""
ROOT = Path(__file__).parents[2]


@pytest.mark.faults
def test_a_pack_killed_at_any_moment_leaves_no_finished_bundle(tmp_path: Path) -> None:
    """Killed before the marker nothing is importable; the next run needs no human."""
    run(request_for(tmp_path))
    honest = files_of(tmp_path / "stick")
    for delay_s in (0.0, 0.02, 0.05, 0.1, 0.2):
        shutil.rmtree(tmp_path / "stick")
        child = subprocess.Popen([sys.executable, "-c", PROGRAM, str(ROOT), str(tmp_path)])
        while not (tmp_path / "stick").exists() and child.poll() is None:
            time.sleep(0.001)
        time.sleep(delay_s)
        child.send_signal(signal.SIGKILL)
        child.wait()
        if (tmp_path / "stick" / "satchel" / "main-000001" / "bundle.dsse.json").exists():
            assert unpack(tmp_path / "stick", trusting(TRUSTED))
        run(request_for(tmp_path))
        assert files_of(tmp_path / "stick") == honest


def test_what_a_killed_pack_left_beside_the_readme_goes(tmp_path: Path) -> None:
    medium = tmp_path / "stick"
    medium.mkdir()
    (medium / ".SATCHEL-README.txt.4711.part").write_text("half")
    (medium / ".SATCHEL-README.txt.mine.part").write_text("somebody's")
    run(request_for(tmp_path))
    assert sorted(path.name for path in medium.iterdir() if path.is_file()) == [
        ".SATCHEL-README.txt.mine.part",
        "SATCHEL-README.txt",
    ]


@pytest.mark.faults
def test_a_medium_that_fills_up_while_writing_is_left_clean(tmp_path: Path) -> None:
    """The free space is checked first, but another program may take it meanwhile."""
    with small_disk(tmp_path / "small", "100k") as medium:
        (tmp_path / "tiny.gguf").write_bytes(
            tiny_model(metadata={"tokenizer.chat_template": os.urandom(99_999).hex()})
        )
        request = request_for(tmp_path, out=medium)
        plan = make_plan(request, model_profile(read_header(request.source)))
        with pytest.raises(NoSpaceError):
            pack(request, replace(plan, medium_bytes=0), Silent())
        assert list(medium.iterdir()) == []


@pytest.mark.engine
def test_variants_are_made_by_the_engine_and_ranked_by_size(tmp_path: Path) -> None:
    request = request_for(tmp_path, source=DEMO, quantizations=("Q4_K_M", "Q8_0"), threads=2)
    packed = run(request)
    variants = {one.id: one for one in packed.manifest.models[0].variants}
    assert set(variants) == {"f16", "q4_k_m", "q8_0"}
    assert variants["q4_k_m"].prefer < variants["q8_0"].prefer < variants["f16"].prefer
    assert variants["q8_0"].profile["quantization"] == "Q8_0"
    files = unpack(tmp_path / "stick", trusting(TRUSTED))
    assert files[str(variants["f16"].artifact)] == DEMO.read_bytes()
    before = files_of(tmp_path / "stick")
    shutil.rmtree(tmp_path / "stick")
    run(replace(request, threads=1))
    assert files_of(tmp_path / "stick") == before
    assert not list(tmp_path.glob("satchel-pack-*"))
