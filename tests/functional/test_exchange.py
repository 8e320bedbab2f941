"""Pull and push where nothing reaches a network: refusals, sources, and what is carried out."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import ollama
import pytest

from appliance.layout import Paths
from appliance.store import Store
from bundler.format.name import ModelName
from tests.appliance.sites import trust
from tests.fakes.forge import STRANGER, TRUSTED, flip, forge, tiny_model
from tests.functional.live import LiveServer

DEMO = ModelName.parse("demo")
NOWHERE = "pull model manifest: file does not exist"


@pytest.fixture
def media(tmp_path: Path) -> Path:
    (tmp_path / "media").mkdir()
    return tmp_path / "media"


@pytest.fixture
def server(tmp_path: Path, media: Path) -> Iterator[LiveServer]:
    (tmp_path / "out").mkdir()
    with LiveServer(tmp_path, sources=(media,), export=tmp_path / "out") as live:
        trust(live.store, TRUSTED)
        yield live


@pytest.mark.parametrize("path", ["/api/pull", "/api/push"])
def test_what_names_no_model_is_refused(server: LiveServer, path: str) -> None:
    assert server.post(path) == (400, {"error": "model is required"})
    assert server.post(path, model="a b") == (400, {"error": "invalid model name"})
    assert server.post(path, model="big:cloud")[0] == 403
    assert server.post(path, model=1)[0] == 400


def test_an_unknown_model_fails_at_once_with_ollamas_text(server: LiveServer) -> None:
    lines = server.lines("/api/pull", model="absent")
    assert lines == [{"status": "pulling manifest"}, {"error": NOWHERE}]
    status, answer = server.post("/api/pull", name="absent", stream=False, insecure=True)
    assert (status, answer) == (500, {"error": NOWHERE})


def test_a_bundle_nobody_trusted_signed_is_no_source(server: LiveServer, media: Path) -> None:
    forge().signed_by(STRANGER).write(media / "stick")
    status, answer = server.post("/api/pull", model="demo", stream=False)
    assert status == 500
    assert answer["error"].startswith("pull model manifest: ")
    assert DEMO not in server.store.names()


def test_a_damaged_bundle_changes_nothing(server: LiveServer, media: Path) -> None:
    bundle = forge()
    bundle.write(media / "stick")
    flip(bundle.segment_path(media / "stick"), 100)
    lines = server.lines("/api/pull", model="demo")
    assert "error" in lines[-1]
    assert DEMO not in server.store.names()


def test_a_model_comes_from_a_mounted_medium_in_ollamas_words(
    server: LiveServer, media: Path
) -> None:
    weights = tiny_model(1)
    forge({"F32": weights}).write(media / "usb" / "stick")
    lines = server.lines("/api/pull", model="DEMO")
    statuses = [line["status"] for line in lines]
    assert statuses[0] == "pulling manifest"
    assert statuses[-3:] == ["verifying sha256 digest", "writing manifest", "success"]
    layers = [line for line in lines if "digest" in line]
    assert layers[0]["completed"] == 0
    assert layers[-1]["completed"] == layers[-1]["total"] == len(weights)
    digest = layers[-1]["digest"]
    assert layers[-1]["status"] == f"pulling {digest.removeprefix('sha256:')[:12]}"
    model = server.store.resolve(DEMO)
    assert model.signed
    assert model.model_path.read_bytes() == weights
    assert server.lines("/api/pull", model="demo")[-1] == {"status": "success"}


def test_the_latest_bundle_counts_and_an_older_one_does_not(
    server: LiveServer, media: Path
) -> None:
    forge({"F32": tiny_model(2)}, seq=2).write(media / "new")
    forge({"F32": tiny_model(1)}, seq=1).write(media / "old")
    assert server.lines("/api/pull", model="demo")[-1] == {"status": "success"}
    assert server.store.resolve(DEMO).model_path.read_bytes() == tiny_model(2)
    shutil.rmtree(media / "new")
    # The older one may not come in; the installed one is up to date.
    lines = server.lines("/api/pull", model="demo")
    assert lines[-1] == {"status": "success"}
    assert all(line["completed"] == line["total"] for line in lines if "digest" in line)
    assert server.store.resolve(DEMO).model_path.read_bytes() == tiny_model(2)


def test_what_is_installed_is_up_to_date_without_any_source(server: LiveServer) -> None:
    lines = server.lines("/api/pull", model="tiny")
    assert lines[0] == {"status": "pulling manifest"}
    assert lines[-1] == {"status": "success"}


def test_a_base_is_pulled_when_a_model_is_made_of_it(server: LiveServer, media: Path) -> None:
    forge().write(media / "stick")
    lines = server.lines("/api/create", **{"model": "made", "from": "demo", "system": "x"})
    assert lines[0] == {"status": "pulling manifest"}
    assert [line for line in lines if line.get("status") == "success"] == [lines[-1]]
    assert server.store.resolve(ModelName.parse("made")).signed


def test_pull_may_be_switched_off(tmp_path: Path, media: Path) -> None:
    forge().write(media / "stick")
    with LiveServer(tmp_path, sources=(media,), pull=False) as live:
        status, answer = live.post("/api/pull", model="demo")
        assert (status, answer) == (403, {"error": "pull is switched off on this server"})


def test_push_needs_a_directory_and_a_model(tmp_path: Path) -> None:
    with LiveServer(tmp_path) as live:
        status, answer = live.post("/api/push", model="tiny")
        assert status == 403
        assert "only through a directory, and none is configured" in answer["error"]
    with LiveServer(tmp_path, export=tmp_path / "not-mounted") as live:
        lines = live.lines("/api/push", model="tiny")
        assert lines[0] == {"status": "retrieving manifest"}
        assert "is not there" in lines[-1]["error"]
        assert live.lines("/api/push", model="absent")[-1] == {
            "error": "couldn't retrieve manifest"
        }
    assert not (tmp_path / "not-mounted").exists()


def test_what_is_pushed_is_a_store_of_the_same_ids(server: LiveServer, tmp_path: Path) -> None:
    for _ in range(2):
        lines = server.lines("/api/push", model="tiny")
        statuses = [line["status"] for line in lines]
        assert statuses[0] == "retrieving manifest"
        assert statuses[-2:] == ["pushing manifest", "success"]
        assert {"pushing " + line["digest"][7:19] for line in lines if "digest" in line} == {
            status for status in statuses if status.startswith("pushing ")
        } - {"pushing manifest"}
    carried = Store(Paths(tmp_path / "out")).resolve(ModelName.parse("tiny"))
    here = server.store.resolve(ModelName.parse("tiny"))
    assert carried.digest == here.digest
    assert carried.model_path.read_bytes() == here.model_path.read_bytes()


def test_rot_is_not_carried_out(server: LiveServer, tmp_path: Path) -> None:
    path = server.store.resolve(ModelName.parse("tiny")).model_path
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    assert "digest mismatch" in server.lines("/api/push", model="tiny")[-1]["error"]
    assert Store(Paths(tmp_path / "out")).names() == ()


def test_the_official_client_pulls_and_pushes(server: LiveServer, media: Path) -> None:
    forge().write(media / "stick")
    with ollama.Client(host=f"http://127.0.0.1:{server.port}") as client:
        assert client.pull("demo").status == "success"
        steps = list(client.pull("demo", stream=True))
        assert any(step.digest and step.completed == step.total for step in steps)
        assert client.push("demo").status == "success"
        with pytest.raises(ollama.ResponseError, match=NOWHERE):
            client.pull("absent")
        with pytest.raises(ollama.ResponseError, match=NOWHERE):
            list(client.pull("absent", stream=True))
