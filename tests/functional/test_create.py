"""Creating models through real sockets and real child processes: refusals, merging, progress."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.journal import Journal
from bundler.format.name import ModelName
from hwprobe.gguf import read_header
from tests.fakes.gguf_writer import (
    Tensor,
    Typed,
    tiny_llama_metadata,
    tiny_llama_tensors,
    write_gguf,
    write_tiny_llama,
)
from tests.functional.live import LiveServer, put_model

PARAMS = {"temperature": 0.5, "stop": ["END"], "top_k": 7}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("create")
    with LiveServer(folder) as live:
        put_model(
            live.store,
            "base",
            folder,
            texts={
                "template": "{{ .Prompt }}!",
                "system": "Be kind.",
                "params": json.dumps(PARAMS),
                "messages": json.dumps([{"role": "user", "content": "one"}]),
                "license": "MIT",
            },
        )
        yield live


def send(live: LiveServer, data: bytes) -> str:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert live.ask("POST", f"/api/blobs/{digest}", data)[0] in {200, 201}
    return digest


def statuses(lines: list[Any]) -> list[str]:
    return [line.get("status", line.get("error")) for line in lines]


def lora(tmp_path: Path, **overrides: Any) -> bytes:
    metadata = {
        "general.type": "adapter",
        "adapter.type": "lora",
        "general.architecture": "llama",
        "adapter.lora.alpha": 1.0,
        **overrides,
    }
    tensors = [
        Tensor("blk.0.attn_q.weight.lora_a", (32, 4)),
        Tensor("blk.0.attn_q.weight.lora_b", (4, 32)),
    ]
    return write_gguf(tmp_path / "lora.gguf", metadata, tensors).read_bytes()


ABSENT = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({}, "invalid model name"),
        ({"model": ""}, "invalid model name"),
        ({"model": "a b", "from": "base"}, "invalid model name"),
        ({"model": "../up", "from": "base"}, "invalid model name"),
        ({"model": "x"}, "neither 'from' or 'files' was specified"),
        ({"model": "x", "from": "not a name"}, "invalid model name"),
        ({"model": "x", "path": "/tmp/Modelfile"},
         "path: expected modelfile, or files that were sent as blobs"),
        ({"model": "x", "from": "base", "remote_host": "http://h"},
         "remote_host: there are no remote models here"),
        ({"model": "x", "from": "base", "draft_files": {"d": ABSENT}},
         f'd: blob "{ABSENT}" not found'),
        ({"model": "x", "from": "base", "draft_files": {"c": ABSENT, "d": ABSENT}},
         "only one draft model is supported"),
        ({"model": "x", "from": "base", "draft_quantize": "Q8_0"},
         "--draft-quantize requires a DRAFT model"),
        ({"model": "x", "files": {}}, "no files provided to convert"),
        ({"model": "x", "files": {"/etc/passwd": ABSENT}}, "file path must be relative"),
        ({"model": "x", "files": {"../m.gguf": ABSENT}}, "file path must be relative"),
        ({"model": "x", "files": {"m.gguf": "sha256:1"}}, "invalid digest format"),
        ({"model": "x", "files": {"m.gguf": 3}}, "invalid digest format"),
        ({"model": "x", "files": []}, "files: expected object, found array"),
        ({"model": "x", "files": {"m.gguf": ABSENT}}, f'm.gguf: blob "{ABSENT}" not found'),
        ({"model": "x", "from": "base", "adapters": {"a": ABSENT, "b": ABSENT}},
         "only one adapter is currently supported"),
        ({"model": "x", "from": "base", "template": "{{ if }}"},
         "template error: template: :1: missing value for if"),
        ({"model": "x", "from": "base", "parameters": {"warmth": 1}},
         "unknown parameter 'warmth'"),
        ({"model": "x", "from": "base", "parameters": {"temperature": "hot"}},
         'option "temperature" must be of type float32'),
        ({"model": "x", "from": "base", "parameters": {"num_ctx": 0}},
         'option "num_ctx" must be between 1 and 2.14748e+09'),
        ({"model": "x", "from": "base", "parameters": {"stop": [1]}},
         'option "stop" must be of an array of strings'),
        ({"model": "x", "from": "base", "license": 7},
         "license: expected string or array of strings"),
        ({"model": "x", "from": "base", "messages": [{"role": "judge", "content": ""}]},
         'message role must be one of "system", "user", or "assistant"'),
        ({"model": "x", "from": "base", "requires": "soon"},
         "requires must be a valid semver (e.g. 0.14.0)"),
        ({"model": "x", "from": "base", "info": {"model_family": 1}},
         'info field "model_family" must be a string'),
        ({"model": "x", "from": "base", "info": {"context_length": -1}},
         'info field "context_length" must be a non-negative integer'),
        ({"model": "x", "from": "base", "quantize": "Q9"},
         "unsupported quantization type Q9 - supported types are F32, F16"),
        ({"model": "x", "modelfile": "SYSTEM hi"}, "no FROM line"),
        ({"model": "x", "modelfile": "FROM base\nWARMTH 1"},
         '(line 2): command must be one of "from", "license"'),
        ({"model": "x", "modelfile": "FROM base\nPARAMETER top_k many"},
         "(line 2): invalid int value [many]"),
        ({"model": "x", "modelfile": "FROM ./model.gguf"},
         "FROM ./model.gguf: expected a model or @sha256:DIGEST, found a path"),
        ({"model": "x", "modelfile": "FROM base\nADAPTER ./lora.gguf"},
         "ADAPTER ./lora.gguf: expected @sha256:DIGEST, found a path"),
        ({"model": "x", "modelfile": "FROM base\nDRAFT small"},
         "DRAFT small: expected @sha256:DIGEST, found a path"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_400(server: LiveServer, body: dict[str, Any], text: str) -> None:
    status, data = server.ask("POST", "/api/create", body)
    assert (status, json.loads(data)["error"][: len(text)]) == (400, text)
    assert server.store.names() == (ModelName.parse("base"), ModelName.parse("tiny"))


def test_a_base_that_is_nowhere_is_refused_in_ollamas_words(server: LiveServer) -> None:
    lines = server.lines("/api/create", **{"model": "x", "from": "absent"})
    text = "pull model manifest: file does not exist"
    assert lines == [{"status": "pulling manifest"}, {"error": text}]
    status, answer = server.post("/api/create", stream=False, **{"model": "x", "from": "absent"})
    assert (status, answer) == (500, {"error": text})


def test_a_cloud_base_is_403(server: LiveServer) -> None:
    status, answer = server.post("/api/create", model="x", **{"from": "big:cloud"})
    assert status == 403
    assert "ollama cloud is disabled" in answer["error"]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "supplied file was not in GGUF format"),
        (b"GGUF", "expected"),
        (b"PK\x03\x04 not a model", "supplied file was not in GGUF format"),
        (b"GGUF" + b"\xff" * 64, "expected"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_files_that_are_no_model_are_refused(
    server: LiveServer, *, data: bytes, text: str, stream: bool
) -> None:
    body = {"model": "x", "files": {"m.gguf": send(server, data)}, "stream": stream}
    if stream:
        lines = server.lines("/api/create", **body)
        assert lines[0] == {"status": "parsing GGUF"}
        assert list(lines[-1]) == ["error"]
        assert text in lines[-1]["error"]
    else:
        status, answer = server.post("/api/create", **body)
        assert status == 400
        assert text in answer["error"]


def test_weights_the_engine_does_not_take_are_refused_with_its_words(
    server: LiveServer, tmp_path: Path
) -> None:
    data = write_tiny_llama(
        tmp_path / "m.gguf", **{"tokenizer.ggml.model": "nobody-knows"}
    ).read_bytes()
    body = {"model": "x", "files": {"m.gguf": send(server, data)}}
    status, answer = server.post("/api/create", stream=False, **body)
    assert status == 400
    assert "the engine does not take this llama model" in answer["error"]
    assert server.store.paths.root.name not in answer["error"] or "the store" in answer["error"]
    assert not list(server.store.paths.uploads.iterdir())


def test_adapters_are_told_from_models(server: LiveServer, tmp_path: Path) -> None:
    adapter = send(server, lora(tmp_path))
    other = send(server, lora(tmp_path, **{"general.architecture": "qwen2"}))
    control = send(server, lora(tmp_path, **{"adapter.type": "control"}))
    weights = send(server, write_tiny_llama(tmp_path / "m.gguf").read_bytes())
    for body, text in (
        ({"files": {"a.gguf": adapter}}, "files: expected a model, found an adapter"),
        ({"from": "base", "adapters": {"m.gguf": weights}}, "adapters: expected a LoRA adapter"),
        ({"from": "base", "adapters": {"a.gguf": other}}, "expected one for llama, found one for"),
        ({"from": "base", "adapters": {"a.gguf": control}}, "expected an adapter of type lora"),
        ({"from": "base", "files": {"m.gguf": weights}}, "expected one model among the files"),
        ({"files": {"m.gguf": weights}, "quantize": "Q9_9"}, "unsupported quantization type Q9_9"),
    ):
        status, answer = server.post("/api/create", model="x", stream=False, **body)
        assert status == 400, answer
        assert text in answer["error"]
    lines = server.lines(
        "/api/create", **{"model": "adapted", "from": "base", "adapters": {"a.gguf": adapter}}
    )
    assert lines[-1] == {"status": "success"}
    model = server.store.resolve(ModelName.parse("adapted"))
    assert [path.name for path in model.adapters] == [adapter.replace(":", "-")]
    server.store.remove(ModelName.parse("adapted"))


def test_a_projector_goes_beside_the_model(server: LiveServer, tmp_path: Path) -> None:
    projector = write_gguf(
        tmp_path / "mmproj.gguf",
        {"general.architecture": "clip", "clip.projector_type": "mlp"},
        [Tensor("v.patch_embd.weight", (32, 4)), Tensor("mm.0.weight", (32, 4))],
    ).read_bytes()
    weights = write_tiny_llama(tmp_path / "m.gguf", **{"general.name": "sees"}).read_bytes()
    files = {"model.gguf": send(server, weights), "mmproj.gguf": send(server, projector)}
    assert server.lines("/api/create", model="sees", files=files)[-1] == {"status": "success"}
    model = server.store.resolve(ModelName.parse("sees"))
    assert [path.read_bytes() for path in model.projectors] == [projector]
    assert model.model_path.read_bytes() == weights
    server.store.remove(ModelName.parse("sees"))


def test_a_model_is_made_of_a_file(server: LiveServer, tmp_path: Path) -> None:
    weights = write_tiny_llama(tmp_path / "m.gguf", **{"general.name": "file"}).read_bytes()
    digest = send(server, weights)
    lines = server.lines(
        "/api/create",
        model="Site/made:1",
        files={"m.gguf": digest},
        system="Be brief.",
        template="{{ .System }} {{ .Prompt }}",
        license=["MIT", "Apache-2.0"],
        parameters={"temperature": 1, "stop": "END", "num_ctx": 512.0, "mirostat_eta": None},
        messages=[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}],
        info={"model_family": "tinies", "context_length": 99},
        requires="0.14.0",
        renderer="r",
    )
    said = statuses(lines)
    assert said[:2] == ["parsing GGUF", "validating GGUF model"]
    assert said[2] == f"using existing layer {digest}"
    assert all(" layer sha256:" in text for text in said[3:-2])
    assert said[-2:] == ["writing manifest", "success"]
    model = server.store.resolve(ModelName.parse("site/made:1"))
    assert model.system == "Be brief."
    assert model.parameters == {"temperature": 1, "stop": ["END"], "num_ctx": 512}
    assert model.licenses == ("MIT", "Apache-2.0")
    assert model.messages == (("user", "hi"), ("assistant", "ho"))
    assert model.config["model_family"] == "tinies"
    assert model.config["context_length"] == 99
    assert (model.config["requires"], model.config["renderer"]) == ("0.14.0", "r")
    assert model.provenance is None
    assert model.creation is not None
    assert (model.creation.base, model.creation.weights) == ("", "unsigned")
    status, answer = server.post("/api/generate", model="site/made:1", prompt="x", stream=False)
    assert (status, answer["response"]) == (200, "Hello world")
    server.store.remove(model.name)


def test_what_a_base_says_is_kept_laid_over_or_added_to(server: LiveServer) -> None:
    body = {
        "model": "child",
        "from": "BASE",
        "parameters": {"top_k": 9, "stop": ["A", "B"]},
        "license": "Also",
        "stream": False,
    }
    assert server.post("/api/create", **body) == (200, {"status": "success"})
    child = server.store.resolve(ModelName.parse("child"))
    base = server.store.resolve(ModelName.parse("base"))
    assert child.parameters == {"temperature": 0.5, "top_k": 9, "stop": ["A", "B"]}
    assert child.licenses == ("MIT", "Also")
    assert (child.template, child.system) == (base.template, base.system)
    assert child.messages == base.messages
    assert child.model_path == base.model_path
    assert child.creation is not None
    assert child.creation.base == "base:latest"
    # Overwritten by the same name: what only the former one used is gone.
    before = {path.name for path in server.store.paths.blobs.iterdir()}
    assert server.post("/api/create", **{**body, "license": "Other"})[0] == 200
    after = {path.name for path in server.store.paths.blobs.iterdir()}
    assert len(after) == len(before)
    assert server.store.remove(child.name) > 0
    assert base.model_path.exists()


def test_another_name_and_nothing_else_is_the_same_model(server: LiveServer) -> None:
    assert (
        server.post("/api/create", **{"model": "twin", "from": "base", "stream": False})[0] == 200
    )
    twin = server.store.resolve(ModelName.parse("twin"))
    assert twin.digest == server.store.resolve(ModelName.parse("base")).digest
    server.store.remove(twin.name)


@pytest.mark.parametrize("key", ["model", "name"])
def test_the_text_of_a_modelfile_makes_a_model(
    server: LiveServer, tmp_path: Path, key: str
) -> None:
    weights = write_tiny_llama(tmp_path / "m.gguf", **{"general.name": "legacy"}).read_bytes()
    digest = send(server, weights)
    text = (
        f"# made by hand\nFROM @{digest}\nPARAMETER temperature 0.25\nPARAMETER stop A\n"
        'SYSTEM """\nTwo\nlines"""\nPARAMETER mirostat 1\nMESSAGE user hi\nLICENSE MIT\n'
    )
    status, answer = server.post(
        "/api/create", **{key: "legacy", "modelfile": text, "stream": False}
    )
    assert (status, answer) == (200, {"status": "success"})
    model = server.store.resolve(ModelName.parse("legacy"))
    assert model.system == "\nTwo\nlines"
    assert model.parameters == {"stop": ["A"], "temperature": 0.25}
    assert model.messages == (("user", "hi"),)
    server.store.remove(model.name)


def test_what_was_made_is_in_the_journal(server: LiveServer) -> None:
    body = {"model": "noted", "from": "base", "system": "x", "stream": False}
    assert server.post("/api/create", **body)[0] == 200
    event = Journal(server.store.paths.journal).events()[-1]
    assert (event.kind, event.details["base"]) == (
        "created",
        "registry.ollama.ai/library/base:latest",
    )
    server.store.remove(ModelName.parse("noted"))


@pytest.mark.parametrize(
    ("allowed", "text"),
    [("off", "creating models is switched off"), ("signed", "only from models that came in")],
)
def test_a_site_may_forbid_it(tmp_path: Path, allowed: Any, text: str) -> None:
    with LiveServer(tmp_path, create=allowed) as live:
        put_model(live.store, "base", tmp_path)
        status, answer = live.post("/api/create", **{"model": "x", "from": "base", "system": "y"})
        assert status == 403
        assert text in answer["error"]
        assert live.post("/api/create", model="x", files={"m": ABSENT})[0] == 403


def test_a_writer_that_holds_the_store_is_waited_for(server: LiveServer) -> None:
    with server.store.writing():
        connection = server.connect()
        body = {"model": "late", "from": "base", "system": "later"}
        connection.request("POST", "/api/create", json.dumps(body))
        response = connection.getresponse()
        assert b"using existing layer" in response.readline()
    assert b'"success"' in response.read()
    connection.close()
    server.store.remove(ModelName.parse("late"))


def shards(tmp_path: Path, count: int = 3) -> list[bytes]:
    """A tiny model as so many files."""
    tensors = tiny_llama_tensors()
    step = -(-len(tensors) // count)
    files = []
    for place in range(count):
        split = {
            "split.no": Typed("uint16", place),
            "split.count": Typed("uint16", count),
            "split.tensors.count": Typed("int32", len(tensors)),
        }
        metadata = tiny_llama_metadata() if place == 0 else {"general.architecture": "llama"}
        part = tensors[place * step : (place + 1) * step]
        path = tmp_path / f"shard{place}.gguf"
        files.append(write_gguf(path, {**metadata, **split}, part).read_bytes())
    return files


def test_a_split_model_becomes_one_whatever_its_files_are_called(
    server: LiveServer, tmp_path: Path
) -> None:
    sent = [send(server, data) for data in shards(tmp_path)]
    files = dict(zip(("c.gguf", "b.gguf", "a.gguf"), sent, strict=True))
    lines = server.lines("/api/create", model="whole", files=files)
    assert lines[-1] == {"status": "success"}
    assert "merging 3 shards" in statuses(lines)
    model = server.store.resolve(ModelName.parse("whole"))
    header = read_header(model.model_path)
    assert {tensor.name for tensor in header.tensors} == {
        tensor.name for tensor in tiny_llama_tensors()
    }
    assert not [key for key in header.metadata if key.startswith("split.")]
    server.store.remove(model.name)


def test_shards_that_are_not_one_model_are_refused(server: LiveServer, tmp_path: Path) -> None:
    first, second, third = (send(server, data) for data in shards(tmp_path))
    (tmp_path / "two").mkdir()
    other, _ = (send(server, data) for data in shards(tmp_path / "two", count=2))
    for files in ([first], [first, second], [other, second, third], [other]):
        body = {"model": "x", "files": {f"{number}.gguf": one for number, one in enumerate(files)}}
        status, answer = server.post("/api/create", stream=False, **body)
        assert status == 400
        assert "shards of one model, found" in answer["error"]


@pytest.mark.parametrize(
    ("metadata", "tensors", "mark"),
    [
        ({"general.architecture": "gptoss"}, [], "llama.cpp calls the architecture gpt-oss"),
        ({}, [Tensor("v.blk.0.attn_q.weight", (32, 4))], "vision tensors such as v.blk.0"),
        ({}, [Tensor("mm.0.weight", (32, 4))], "projector tensors such as mm.0.weight inside"),
    ],
)
def test_a_layout_of_ollamas_own_is_named(
    server: LiveServer,
    tmp_path: Path,
    metadata: dict[str, Any],
    tensors: list[Tensor],
    mark: str,
) -> None:
    architecture = metadata.get("general.architecture", "llama")
    keys = {
        key.replace("llama.", f"{architecture}."): value
        for key, value in tiny_llama_metadata(**metadata).items()
    }
    keys["tokenizer.ggml.model"] = "llama"
    path = write_gguf(tmp_path / "m.gguf", keys, [*tiny_llama_tensors(), *tensors])
    body = {"model": "x", "files": {"m.gguf": send(server, path.read_bytes())}}
    status, answer = server.post("/api/create", stream=False, **body)
    assert status == 400
    assert f"{architecture} in Ollama's own layout" in answer["error"]
    assert mark in answer["error"]
