"""``satchel create``, ``pull`` and ``push`` as typed, and what ``show --modelfile`` gives back."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.cli import run
from bundler.format.name import ModelName
from tests.appliance.sites import trust
from tests.fakes.forge import TRUSTED, forge
from tests.fakes.gguf_writer import write_tiny_llama
from tests.functional.live import LiveServer, put_model
from tests.functional.test_create import lora

MADE = ModelName.parse("made")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LiveServer]:
    with LiveServer(tmp_path / "server") as live:
        yield live


def typed(server: LiveServer, *words: str) -> int:
    return run([*words, "--host", f"127.0.0.1:{server.port}"])


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("SYSTEM x\n", "no FROM line"),
        ("FROM tiny\n\nWARMTH 1\n", "(line 3): command must be one of"),
        ('FROM tiny\nSYSTEM "open\n', "(line 2): unexpected EOF"),
        ("FROM tiny\nMESSAGE judge x\n", "(line 2): message role must be one of"),
        ("FROM tiny\nPARAMETER top_k many\n", "(line 2): invalid int value [many]"),
        ("FROM ./absent.gguf\n", "FROM ./absent.gguf: no such file"),
        ("FROM tiny\nADAPTER ./absent.gguf\n", "absent.gguf: no such file"),
        ("FROM empty\n", "no Modelfile or safetensors files found"),
        ("FROM escaping\n", "insecure path: out.gguf"),
        ("FROM tiny\nDRAFT ./absent.gguf\n", "absent.gguf: no such file"),
        ("FROM nowhere\nSYSTEM x\n", "pull model manifest: file does not exist"),
        ("FROM notes.txt\n", "supplied file was not in GGUF format"),
    ],
)
def test_a_modelfile_that_cannot_be_made_is_refused(
    server: LiveServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    text: str,
    error: str,
) -> None:
    (tmp_path / "notes.txt").write_text("no model")
    (tmp_path / "empty").mkdir()
    (tmp_path / "escaping").mkdir()
    (tmp_path / "escaping" / "out.gguf").symlink_to(tmp_path / "notes.txt")
    file = tmp_path / "Modelfile"
    file.write_text(text)
    assert typed(server, "create", "made", "-f", str(file)) != 0
    assert error in capsys.readouterr().err
    assert MADE not in server.store.names()


def test_no_modelfile_is_said(server: LiveServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(server, "create", "made", "-f", "/nowhere/Modelfile") == 2
    assert "/nowhere/Modelfile: no such file" in capsys.readouterr().err
    assert typed(server, "create", "made", "--draft-quantize", "Q8_0") == 2


def test_no_server_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "Modelfile").write_text("FROM tiny\n")
    words = ["create", "made", "-f", str(tmp_path / "Modelfile"), "--host", "127.0.0.1:1"]
    assert run(words) == 1
    assert "could not connect" in capsys.readouterr().err


def test_files_beside_the_modelfile_are_sent_once(
    server: LiveServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_llama(tmp_path / "model.gguf", **{"general.name": "typed"})
    (tmp_path / "adapter.gguf").write_bytes(lora(tmp_path))
    file = tmp_path / "Modelfile"
    file.write_text(
        "# a comment\nfrom ./model.gguf\nADAPTER adapter.gguf\nPARAMETER stop A\n"
        'PARAMETER stop B\nPARAMETER mirostat_tau 3\nSYSTEM """one\ntwo"""\nMESSAGE user hi\n'
    )
    assert typed(server, "create", "made", "-f", str(file)) == 0
    said = capsys.readouterr().err
    assert "warning: parameter mirostat_tau is deprecated" in said
    assert "copying file sha256:" in said
    assert said.endswith("success\n")
    made = server.store.resolve(MADE)
    assert made.model_path.read_bytes() == (tmp_path / "model.gguf").read_bytes()
    assert len(made.adapters) == 1
    assert made.parameters == {"stop": ["A", "B"]}
    assert made.system == "one\ntwo"
    assert typed(server, "create", "made", "-f", str(file), "--json") == 0
    told = capsys.readouterr()
    assert json.loads(told.out) == {"model": "made", "status": "success"}


def test_standard_input_and_directories_will_do(
    server: LiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights").mkdir()
    write_tiny_llama(tmp_path / "weights" / "model.gguf", **{"general.name": "folder"})
    monkeypatch.chdir(tmp_path)
    text = io.TextIOWrapper(io.BytesIO("FROM ./weights\nSYSTEM x\n".encode("utf-16")))
    monkeypatch.setattr("sys.stdin", text)
    assert typed(server, "create", "made", "-f", "-") == 0
    assert server.store.resolve(MADE).system == "x"


def test_what_show_prints_makes_the_same_model(
    server: LiveServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Locally, where it names files, and over HTTP, where it names blobs."""
    put_model(
        server.store,
        "dressed",
        tmp_path,
        texts={
            "template": '{{ .System }}\n"{{ .Prompt }}"\n',
            "system": ' "quoted" and\nlines ',
            "params": json.dumps({"temperature": 0.5, "stop": ["\n\n", '"', "# x"], "seed": 3}),
            "license": "MIT\n\nnone",
            "messages": json.dumps([{"role": "user", "content": "one\ntwo"}]),
        },
    )
    base = server.store.resolve(ModelName.parse("dressed"))
    assert run(["show", "dressed", "--modelfile", "--store", str(server.store.paths.root)]) == 0
    local = capsys.readouterr().out
    remote = server.post("/api/show", model="dressed")[1]["modelfile"]
    for text in (local, remote):
        (tmp_path / "Modelfile").write_text(text)
        assert typed(server, "create", "made", "-f", str(tmp_path / "Modelfile")) == 0
        made = server.store.resolve(MADE)
        for field in ("template", "system", "parameters", "licenses", "messages", "model_digest"):
            assert getattr(made, field) == getattr(base, field), field
        server.store.remove(MADE)


def test_pull_and_push_as_typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with LiveServer(tmp_path / "server") as live:
        trust(live.store, TRUSTED)
        store = ["--store", str(live.store.paths.root)]
        (tmp_path / "media").mkdir()
        (tmp_path / "out").mkdir()
        config = tmp_path / "satchel.toml"
        config.write_text(
            f'[store]\nreserve = 0\n[exchange]\nsources = ["{tmp_path}/media"]\n'
            f'export = "{tmp_path}/out"\n'
        )
        named = [*store, "--config", str(config)]
        assert run(["pull", "absent", *named]) == 1
        assert "pull model manifest: file does not exist" in capsys.readouterr().err
        forge().write(tmp_path / "media" / "stick")
        assert run(["pull", "demo", *named]) == 0
        assert capsys.readouterr().err.endswith("success\n")
        assert run(["push", "demo", "--json", *named]) == 0
        assert json.loads(capsys.readouterr().out) == {"model": "demo", "status": "success"}
        assert run(["list", "--store", str(tmp_path / "out")]) == 0
        assert "demo:latest" in capsys.readouterr().out
