from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bundler.cli import run
from bundler.format.keys import PublicKey
from bundler.site import advice_lines
from hwprobe.gguf import model_profile, read_header
from hwprobe.machine import Machine, Memory
from hwprobe.verdict import Candidate
from tests.fakes.forge import flip, forge, tiny_model, unpack
from tests.fakes.synthetic_models import write_family

ROOT = Path(__file__).parents[2]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a model and an open key, and no settings from outside."""
    monkeypatch.chdir(tmp_path)
    for variable in ("SATCHEL_KEY_PASSPHRASE", "SOURCE_DATE_EPOCH"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "tiny.gguf").write_bytes(tiny_model())
    (tmp_path / "stick").mkdir()
    assert run(["keygen", "release", "--no-passphrase"]) == 0
    return tmp_path


PACK = ["pack", "tiny.gguf", "--name", "demo", "--key", "release.key", "--out", "stick"]


def test_the_whole_way_on_the_connected_side(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (desk / "Modelfile").write_text("SYSTEM be brief\nPARAMETER numa true\n")
    (desk / "LICENCE").write_text("MIT")
    extra = ["--modelfile", "Modelfile", "--licence", "LICENCE", "--spdx", "MIT", "--notes", "hi"]
    capsys.readouterr()
    assert run([*PACK, "--seq", "1", *extra]) == 0
    out, err = capsys.readouterr()
    assert "packed and read back" in out
    assert out.endswith("safe to remove: stick\n")
    assert "parameter numa is deprecated" in err
    assert run([*PACK, "--seq", "1", *extra]) == 0
    assert "already there, every byte checked" in capsys.readouterr().out
    assert run(["contents", "stick"]) == 0
    out = capsys.readouterr().out
    assert "main 1" in out
    assert "nothing above was verified" in out
    assert run(["contents", "stick", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["trusted"] is False
    assert [layer["role"] for layer in shown["models"][0]["layers"]] == ["system", "license"]
    assert run(["keygen", "second", "--no-passphrase"]) == 0
    assert run(["sign", "stick", "--key", "second.key"]) == 0
    keys = [PublicKey.parse((desk / f"{name}.pub").read_text()) for name in ("release", "second")]
    files = unpack(desk / "stick", {key.key_id: key for key in keys}, threshold=2)
    assert set(files.values()) == {
        tiny_model(),
        b"be brief",
        b"MIT",
        b"SYSTEM be brief\nPARAMETER numa true\n",
    }


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["pack"], 2, "missing"),
        (["unknown"], 2, "no such command"),
        (["contents"], 2, "missing"),
        ([*PACK, "--seq", "one"], 2, "valid integer"),
        ([*PACK[:-1], "nowhere"], 1, "nowhere: expected the medium's directory, found none"),
        ([*PACK, "--seq", "0"], 10, "seq: expected an integer from 1"),
        ([*PACK, "--seq", "1", "--channel", "A B"], 10, "channel: expected text of the form"),
        ([*PACK, "--seq", "1", "--quantize", "Q9"], 1, "quantization: expected one of F32"),
        ([*PACK, "--seq", "1", "--expires", "soon"], 1, "expires: expected a day"),
        ([*PACK, "--seq", "1", "--for", "tiny.gguf"], 1, "expected a site report"),
        ([*PACK, "--seq", "1", "--modelfile", "none"], 10, "none: expected a file"),
        ([*PACK, "--seq", "1", "--licence", "tiny.gguf"], 1, "expected UTF-8 text"),
        (["pack", "none.gguf", *PACK[2:], "--seq", "1"], 1, "no such file"),
        (["pack", "release.pub", *PACK[2:], "--seq", "1"], 10, "not a usable GGUF: at byte"),
        (["pack", "tiny.gguf", "--name", "../x", *PACK[4:], "--seq", "1"], 10, "model name: "),
        ([*PACK[:4], "--key", "release.pub", *PACK[6:], "--seq", "1"], 1, "a public one"),
        (["contents", "nowhere"], 10, "nowhere: expected"),
        (["contents", "."], 10, ".: expected a bundle, found none"),
        (["sign", ".", "--key", "release.key"], 10, ".: expected a bundle, found none"),
        (["keygen", "release", "--no-passphrase"], 1, "expected no file, found one"),
        (["keygen", "other"], 1, "passphrase: expected one, found none"),
        (["keygen", "tiny.gguf/other", "--no-passphrase"], 1, "tiny.gguf: file exists"),
    ],
)
def test_every_refusal_is_one_line_with_its_exit_code(
    *,
    desk: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    error: str,
) -> None:
    del desk
    with Path(os.devnull).open() as nobody:
        monkeypatch.setattr(sys, "stdin", nobody)
        capfd.readouterr()
        assert run(arguments) == code
    err = capfd.readouterr().err
    lines = err.splitlines()
    assert lines[0].startswith("satchel-bundle: error: ")
    assert error.lower() in lines[0].lower()
    assert all(line.startswith("satchel-bundle: hint: ") for line in lines[1:])
    assert len(lines) <= 2


def test_a_damaged_bundle_is_refused_with_ten(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = forge().write(desk)
    flip(directory / "bundle.dsse.json", 3)
    assert run(["contents", "."]) == 10
    assert "satchel-bundle: error: " in capsys.readouterr().err


def test_help_without_arguments(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    del desk
    assert run([]) == 0
    assert "Usage: satchel-bundle" in capsys.readouterr().out
    assert run(["--version"]) == 0


def test_a_time_that_is_given_makes_the_bundle_reproducible(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1795226400")
    for name in ("one", "two"):
        (desk / name).mkdir()
        assert run([*PACK[:-1], name, "--seq", "1"]) == 0
    files = [
        {
            path.relative_to(desk / name): path.read_bytes()
            for path in (desk / name).rglob("*")
            if path.is_file()
        }
        for name in ("one", "two")
    ]
    assert files[0] == files[1]
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    assert run([*PACK, "--seq", "1"]) == 1
    assert "SOURCE_DATE_EPOCH" in capsys.readouterr().err


def test_an_encrypted_key_takes_its_passphrase_from_variable_or_file(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (desk / "secret").write_text("correct horse\n")
    (desk / "secret").chmod(0o640)
    assert run(["keygen", "locked", "--passphrase-file", "secret"]) == 1
    assert "found mode 640" in capsys.readouterr().err
    (desk / "secret").chmod(0o600)
    assert run(["keygen", "locked", "--passphrase-file", "secret"]) == 0
    assert b"ENCRYPTED" in (desk / "locked.key").read_bytes()
    pack = [*PACK[:4], "--key", "locked.key", *PACK[6:]]
    monkeypatch.setenv("SATCHEL_KEY_PASSPHRASE", "correct horse")
    assert run([*pack, "--seq", "1"]) == 0
    assert run([*pack, "--seq", "2", "--passphrase-file", "secret"]) == 0
    monkeypatch.setenv("SATCHEL_KEY_PASSPHRASE", "wrong")
    assert run([*pack, "--seq", "3"]) == 1
    assert "wrong passphrase" in capsys.readouterr().err
    assert not (desk / "stick" / "satchel" / "main-000003").exists()


def test_progress_is_plain_lines_where_there_is_no_terminal(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del desk
    capsys.readouterr()
    assert run([*PACK, "--seq", "1"]) == 0
    err = capsys.readouterr().err
    assert "\x1b" not in err
    stages = [line.split(":")[0] for line in err.splitlines()]
    assert stages == ["reading source", "storing f32", "reading back"]


def test_which_variant_fits_a_site_is_said(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = subprocess.run(
        [sys.executable, "-P", "-c", "from hwprobe.cli import main; main()", "report", "--json"],
        check=True,
        capture_output=True,
    )
    (desk / "site.json").write_bytes(report.stdout)
    capsys.readouterr()
    assert run([*PACK, "--seq", "1", "--for", "site.json"]) == 0
    out = capsys.readouterr().out
    assert "for site.json:" in out
    assert "f32" in out.partition("for site.json:")[2]
    assert "variant f32: for site.json" in out


def test_variants_that_no_site_takes_are_named(tmp_path: Path) -> None:
    """Two sites, three variants: one each, and one for nobody; a third site gets nothing."""
    choices = []
    for kind in ("Q8_0", "Q6_K", "Q4_K"):
        (tmp_path / kind).mkdir()
        file = write_family("llama-8b", tmp_path / kind, ggml_type=kind, output_type=kind)
        choices.append(Candidate(variant=kind, profile=model_profile(read_header(file))))
    sizes = (("big.json", 64), ("small.json", 7), ("tiny.json", 1))
    sites = [
        (label, Machine(memory=Memory(total_bytes=gib << 30, available_bytes=gib << 30)))
        for label, gib in sizes
    ]
    assert advice_lines(choices, sites) == (
        "variant Q8_0: for big.json",
        "variant Q6_K: no site takes it; it could stay here",
        "variant Q4_K: for small.json",
        "no variant fits tiny.json; a smaller one would have to be made",
    )


@pytest.mark.faults
def test_an_interrupted_pack_says_so_and_leaves_nothing(desk: Path) -> None:
    demo = ROOT / "tests" / "demo-model" / "demo-f16.gguf"
    command = [sys.executable, "-c", "from bundler.cli import main; main()"]
    arguments = [*PACK, "--seq", "1", "--quantize", "IQ4_XS,Q4_K_M,Q5_K_M,Q6_K", "--threads", "1"]
    arguments[1] = str(demo)
    child = subprocess.Popen(
        [*command, *arguments],
        cwd=desk,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    while not (desk / "stick" / "satchel").exists() and child.poll() is None:
        time.sleep(0.01)
    time.sleep(0.3)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate()
    assert child.returncode == 130, err
    assert b"satchel-bundle: error: interrupted" in err
    assert not (desk / "stick" / "satchel").exists()


def test_progress_is_a_bar_on_a_terminal(desk: Path) -> None:
    parent, child = pty.openpty()
    try:
        ended = subprocess.run(
            [sys.executable, "-c", "from bundler.cli import main; main()", *PACK, "--seq", "1"],
            cwd=desk,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"},
            stdout=subprocess.DEVNULL,
            stderr=child,
            check=False,
        )
        shown = os.read(parent, 1 << 20).decode()
    finally:
        os.close(parent)
        os.close(child)
    assert ended.returncode == 0, shown
    assert "reading source" in shown
    assert "\x1b[" in shown
