"""Models of Hugging Face, through its own library against a small hub on loopback.

Each command is a process of its own: the library reads its variables when it is imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bundler.cli import run
from bundler.errors import PackError
from bundler.format.digest import Digest
from bundler.signing import open_envelope
from bundler.source.hub import HubFile, choose_files
from tests.bundler.test_split import split
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.forge import tiny_model
from tests.fakes.gguf_writer import Tensor, write_gguf
from tests.fakes.hub import COMMIT, Hub, hub

ROOT = Path(__file__).parents[2]
WEIGHTS = tiny_model(6)


@pytest.fixture
def fake() -> Iterator[Hub]:
    with hub() as found:
        yield found


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stick").mkdir()
    assert run(["keygen", "release", "--no-passphrase"]) == 0
    return tmp_path


def pack(
    desk: Path, fake: Hub, source: str, *arguments: str, token: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run ``satchel-bundle pack --from`` against the fake."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "HUGGING", "TRANSFORMERS", "SOURCE_DATE"))
    }
    own = {
        "PYTHONPATH": str(ROOT),
        "HF_ENDPOINT": fake.endpoint,
        "HF_HOME": str(desk / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_XET": "1",
        **({"HF_TOKEN": token} if token else {}),
    }
    code = "from bundler.cli import main; main()"
    options = ["--key", "release.key", "--out", "stick", *arguments]
    return subprocess.run(
        [sys.executable, "-P", "-c", code, "pack", "--from", source, *options],
        cwd=desk,
        env={**kept, **own},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def packed(desk: Path) -> Any:
    """The one model on the medium, as the statement has it."""
    return open_envelope(desk / "stick").manifest.models[0]


def test_a_file_is_chosen_by_its_quantization_and_its_origin_told(desk: Path, fake: Hub) -> None:
    projector = write_gguf(
        desk / "p.gguf", {"general.architecture": "clip"}, [Tensor("v.weight", (32,))]
    )
    fake.files["org/demo-GGUF"] = {
        "demo-Q4_K_M.gguf": tiny_model(1),
        "demo-Q8_0.gguf": WEIGHTS,
        "mmproj-demo-f16.gguf": projector.read_bytes(),
        "LICENSE": b"MIT",
        "README.md": b"# demo",
    }
    done = pack(desk, fake, "hf:org/demo-GGUF:q8_0@v1", "--name", "demo")
    assert done.returncode == 0, done.stderr
    model = packed(desk)
    (variant,) = model.variants
    assert variant.artifact == Digest.of(WEIGHTS)
    assert variant.projector == Digest.of(projector.read_bytes())
    assert [layer.role for layer in model.layers] == ["license"]
    assert model.evidence.source.uri == "hf://org/demo-GGUF/demo-Q8_0.gguf"
    assert model.evidence.source.revision == COMMIT
    assert not any("README" in line or "Q4_K_M" in line for line in fake.asked)
    assert pack(desk, fake, "hf:org/demo-GGUF:Q8_0@v1", "--name", "demo").returncode == 0
    gets = [line for line in fake.asked if line.startswith("GET") and "resolve" in line]
    assert sum("demo-Q8_0.gguf" in line for line in gets) == 1  # the second time from the cache


def test_shards_become_one_model_under_the_hub_s_name(desk: Path, fake: Hub) -> None:
    (desk / "tiny.gguf").write_bytes(WEIGHTS)
    shards = split(desk / "tiny.gguf", desk, 3, stem="demo-F32")
    fake.files["org/demo"] = {f"F32/{one.name}": one.read_bytes() for one in shards}
    done = pack(desk, fake, "hf:org/demo")
    assert done.returncode == 0, done.stderr
    assert packed(desk).name.short() == "hf.co/org/demo:latest"
    assert packed(desk).evidence.source.uri == "hf://org/demo/F32/demo-F32.gguf"


def test_a_repository_of_safetensors_is_converted(desk: Path, fake: Hub) -> None:
    write_checkpoint(desk / "tiny", "qwen2", shards=2)
    fake.files["org/tiny"] = {path.name: path.read_bytes() for path in (desk / "tiny").iterdir()}
    fake.files["org/tiny"]["LICENSE"] = b"Apache"
    fake.files["org/tiny"]["pytorch_model.bin"] = b"pickle"
    done = pack(desk, fake, "hf:org/tiny", "--name", "tiny", "--quantize", "Q8_0,F16")
    assert done.returncode == 0, done.stderr
    assert [one.id for one in packed(desk).variants] == ["q8_0", "f16"]
    assert packed(desk).evidence.source.uri == "hf://org/tiny"
    assert not any("pytorch_model" in line for line in fake.asked)


def test_a_broken_download_goes_on_where_it_was(desk: Path, fake: Hub) -> None:
    demo = (ROOT / "tests" / "demo-model" / "demo-f16.gguf").read_bytes()
    fake.files["org/demo"] = {"demo-F16.gguf": demo}
    fake.cut_after = [len(demo) - 1000]
    done = pack(desk, fake, "hf:org/demo", "--name", "demo")
    if done.returncode:
        assert "kept" in done.stderr
        done = pack(desk, fake, "hf:org/demo", "--name", "demo")
    assert done.returncode == 0, done.stderr
    # The library writes ten mebibytes at a time, and goes on behind the last whole ones.
    assert any(f"bytes={10 << 20}-" in line for line in fake.asked)
    assert packed(desk).variants[0].artifact == Digest.of(demo)


def test_a_token_comes_from_the_environment_only(desk: Path, fake: Hub) -> None:
    fake.files["org/demo"] = {"demo-F32.gguf": WEIGHTS}
    fake.token = "hf_secret"
    done = pack(desk, fake, "hf:org/demo", "--name", "demo")
    assert done.returncode == 1
    assert "no such repository, or it is private" in done.stderr
    assert "hf auth login" in done.stderr
    done = pack(desk, fake, "hf:org/demo", "--name", "demo", token="hf_secret")
    assert done.returncode == 0, done.stderr
    assert "hf_secret" not in done.stdout + done.stderr + str(packed(desk))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("hf:org/none", "no such repository"),
        ("hf:org/demo@v9", "no such revision"),
        ("hf:org/gated", "agreed to its terms"),
        ("hf:org/demo:Q5_K_M", "expected one GGUF file of Q5_K_M, found none among 2"),
        ("hf:org/demo", "expected one GGUF file, found none among 2"),
        ("hf:org/empty", "found neither"),
    ],
)
def test_every_refusal_is_one_line_with_what_to_do(
    desk: Path, fake: Hub, source: str, said: str
) -> None:
    fake.files["org/demo"] = {"demo-Q8_0.gguf": WEIGHTS, "demo-F16.gguf": WEIGHTS}
    fake.files["org/empty"] = {"README.md": b""}
    fake.gated = {"org/gated"}
    done = pack(desk, fake, source, "--name", "demo")
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("satchel-bundle: error")]
    assert len(lines) == 1
    assert said in lines[0]
    assert "Traceback" not in done.stderr


def test_other_bytes_than_listed_are_refused(desk: Path, fake: Hub) -> None:
    fake.files["org/demo"] = {"demo-F32.gguf": WEIGHTS}
    fake.spoil = True
    done = pack(desk, fake, "hf:org/demo", "--name", "demo")
    assert done.returncode == 1
    assert "other bytes than the hub lists" in done.stderr


def test_a_hub_that_does_not_answer_is_said(desk: Path, fake: Hub) -> None:
    fake.endpoint = "http://127.0.0.1:1"
    done = pack(desk, fake, "hf:org/demo", "--name", "demo")
    assert done.returncode == 1
    assert "satchel-bundle: error: hf:org/demo" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("package", ["huggingface_hub", "gguf", "safetensors"])
def test_a_package_that_is_not_installed_is_named_with_how_to_get_it(
    desk: Path, package: str
) -> None:
    write_checkpoint(desk / "tiny", "qwen2")
    source = ["--from", "hf:org/demo"] if package == "huggingface_hub" else ["tiny"]
    arguments = ["pack", *source, "--name", "x", "--key", "release.key", "--out", "stick"]
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        f"from bundler.cli import run; sys.exit(run({arguments!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=desk,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert f"the Python package {package} is not installed" in done.stderr
    assert "pip install 'satchel[connected]'" in done.stderr


def files(*names: str) -> list[HubFile]:
    return [HubFile(name=name) for name in names]


@pytest.mark.parametrize(
    ("names", "quantization", "expected"),
    [
        (("a.gguf",), "", "a.gguf"),
        (("a-Q8_0.gguf", "a-Q4_K_M.gguf"), "", "a-Q4_K_M.gguf"),
        (("a.Q4_K_S.gguf", "a.Q4_K_M.gguf"), "q4_k_s", "a.Q4_K_S.gguf"),
        (("IQ4_XS/a.gguf", "Q8_0/a.gguf"), "Q8_0", "Q8_0/a.gguf"),
        (("a-bf16.gguf", "a-f16.gguf"), "F16", "a-f16.gguf"),
    ],
)
def test_which_file_a_quantization_names(
    names: tuple[str, ...], quantization: str, expected: str
) -> None:
    assert [one.name for one in choose_files(files(*names), quantization, "x").model] == [expected]


def test_shards_that_lack_and_two_of_a_kind_are_refused() -> None:
    with pytest.raises(PackError, match="1 shards are not in the repository"):
        choose_files(files("a-00001-of-00002.gguf"), "", "x")
    with pytest.raises(PackError, match="found 2 among 2"):
        choose_files(files("a-Q8_0.gguf", "b-Q8_0.gguf"), "Q8_0", "x")
    with pytest.raises(PackError, match="found safetensors"):
        choose_files(files("config.json", "model.safetensors"), "Q8_0", "x")
