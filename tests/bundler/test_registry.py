"""Models from registries: one suite for a fake, and for Debian's registry where it is there."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundler.cli import run
from bundler.errors import PackError, SourceDamagedError
from bundler.format.digest import Digest
from bundler.format.name import ModelName
from bundler.keyfiles import load_signing_key
from bundler.progress import Silent
from bundler.source.material import Material
from bundler.source.reference import (
    HubReference,
    OllamaReference,
    RegistryReference,
    parse_reference,
)
from bundler.source.registry import Login, Registry, read_logins
from bundler.source.registry_image import open_registry
from tests.appliance.sites import make_desk
from tests.bundler.test_split import split
from tests.fakes.forge import tiny_model
from tests.fakes.ollama_store import CONFIG
from tests.fakes.registry import (
    DOCKER_MANIFEST,
    INDEX,
    PROGRAM,
    Client,
    Fake,
    Pushed,
    real_registry,
    registry,
)

WEIGHTS = tiny_model(5)
OLLAMA = "application/vnd.ollama.image."
LAYERS: Pushed = [
    (OLLAMA + "model", WEIGHTS, {}),
    (OLLAMA + "template", b"{{ .Prompt }}", {}),
    (OLLAMA + "params", b'{"stop":["x"]}', {}),
    (OLLAMA + "license", b"MIT", {}),
]
PAUSES_S = (0.01,) * 4
TITLE = "org.opencontainers.image.title"


@pytest.fixture(params=["fake", *(["real"] if PROGRAM else [])])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Client]:
    """A registry; the reference implementation too where it is installed."""
    with registry() if request.param == "fake" else real_registry(tmp_path) as found:
        yield found


@pytest.fixture
def fake() -> Iterator[Fake]:
    with registry() as found:
        yield found


def bring(server: Client, name: str, folder: Path, login: Login | None = None) -> Material:
    reference = parse_reference(f"oci:{server.host}/{name}")
    assert isinstance(reference, RegistryReference)
    work = folder / "work"
    work.mkdir(parents=True, exist_ok=True)
    source = Registry(server.host, plain_http=False, login=login, pauses_s=PAUSES_S)
    return open_registry(reference, source, folder / "cache", work, Silent())


def test_an_image_of_ollama_s_kind_is_brought_whole(server: Client, tmp_path: Path) -> None:
    config = json.dumps(CONFIG).encode()
    manifest = server.push("lib/demo", "v1", LAYERS, config=config, media=DOCKER_MANIFEST)
    found = bring(server, "lib/demo:v1", tmp_path)
    assert found.weights.read_bytes() == WEIGHTS
    assert [role for role, _ in found.layers] == ["template", "params", "license"]
    assert found.image is not None
    assert found.image.manifest == manifest
    assert found.origin.uri == f"oci://{server.host}/lib/demo:v1"
    assert found.origin.revision == str(Digest.of(manifest))
    assert found.origin.digest == Digest.of(WEIGHTS)
    again = bring(server, f"lib/demo@{Digest.of(manifest)}", tmp_path)
    assert again.weights == found.weights


@pytest.mark.parametrize(
    ("media", "annotations"),
    [
        ("application/vnd.cncf.model.weight.v1.raw", {}),
        ("application/vnd.cncf.model.weight.v1.raw", {"org.cncf.model.filepath": "m/demo.gguf"}),
        ("application/vnd.docker.ai.gguf.v3", {}),
        ("application/octet-stream", {TITLE: "demo-f32.gguf"}),
    ],
)
def test_plain_layers_of_other_tools_are_brought(
    server: Client, tmp_path: Path, media: str, annotations: dict[str, str]
) -> None:
    licence = ("application/octet-stream", b"Apache", {TITLE: "LICENSE"})
    other = ("application/octet-stream", b"# demo", {TITLE: "README.md"})
    server.push("org/sub/demo", "latest", [(media, WEIGHTS, annotations), licence, other])
    found = bring(server, "org/sub/demo", tmp_path)
    assert found.weights.read_bytes() == WEIGHTS
    assert found.layers == (("license", b"Apache"),)
    assert found.image is None


def test_shards_are_merged(server: Client, tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(WEIGHTS)
    shards = split(tmp_path / "tiny.gguf", tmp_path, 3)
    layers = [("application/octet-stream", one.read_bytes(), {TITLE: one.name}) for one in shards]
    server.push("org/demo", "latest", layers)
    found = bring(server, "org/demo", tmp_path)
    assert found.weights.name == "merged.gguf"
    assert found.origin.digest == Digest.of(found.weights.read_bytes())


def test_an_index_of_one_is_followed_and_of_several_refused(server: Client, tmp_path: Path) -> None:
    manifests = [server.push("org/demo", tag, LAYERS, config=tag.encode()) for tag in ("a", "b")]
    for tag, count in (("one", 1), ("two", 2)):
        entries = [
            {
                "mediaType": json.loads(one)["mediaType"],
                "digest": str(Digest.of(one)),
                "size": len(one),
            }
            for one in manifests[:count]
        ]
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
        server.push_manifest("org/demo", tag, json.dumps(index).encode(), INDEX)
    assert bring(server, "org/demo:one", tmp_path).weights.read_bytes() == WEIGHTS
    with pytest.raises(PackError, match="expected one manifest, found 2") as caught:
        bring(server, "org/demo:two", tmp_path)
    assert str(Digest.of(manifests[1])) in caught.value.hint


def test_what_is_not_there_is_said(server: Client, tmp_path: Path) -> None:
    with pytest.raises(PackError, match="404 Not Found") as caught:
        bring(server, "org/none:v9", tmp_path)
    assert "name and tag" in caught.value.hint


def test_images_of_no_model_and_of_several_are_refused(server: Client, tmp_path: Path) -> None:
    server.push("org/web", "latest", [("application/vnd.oci.image.layer.v1.tar+gzip", b"x", {})])
    with pytest.raises(PackError, match="expected a GGUF layer, found application"):
        bring(server, "org/web", tmp_path)
    two: Pushed = [
        ("application/octet-stream", tiny_model(one), {TITLE: f"demo-{one}.gguf"}) for one in (1, 2)
    ]
    server.push("org/two", "latest", two)
    with pytest.raises(PackError, match=r"found 2: demo-1\.gguf, demo-2\.gguf"):
        bring(server, "org/two", tmp_path)


def test_an_interrupted_download_goes_on_where_it_was(server: Client, tmp_path: Path) -> None:
    server.push("lib/demo", "latest", LAYERS, media=DOCKER_MANIFEST)
    partial = tmp_path / "cache" / "blobs" / f"sha256-{Digest.of(WEIGHTS).hex}.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(WEIGHTS[:7000])
    assert bring(server, "lib/demo", tmp_path).weights.read_bytes() == WEIGHTS
    if isinstance(server, Fake):
        assert any("bytes=7000-" in line for line in server.asked)


def test_a_connection_that_breaks_is_taken_up_again(fake: Fake, tmp_path: Path) -> None:
    fake.push("lib/demo", "latest", LAYERS[:1])
    fake.cut_after = [2, 5000, 9000]  # the config's first
    assert bring(fake, "lib/demo", tmp_path).weights.read_bytes() == WEIGHTS
    assert any("bytes=5000-" in line for line in fake.asked)


def test_a_server_without_ranges_is_read_from_the_start(fake: Fake, tmp_path: Path) -> None:
    fake.push("lib/demo", "latest", LAYERS[:1])
    fake.ranges = False
    fake.cut_after = [2, 5000]
    assert bring(fake, "lib/demo", tmp_path).weights.read_bytes() == WEIGHTS


def test_a_server_in_trouble_is_asked_again_and_then_given_up(fake: Fake, tmp_path: Path) -> None:
    manifest = fake.push("lib/demo", "latest", LAYERS[:1])
    source = Registry(fake.host, plain_http=False, login=None, pauses_s=PAUSES_S)
    fake.failures = 2
    where = tmp_path / "cache"
    args = ("lib/demo", Digest.of(WEIGHTS), len(WEIGHTS), where)
    assert source.blob(*args, lambda _: None).read_bytes() == WEIGHTS
    missing = Digest.of(manifest + b"x")
    with pytest.raises(PackError, match="404"):
        source.blob("lib/demo", missing, 5, where, lambda _: None)
    with pytest.raises(PackError, match="refused"):
        bring(Client("127.0.0.1:1"), "lib/demo", tmp_path)


def test_other_bytes_than_named_are_refused_and_not_kept(fake: Fake, tmp_path: Path) -> None:
    fake.push("lib/demo", "latest", LAYERS)
    fake.spoil = True
    with pytest.raises(SourceDamagedError, match="other bytes than its manifest names"):
        bring(fake, "lib/demo", tmp_path)
    assert not list((tmp_path / "cache" / "blobs").glob("*"))


def test_another_manifest_than_named_is_refused(fake: Fake, tmp_path: Path) -> None:
    manifest = fake.push("lib/demo", "latest", LAYERS)
    key = f"lib/demo@{Digest.of(manifest)}"
    fake.manifests[key] = (fake.manifests[key][0], manifest + b" ")
    with pytest.raises(SourceDamagedError, match="gives another manifest"):
        bring(fake, f"lib/demo@{Digest.of(manifest)}", tmp_path)


def test_a_damaged_file_of_the_cache_is_brought_again(fake: Fake, tmp_path: Path) -> None:
    fake.push("lib/demo", "latest", LAYERS)
    path = bring(fake, "lib/demo", tmp_path).weights
    path.write_bytes(b"x" * len(WEIGHTS))
    with pytest.raises(SourceDamagedError):
        bring(fake, "lib/demo", tmp_path)
    assert bring(fake, "lib/demo", tmp_path).weights.read_bytes() == WEIGHTS


@pytest.mark.parametrize("auth", ["bearer", "basic"])
def test_a_login_is_used_where_it_is_asked_for(fake: Fake, tmp_path: Path, auth: str) -> None:
    fake.push("lib/demo", "latest", LAYERS)
    fake.auth, fake.login = auth, "me:secret"
    with pytest.raises(PackError, match=r"wants a login|no token") as caught:
        bring(fake, "lib/demo", tmp_path)
    assert "docker login" in caught.value.hint
    login = Login(user="me", password="secret")
    assert bring(fake, "lib/demo", tmp_path, login).weights.read_bytes() == WEIGHTS


def test_a_token_for_everybody_needs_no_login(fake: Fake, tmp_path: Path) -> None:
    fake.push("lib/demo", "latest", LAYERS)
    fake.auth = "bearer"
    assert bring(fake, "lib/demo", tmp_path).weights.read_bytes() == WEIGHTS
    asked = next(line for line in fake.asked if line.startswith("/token"))
    assert "service=s&scope=repository%3Ax%3Apull" in asked


def test_a_password_is_not_sent_in_clear_to_another_host(fake: Fake, tmp_path: Path) -> None:
    fake.push("lib/demo", "latest", LAYERS)
    fake.auth, fake.login = "bearer", "me:secret"
    fake.realm = "http://elsewhere.invalid/token"
    with pytest.raises(PackError, match="not sent in clear to elsewhere"):
        bring(fake, "lib/demo", tmp_path, Login(user="me", password="secret"))


def test_a_redirect_to_another_host_takes_no_authorization(fake: Fake, tmp_path: Path) -> None:
    with registry() as elsewhere:
        fake.push("lib/demo", "latest", LAYERS)
        for _, data, _ in [*LAYERS, ("", b"{}", {})]:
            elsewhere.push_blob("lib/demo", data)
        fake.auth, fake.login = "basic", "me:secret"
        fake.redirect = elsewhere.host
        found = bring(fake, "lib/demo", tmp_path, Login(user="me", password="secret"))
        assert found.weights.read_bytes() == WEIGHTS
        assert elsewhere.asked
        assert not any("Basic" in line for line in elsewhere.asked)


def test_logins_are_read_as_docker_keeps_them() -> None:
    auth = base64.b64encode(b"me:se:cret").decode()
    data = {"auths": {"https://a.example/v1/": {"auth": auth}, "b.example:5000": {}}}
    login = Login(user="me", password="se:cret")
    assert read_logins(json.dumps(data).encode()) == {"a.example": login}
    assert read_logins(b"{}") == {}
    for bad in (b"", b"[]", b'{"auths":{"a":{"auth":"!"}}}'):
        with pytest.raises(PackError, match="Docker's form"):
            read_logins(bad)


def test_a_registry_s_model_is_packed_and_keeps_its_id(
    server: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(os.environ, "HOME", str(tmp_path))
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    config = json.dumps(CONFIG).encode()
    manifest = server.push("lib/demo", "v1", LAYERS, config=config, media=DOCKER_MANIFEST)
    assert run(["keygen", "release", "--no-passphrase"]) == 0
    (tmp_path / "site").mkdir()
    site = make_desk(tmp_path / "site", load_signing_key(Path("release.key"), lambda: b""))
    pack = ["pack", "--from", f"oci:{server.host}/lib/demo:v1", "--key", "release.key"]
    assert run([*pack, "--out", str(site.medium), "--name", "demo"]) == 0
    site.take(site.medium)
    model = site.store.resolve(ModelName.parse("demo"))
    assert model.digest == Digest.of(manifest)
    assert (tmp_path / ".cache" / "satchel" / "blobs").is_dir()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ollama:a/b:c", OllamaReference(name=ModelName.parse("a/b:c"))),
        ("hf:o/r", HubReference(repository="o/r")),
        ("hf:o/r:Q4_K_M@v1", HubReference(repository="o/r", quantization="Q4_K_M", revision="v1")),
        ("hf:o/r@refs/pr/1", HubReference(repository="o/r", revision="refs/pr/1")),
        ("oci:h:5000/a/b", RegistryReference(host="h:5000", repository="a/b")),
        ("oci:h/a:t", RegistryReference(host="h", repository="a", tag="t")),
    ],
)
def test_references_are_read(text: str, expected: object) -> None:
    assert parse_reference(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "hf:",
        "hf:o",
        "hf:o/r/x",
        "hf:../r",
        "oci:h",
        "oci:h/A",
        "oci:h/../x",
        "oci:h/a@b",
        "s3:x",
    ],
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(PackError, match="from: "):
        parse_reference(text)
