from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from appliance.errors import UnusableModelError
from bundler.cli import run
from bundler.errors import ForeignLayoutError, PackError, SourceDamagedError
from bundler.format.carried import CarriedImage, write_images
from bundler.format.digest import Digest
from bundler.format.name import ModelName
from bundler.keyfiles import load_signing_key
from bundler.progress import Silent
from bundler.source.material import Material
from bundler.source.ollama_store import default_stores, list_ollama, open_ollama
from tests.appliance.sites import Desk, make_desk
from tests.fakes.forge import flip, forge, tiny_model
from tests.fakes.gguf_writer import Tensor, write_gguf
from tests.fakes.ollama_store import OllamaStore

WEIGHTS = tiny_model(3)
LAYERS = [
    ("model", WEIGHTS),
    ("template", b"{{ .System }} {{ .Prompt }}"),
    ("system", b"Be brief."),
    ("params", b'{"stop":["<end>"],"temperature":0.5}'),
    ("messages", b'[{"role":"user","content":"hi"}]'),
    ("license", b"MIT"),
    ("license", b"and more"),
]


@pytest.fixture
def store(tmp_path: Path) -> OllamaStore:
    return OllamaStore(tmp_path / "models")


def opened(store: OllamaStore, name: str = "demo") -> Material:
    return open_ollama(ModelName.parse(name), (store.root,), Silent())


def companion(folder: Path, architecture: str) -> bytes:
    """A projector or an adapter of a few bytes."""
    path = write_gguf(
        folder / f"{architecture}.gguf",
        {"general.architecture": architecture, "general.type": "mmproj"},
        [Tensor("v.weight", (32,))],
    )
    return path.read_bytes()


def test_a_model_that_is_not_there_is_refused_with_those_that_are(store: OllamaStore) -> None:
    store.add("demo:v1", LAYERS)
    (store.root / "manifests" / ".DS_Store").write_bytes(b"x")
    with pytest.raises(PackError, match="no model other:latest") as caught:
        opened(store, "other")
    assert caught.value.hint == "there are: demo:v1"
    assert list_ollama(store.root) == ("demo:v1",)
    with pytest.raises(PackError) as caught:
        open_ollama(ModelName.parse("demo"), (store.root / "nowhere",), Silent())
    assert "--store" in caught.value.hint


def test_every_damaged_file_is_named_with_what_to_do(store: OllamaStore) -> None:
    store.add("demo", LAYERS)
    flip(store.blob(WEIGHTS), 900)
    store.blob(b"Be brief.").write_bytes(b"Be")
    store.blob(b"MIT").unlink()
    with pytest.raises(SourceDamagedError) as caught:
        opened(store)
    message, hint = str(caught.value), caught.value.hint
    assert "3 of 8 files are damaged" in message
    assert f"model sha256-{Digest.of(WEIGHTS).short()}: the bytes are not those" in message
    assert "system sha256-" in message
    assert "2 bytes where 9 are expected" in message
    assert "license sha256-" in message
    assert "missing" in message
    assert f"remove {store.blob(WEIGHTS)}, then: ollama pull demo:latest" in hint
    assert "ollama pull demo:latest fetches what is missing" in hint


def test_an_interrupted_download_is_told_as_one(store: OllamaStore) -> None:
    store.add("demo", LAYERS)
    path = store.blob(WEIGHTS)
    path.rename(path.with_name(path.name + "-partial"))
    with pytest.raises(SourceDamagedError, match="its download was interrupted"):
        opened(store)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b'{"layers":[{}]}', b'{"layers":5}', b"\xff\xfe", b"[" * 9000],
)
def test_a_damaged_manifest_is_refused(store: OllamaStore, data: bytes) -> None:
    store.add("demo", LAYERS)
    store.manifest("demo").write_bytes(data)
    with pytest.raises(SourceDamagedError, match="not a model manifest"):
        opened(store)


def test_a_digest_that_leads_elsewhere_is_refused(store: OllamaStore) -> None:
    manifest = json.loads(store.add("demo", LAYERS))
    manifest["layers"][1]["digest"] = "sha256:../../../../etc/passwd"
    store.manifest("demo").write_text(json.dumps(manifest))
    with pytest.raises(SourceDamagedError, match="64 lower-case"):
        opened(store)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([], "a cloud model has no weights"),
        ([("tensor", b"x"), ("json", b"{}")], "single tensors for MLX"),
        ([("license", b"MIT")], "expected a GGUF layer, found none"),
        ([("model", b"no gguf at all")], "the model layer is no GGUF file"),
        ([("model", WEIGHTS), ("params", b"[1]")], "expected a JSON object"),
        ([("model", WEIGHTS), ("params", b"{")], "expected JSON"),
        ([("model", WEIGHTS), ("system", b"\xff")], "expected UTF-8 text"),
    ],
)
def test_what_cannot_be_packed_is_refused(
    store: OllamaStore, layers: list[tuple[str, bytes]], said: str
) -> None:
    store.add("demo", layers)
    with pytest.raises(PackError, match=said):
        opened(store)


def test_a_layout_of_ollamas_own_is_named(store: OllamaStore) -> None:
    store.add("demo", [("model", tiny_model(metadata={"general.architecture": "gptoss"}))])
    with pytest.raises(ForeignLayoutError, match="gpt-oss") as caught:
        opened(store)
    assert "hf:ORG/REPO" in caught.value.hint


def test_everything_a_model_has_is_found_and_nothing_is_written(
    store: OllamaStore, tmp_path: Path
) -> None:
    projector, lora = companion(tmp_path, "clip"), companion(tmp_path, "llama")
    manifest = store.add("demo", [*LAYERS, ("projector", projector), ("adapter", lora)])
    before = {path: path.stat().st_mtime_ns for path in store.root.rglob("*")}
    found = opened(store)
    assert found.weights == store.blob(WEIGHTS)
    assert found.layers == tuple(LAYERS[1:])
    assert found.projector == store.blob(projector)
    assert found.adapters == (store.blob(lora),)
    assert found.image is not None
    assert found.image.manifest == manifest
    assert found.origin.uri == "ollama:registry.ollama.ai/library/demo:latest"
    assert found.origin.revision == str(Digest.of(manifest))
    assert found.origin.digest == Digest.of(WEIGHTS)
    assert found.warnings == ()
    assert {path: path.stat().st_mtime_ns for path in store.root.rglob("*")} == before


def test_old_spellings_links_and_cases_of_a_store_are_read(store: OllamaStore) -> None:
    store.add("Mixed/Demo:V1", LAYERS)
    path = store.blob(WEIGHTS)
    path.rename(store.blobs / path.name.upper().replace("SHA256-", "sha256:"))
    other = store.blob(b"MIT")
    other.rename(store.root / "elsewhere")
    other.symlink_to(store.root / "elsewhere")
    assert opened(store, "mixed/demo:v1").layers == tuple(LAYERS[1:])


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([*LAYERS, ("embed", b"x")], "the embed layer is left out"),
        ([*LAYERS, ("system", b"Be long.")], "another id"),
        ([("model", WEIGHTS), ("prompt", b"{{ .Prompt }}")], "another id"),
        ([*LAYERS, ("params", b'{"top_k":3}')], "another id"),
    ],
)
def test_what_changes_the_id_is_said(
    store: OllamaStore, layers: list[tuple[str, bytes]], said: str
) -> None:
    store.add("demo", layers)
    found = opened(store)
    assert found.image is None
    assert any(said in line for line in found.warnings)
    assert dict(found.layers)["params" if len(layers) > 2 else "template"]


def test_of_several_layers_the_last_counts_and_parameters_are_merged(store: OllamaStore) -> None:
    store.add("demo", [*LAYERS, ("system", b"Be long."), ("params", b'{"temperature":1}')])
    layers = dict(opened(store).layers)
    assert layers["system"] == b"Be long."
    assert json.loads(layers["params"]) == {"stop": ["<end>"], "temperature": 1}


def test_a_missing_or_odd_config_is_only_a_warning(store: OllamaStore) -> None:
    store.add("demo", LAYERS, config={"renderer": "harmony"})
    assert any("renderer harmony" in line for line in opened(store).warnings)
    config = json.loads(store.manifest("demo").read_bytes())["config"]["digest"]
    (store.blobs / config.replace(":", "-")).unlink()
    found = opened(store)
    assert any("config blob is missing" in line for line in found.warnings)
    assert found.image is None


def test_the_places_ollama_looks_at() -> None:
    home = Path("/home/me")
    assert default_stores({"OLLAMA_MODELS": "/data"}, home) == (Path("/data"),)
    assert default_stores({}, home) == (
        Path("/home/me/.ollama/models"),
        Path("/usr/share/ollama/.ollama/models"),
    )


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A packer's desk with a key, and a site that trusts it."""
    monkeypatch.chdir(tmp_path)
    for variable in ("SATCHEL_KEY_PASSPHRASE", "SOURCE_DATE_EPOCH", "OLLAMA_MODELS"):
        monkeypatch.delenv(variable, raising=False)
    assert run(["keygen", "release", "--no-passphrase"]) == 0
    (tmp_path / "site").mkdir()
    return make_desk(tmp_path / "site", load_signing_key(Path("release.key"), lambda: b""))


def carry(site: Desk, *arguments: str, code: int = 0) -> None:
    """Pack onto the site's medium, and import there."""
    pack = ["pack", "--key", "release.key", "--out", str(site.medium), *arguments]
    assert run(pack) == code
    if code == 0:
        site.take(site.medium)


def test_a_model_of_a_store_keeps_its_id_and_files_on_the_target(
    site: Desk, store: OllamaStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    projector, lora = companion(tmp_path, "clip"), companion(tmp_path, "llama")
    manifest = store.add("demo:v1", [*LAYERS, ("projector", projector), ("adapter", lora)])
    carry(site, "--from", "ollama:demo:v1", "--store", str(store.root))
    assert "packing demo:v1 as main 1" in capsys.readouterr().out
    model = site.store.resolve(ModelName.parse("demo:v1"))
    assert model.digest == Digest.of(manifest)
    assert model.model_path.name == store.blob(WEIGHTS).name
    assert [path.read_bytes() for path in (*model.projectors, *model.adapters)] == [projector, lora]
    assert model.system == "Be brief."
    assert model.config["model_type"] == "3.07K"
    report = site.check(site.medium)
    assert report.findings == ()
    source = report.admitted.manifest.models[0].evidence.source
    assert source is not None
    assert source.uri == "ollama:registry.ollama.ai/library/demo:v1"


def test_what_is_given_beside_a_store_s_model_replaces_its_layers(
    site: Desk, store: OllamaStore
) -> None:
    store.add("demo", LAYERS)
    Path("Modelfile").write_text("SYSTEM be long\nLICENSE Apache\n")
    carry(
        site, "--from", "ollama:demo", "--store", str(store.root),
        "--modelfile", "Modelfile", "--name", "mine",
    )  # fmt: skip
    model = site.store.resolve(ModelName.parse("mine"))
    assert model.system == "be long"
    assert model.licenses == ("MIT", "and more", "Apache")
    assert model.template == "{{ .System }} {{ .Prompt }}"


def test_a_store_is_found_by_its_variable(
    site: Desk, store: OllamaStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add("demo", LAYERS)
    monkeypatch.setitem(os.environ, "OLLAMA_MODELS", str(store.root))
    carry(site, "--from", "ollama:demo")
    assert site.names() == ["demo:latest"]


def test_variants_are_made_of_a_store_s_model(site: Desk, store: OllamaStore) -> None:
    demo = (Path(__file__).parents[1] / "demo-model" / "demo-f16.gguf").read_bytes()
    manifest = store.add("demo", [("model", demo), ("system", b"Be brief.")])
    carry(
        site, "--from", "ollama:demo", "--store", str(store.root),
        "--quantize", "Q8_0,Q4_K_M", "--include-source",
    )  # fmt: skip
    site.take(site.medium, all_variants=True)
    found = {model.name.tag: model for model in site.store.list()}
    assert set(found) == {"latest", "q8_0", "q4_k_m"}
    assert found["latest"].digest == Digest.of(manifest)
    assert {model.system for model in found.values()} == {"Be brief."}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--from", "ollama:no-such"], 1, "no model no-such:latest"),
        (["--from", "ollama:../x"], 10, "model name"),
        (["--from", "docker:x"], 1, "expected ollama:NAME"),
        (["--from", "ollama:demo", "file.gguf"], 2, "either a path or --from"),
        ([], 2, "either a path or --from"),
        (["file.gguf"], 2, "missing option '--name'"),
    ],
)
def test_every_refusal_is_one_line(
    *,
    site: Desk,
    store: OllamaStore,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    capsys.readouterr()
    carry(site, *arguments, "--store", str(store.root), code=code)
    assert said in capsys.readouterr().err.splitlines()[0]


def test_a_carried_manifest_of_other_files_is_refused(site: Desk) -> None:
    store = OllamaStore(site.medium.parent / "models")
    manifest = store.add("demo", [("model", tiny_model(9))])
    config = store.blobs / json.loads(manifest)["config"]["digest"].replace(":", "-")
    carried = CarriedImage(
        model="demo:latest", variant="f32", manifest=manifest, config=config.read_bytes()
    )
    bundle = forge().signed_by(load_signing_key(Path("release.key"), lambda: b""))
    bundle = bundle.with_manifest(extensions=write_images([carried]))
    with pytest.raises(UnusableModelError, match="expected the files of the variant"):
        site.carry(bundle)
    assert site.names() == []
