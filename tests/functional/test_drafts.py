"""A draft model from the packer to the answer: real programs, the real engine, the demo model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.cli import run as satchel
from appliance.layout import Paths
from appliance.store import Store
from bundler.cli import run as bundle
from bundler.format.name import ModelName
from bundler.quantize import quantize
from tests.functional.test_program import DEMO, ask, put_demo, serving

pytestmark = pytest.mark.engine

QUESTION: dict[str, Any] = {
    "model": "demo",
    "messages": [{"role": "user", "content": "Why is the sky blue?"}],
    "think": False,
    "stream": False,
}


@pytest.fixture(scope="module")
def rough(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rough") / "rough.gguf"
    quantize(DEMO, path, "Q4_0", threads=1, advance=lambda _count: None)
    return path


def asked(port: int, **options: object) -> dict[str, object]:
    body = {**QUESTION, "options": {"temperature": 0, "num_predict": 60, **options}}
    status, data = ask(port, "POST", "/api/chat", body)
    assert status == 200, data
    answer: dict[str, object] = json.loads(data)
    return answer


def said(answer: dict[str, object]) -> object:
    message = answer["message"]
    assert isinstance(message, dict)
    return message["content"]


def test_a_draft_is_packed_imported_and_used(
    tmp_path: Path,
    rough: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    config = tmp_path / "satchel.toml"
    config.write_text(f'[store]\npath = "{tmp_path / "store"}"\nreserve = 0\n')
    (tmp_path / "stick").mkdir()
    assert bundle(["keygen", "release", "--no-passphrase"]) == 0
    pack = ["pack", str(DEMO), "--name", "demo", "--key", "release.key", "--out", "stick"]
    assert bundle([*pack, "--draft", str(rough)]) == 0
    trust = ["trust", "add", "release.pub", "--yes", "--config", str(config)]
    assert satchel(trust) == 0, capsys.readouterr().err
    assert satchel(["import", "stick", "--config", str(config)]) == 0, capsys.readouterr().err
    model = Store(Paths(tmp_path / "store")).resolve(ModelName.parse("demo"))
    assert [path.read_bytes() for path in model.drafts] == [rough.read_bytes()]

    with serving("--port", "0", "--config", str(config)) as (_, port):
        plain = asked(port, speculate=False)
        drafted = asked(port, draft_num_predict=4)
        assert said(drafted) == said(plain)
        assert "draft_count" not in plain
        assert isinstance(drafted["draft_count"], int)
        assert drafted["draft_accepted_count"] == drafted["draft_count"] > 0
        status, data = ask(port, "POST", "/api/show", {"model": "demo"})
        assert status == 200
        assert "DRAFT sha256-" in json.loads(data)["modelfile"]

    out = tmp_path / "out"
    out.mkdir()
    leave = ["export", "demo", "--as", "gguf", "--out", str(out), "--config", str(config)]
    assert satchel(leave) == 0, capsys.readouterr().err
    assert "DRAFT ./demo-latest.draft.gguf" in next(out.glob("*.Modelfile")).read_text()


def test_a_draft_of_another_vocabulary_is_not_packed(
    tmp_path: Path, rough: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(rough.read_bytes().replace(b"<|im_start|>", b"<|im_stort|>"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stick").mkdir()
    assert bundle(["keygen", "release", "--no-passphrase"]) == 0
    pack = ["pack", str(DEMO), "--name", "demo", "--key", "release.key", "--out", "stick"]
    assert bundle([*pack, "--draft", str(other)]) == 1
    assert "expected the model's vocabulary, found another" in capsys.readouterr().err
    (tmp_path / "Modelfile").write_text("FROM demo\nDRAFT ./other.gguf\n")
    assert bundle([*pack, "--modelfile", "Modelfile"]) == 1
    assert "expected the model's vocabulary, found another" in capsys.readouterr().err
    assert not list((tmp_path / "stick").iterdir())


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder = tmp_path_factory.mktemp("server")
    put_demo(folder / "store")
    config = folder / "satchel.toml"
    config.write_text(
        f'[store]\npath = "{folder / "store"}"\nreserve = 0\n'
        '[model.helped]\ndraft = "demo"\n[model.lost]\ndraft = "nobody"\n'
        '[model.plain]\ndraft = "off"\n'
    )
    with serving("--port", "0", "--config", str(config)) as (_, port):
        yield port


def made(port: int, tmp_path: Path, text: str, *more: str) -> int:
    (tmp_path / "Modelfile").write_text(text)
    words = ["create", "quick", "-f", str(tmp_path / "Modelfile"), *more]
    return satchel([*words, "--host", f"127.0.0.1:{port}"])


def test_a_modelfile_brings_one(port: int, tmp_path: Path, rough: Path) -> None:
    assert made(port, tmp_path, f"FROM demo\nDRAFT {rough}\n") == 0
    answer = asked(port, draft_num_predict=4)
    assert "draft_count" not in answer  # the base is as it was
    quick = {
        **QUESTION,
        "model": "quick",
        "options": {"temperature": 0, "draft_num_predict": 4},
    }
    status, data = ask(port, "POST", "/api/chat", quick)
    assert status == 200, data
    assert json.loads(data)["draft_count"] > 0


def test_it_is_quantized_on_demand(port: int, tmp_path: Path) -> None:
    assert made(port, tmp_path, f"FROM demo\nDRAFT {DEMO}\n", "--draft-quantize", "Q8_0") == 0
    _, data = ask(
        port,
        "POST",
        "/api/chat",
        {**QUESTION, "model": "quick", "options": {"draft_num_predict": 2}},
    )
    assert json.loads(data)["draft_count"] > 0


def test_what_does_not_go_with_the_model_is_refused(
    port: int, tmp_path: Path, rough: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(rough.read_bytes().replace(b"<|im_start|>", b"<|im_stort|>"))
    assert made(port, tmp_path, f"FROM demo\nDRAFT {other}\n") == 1
    assert "expected the model's vocabulary, found another" in capsys.readouterr().err


def test_the_operator_decides(port: int) -> None:
    for name in ("helped", "lost", "plain"):
        body = {"source": "demo", "destination": name}
        assert ask(port, "POST", "/api/copy", body)[0] == 200
    options = {"temperature": 0, "draft_num_predict": 2, "num_predict": 30}
    counts = {}
    for name in ("helped", "lost", "plain"):
        asked_for = {**QUESTION, "model": name, "options": options}
        status, data = ask(port, "POST", "/api/chat", asked_for)
        counts[name] = (status, json.loads(data))
    assert counts["helped"][1]["draft_count"] > 0
    assert "draft_count" not in counts["plain"][1]
    assert counts["lost"][0] == 500
    assert "draft: model 'nobody:latest' not found" in counts["lost"][1]["error"]
