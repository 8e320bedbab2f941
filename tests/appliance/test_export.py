"""``satchel export`` as typed: refusals first, then what other tools find in each form."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.cli import run
from appliance.errors import NoSpaceError
from appliance.layout import Paths
from appliance.model import InstalledModel
from appliance.outgoing import check_room
from appliance.store import Store
from bundler.format.modelfile import parse
from bundler.format.name import ModelName
from bundler.progress import Silent
from bundler.source import image as registry_image
from bundler.source.ollama_store import open_ollama
from tests.fakes.adapters import write_adapter
from tests.fakes.forge import flip
from tests.functional.live import put_model

TEXTS = {"template": "{{ .Prompt }}", "system": "Be brief.", "license": "MIT", "params": "{}"}

Export = Callable[..., tuple[int, str, str]]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    found = Store(Paths(tmp_path / "store"))
    put_model(found, "demo", tmp_path, texts=TEXTS)
    put_model(found, "team/demo:v2", tmp_path, texts={"license": "BSD"})
    return found


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture
def export(store: Store, out: Path, capsys: pytest.CaptureFixture[str]) -> Export:
    def call(*words: str, form: str, to: Path = out) -> tuple[int, str, str]:
        options = ["--as", form, "--out", str(to), "--store", str(store.paths.root)]
        code = run(["export", *words, *options])
        said, complained = capsys.readouterr()
        return code, said, complained

    return call


def demo(store: Store, name: str = "demo") -> InstalledModel:
    return store.resolve(ModelName.parse(name))


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("form", ["gguf", "ollama", "oci"])
def test_what_cannot_be_exported_is_refused(export: Export, out: Path, form: str) -> None:
    code, _, err = export("absent", form=form)
    assert (code, "model 'absent:latest' not found" in err) == (1, True)
    code, _, err = export("demo", "DEMO:latest", form=form)
    assert (code, "expected models of different names" in err) == (2, True)
    code, _, err = export("demo", form=form, to=out / "not-mounted")
    assert (code, "is not there" in err) == (1, True)
    assert files(out) == []


def test_an_unknown_form_is_refused(export: Export) -> None:
    code, _, err = export("demo", form="zip")
    assert code == 2
    assert "as: expected gguf, ollama, oci, found 'zip'" in err


@pytest.mark.parametrize("form", ["gguf", "ollama", "oci"])
def test_rot_does_not_leave(export: Export, store: Store, out: Path, form: str) -> None:
    path = demo(store).model_path
    path.chmod(0o644)
    flip(path, path.stat().st_size - 1)
    code, _, err = export("demo", form=form)
    assert code == 15
    assert "digest mismatch" in err
    assert "satchel scrub" in err
    rotten = demo(store).model_digest.hex
    left = files(out)
    assert not [one for one in left if rotten in one or one.endswith((".gguf", ".part"))]
    assert not [one for one in left if one.startswith("manifests/") or one == "index.json"]


@pytest.mark.parametrize("form", ["gguf", "ollama", "oci"])
def test_a_directory_that_cannot_be_written_is_said_in_words(
    export: Export, tmp_path: Path, form: str
) -> None:
    if os.geteuid() == 0:
        blocked = tmp_path / "blocked"
        blocked.mkdir()
        (blocked / "blobs").write_text("a file where a folder should be")
        wanted = {"gguf": 0, "ollama": 15, "oci": 1}[form]
    else:
        blocked = tmp_path / "blocked"
        blocked.mkdir(mode=0o500)
        wanted = {"gguf": 1, "ollama": 15, "oci": 1}[form]
    code, _, err = export("demo", form=form, to=blocked)
    assert code == wanted
    assert "Errno" not in err


def test_too_little_room_is_said_before_anything_is_written(out: Path) -> None:
    with pytest.raises(NoSpaceError, match="free, found"):
        check_room(out, 1 << 60)


def test_gguf_files_are_the_blobs_and_the_modelfile_names_them(
    export: Export, store: Store, out: Path
) -> None:
    code, said, _ = export("demo", "team/demo:v2", form="gguf")
    assert code == 0
    assert "exported demo:latest" in said
    assert files(out) == [
        "demo-latest.Modelfile",
        "demo-latest.gguf",
        "team-demo-v2.Modelfile",
        "team-demo-v2.gguf",
    ]
    assert (out / "demo-latest.gguf").read_bytes() == demo(store).model_path.read_bytes()
    made = parse((out / "demo-latest.Modelfile").read_text())
    assert made.from_ == ("./demo-latest.gguf",)
    assert (made.template, made.system, made.licenses) == (
        "{{ .Prompt }}",
        "Be brief.",
        ("MIT",),
    )


def test_adapters_leave_beside_the_weights(
    export: Export, store: Store, out: Path, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "lora.gguf", demo(store).model_path).read_bytes()
    put_model(store, "tuned", tmp_path, adapter=adapter)
    assert export("tuned", form="gguf")[0] == 0
    assert (out / "tuned-latest.adapter.gguf").read_bytes() == adapter
    made = parse((out / "tuned-latest.Modelfile").read_text())
    assert made.adapters == ("./tuned-latest.adapter.gguf",)
    (out / "layout").mkdir()
    assert export("tuned", form="oci", to=out / "layout")[0] == 0
    image = registry_image.parse_image(manifest_in(out / "layout", "tuned:latest"), "tuned")
    assert [layer.kind for layer in image.layers] == ["model", "adapter"]


def test_nothing_is_written_over(export: Export, out: Path) -> None:
    (out / "demo-latest.Modelfile").write_text("mine")
    code, _, err = export("demo", form="gguf")
    assert code == 2
    assert "is there already, and nothing is written over" in err
    assert files(out) == ["demo-latest.Modelfile"]


def test_what_a_crash_left_is_replaced(export: Export, out: Path) -> None:
    (out / ".demo-latest.gguf.part").write_bytes(b"half")
    assert export("demo", form="gguf")[0] == 0
    assert files(out) == ["demo-latest.Modelfile", "demo-latest.gguf"]


def test_an_ollama_store_has_the_same_ids_and_is_extended(
    export: Export, store: Store, out: Path
) -> None:
    for words in (("demo",), ("demo",), ("demo", "team/demo:v2")):
        assert export(*words, form="ollama")[0] == 0
    target = Store(Paths(out))
    assert {one.digest for one in target.list()} == {one.digest for one in store.list()}
    manifest = out / "manifests/registry.ollama.ai/library/demo/latest"
    for part in [json.loads(manifest.read_bytes())["config"], *layers_of(manifest.read_bytes())]:
        data = (out / "blobs" / part["digest"].replace(":", "-")).read_bytes()
        assert (len(data), "sha256:" + hashlib.sha256(data).hexdigest()) == (
            part["size"],
            part["digest"],
        )


def test_the_connected_side_reads_what_was_exported(
    export: Export, store: Store, out: Path
) -> None:
    assert export("demo", form="ollama")[0] == 0
    material = open_ollama(ModelName.parse("demo"), (out,), Silent())
    assert material.weights.read_bytes() == demo(store).model_path.read_bytes()


def test_another_model_of_that_name_is_not_replaced(
    export: Export, out: Path, tmp_path: Path
) -> None:
    put_model(Store(Paths(out)), "demo", tmp_path, texts={"system": "Another."})
    before = files(out)
    code, _, err = export("demo", form="ollama")
    assert (code, "nothing is written over" in err) == (2, True)
    assert files(out) == before


@pytest.mark.parametrize("form", ["ollama", "oci"])
def test_a_damaged_copy_on_the_medium_is_named(
    export: Export, store: Store, out: Path, form: str
) -> None:
    assert export("demo", form=form)[0] == 0
    hexadecimal = demo(store).model_digest.hex
    names = {"ollama": f"blobs/sha256-{hexadecimal}", "oci": f"blobs/sha256/{hexadecimal}"}
    path = out / names[form]
    path.chmod(0o644)
    flip(path, 64)
    code, _, err = export("demo", form=form)
    assert code == 15
    assert "the copy on that medium is damaged" in err


def layers_of(manifest: bytes) -> list[dict[str, Any]]:
    layers: list[dict[str, Any]] = json.loads(manifest)["layers"]
    return layers


def manifest_in(layout: Path, name: str) -> bytes:
    """The manifest a reference of a layout stands for, its digest and size checked."""
    index: dict[str, Any] = json.loads((layout / "index.json").read_bytes())
    found: list[dict[str, Any]] = [
        one
        for one in index["manifests"]
        if one["annotations"]["org.opencontainers.image.ref.name"] == name
    ]
    assert len(found) == 1
    return blob_in(layout, found[0])


def blob_in(layout: Path, descriptor: dict[str, Any]) -> bytes:
    algorithm, _, hexadecimal = str(descriptor["digest"]).partition(":")
    data = (layout / "blobs" / algorithm / hexadecimal).read_bytes()
    assert hashlib.sha256(data).hexdigest() == hexadecimal
    assert len(data) == descriptor["size"]
    return data


def test_an_oci_layout_is_whole_and_readable(export: Export, store: Store, out: Path) -> None:
    for words in (("demo",), ("demo", "team/demo:v2")):
        assert export(*words, form="oci")[0] == 0
    assert json.loads((out / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    for name in ("demo:latest", "team/demo:v2"):
        data = manifest_in(out, name)
        manifest = json.loads(data)
        assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
        config = json.loads(blob_in(out, manifest["config"]))
        assert config["modelfs"]["diffIds"] == [one["digest"] for one in manifest["layers"]]
        assert config["config"]["format"] == "gguf"
        named = {
            layer["annotations"]["org.cncf.model.filepath"]: blob_in(out, layer)
            for layer in manifest["layers"]
        }
        stem = name.replace("/", "-").replace(":", "-")
        assert sorted(named) == sorted(["LICENSE", "Modelfile", f"{stem}.gguf"])
        assert named[f"{stem}.gguf"] == demo(store, name).model_path.read_bytes()
        image = registry_image.parse_image(data, name)
        assert image.weights.digest == demo(store, name).model_digest
        assert len(image.every("license")) == 1


def test_a_reference_of_a_layout_is_not_given_another_meaning(
    export: Export, store: Store, out: Path, tmp_path: Path
) -> None:
    assert export("demo", form="oci")[0] == 0
    before = (out / "index.json").read_bytes()
    put_model(store, "demo", tmp_path, texts={"system": "Another."})
    code, _, err = export("demo", form="oci")
    assert (code, "is in this layout already" in err) == (2, True)
    assert (out / "index.json").read_bytes() == before


@pytest.mark.parametrize("index", [b"{", b"[]", b'{"manifests": 1}', b'{"manifests": [1]}'])
def test_a_malformed_layout_is_refused(export: Export, out: Path, index: bytes) -> None:
    (out / "index.json").write_bytes(index)
    assert export("demo", form="oci")[0] == 2
    (out / "oci-layout").write_text("{}")
    code, _, err = export("demo", form="oci")
    assert (code, "expected an OCI image index" in err) == (2, True)
    assert files(out) == ["index.json", "oci-layout"]


def test_skopeo_reads_and_copies_the_layout(export: Export, out: Path, tmp_path: Path) -> None:
    """Where Debian's skopeo is installed it is asked; our own checks stand above."""
    assert export("demo", form="oci")[0] == 0
    manifest = manifest_in(out, "demo:latest")
    skopeo = shutil.which("skopeo")
    if skopeo is not None:
        reference = f"oci:{out}:demo:latest"
        done = subprocess.run(
            [skopeo, "inspect", "--raw", reference], capture_output=True, check=True, timeout=60
        )
        assert done.stdout == manifest
        copied = tmp_path / "copied"
        subprocess.run(
            [skopeo, "--insecure-policy", "copy", reference, f"dir:{copied}"],
            capture_output=True,
            check=True,
            timeout=60,
        )
        assert {layer["digest"].removeprefix("sha256:") for layer in layers_of(manifest)} <= {
            path.name for path in copied.iterdir()
        }


def test_the_journal_says_what_left(export: Export, store: Store) -> None:
    assert export("demo", form="gguf")[0] == 0
    line = (store.paths.journal / "events.jsonl").read_text().splitlines()[-1]
    event = json.loads(line)
    assert (event["event"], event["form"]) == ("exported", "gguf")
    assert event["names"] == ["registry.ollama.ai/library/demo:latest"]


def test_json_tells_files(store: Store, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", "demo", "--as", "gguf", "--out", str(out), "--json"]
    assert run([*words, "--store", str(store.paths.root)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["models"][0]["files"] == [
        str(out / "demo-latest.gguf"),
        str(out / "demo-latest.Modelfile"),
    ]
