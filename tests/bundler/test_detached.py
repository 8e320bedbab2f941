"""``satchel-bundle sign --emit`` and ``--attach``: the signing machine sees kilobytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bundler.cli import run
from bundler.errors import SignaturesError
from bundler.format.errors import UnsignedError
from bundler.format.keys import PublicKey
from bundler.signing import attach, emit, open_envelope
from tests.fakes.forge import SECOND, TRUSTED, forge, tiny_model, trusting, unpack


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stick with a bundle, and another machine's key."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stick").mkdir()
    forge().write(tmp_path / "stick")
    (tmp_path / "second.key").write_bytes(SECOND.dump(None))
    (tmp_path / "second.key").chmod(0o600)
    return tmp_path


def test_an_envelope_is_signed_elsewhere_and_brought_back(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in (desk / "stick").rglob("*") if path.is_file()}
    assert run(["sign", "stick", "--emit", "out.json"]) == 0
    assert {path: path.read_bytes() for path in before} == before
    assert (desk / "out.json").stat().st_size < 64 << 10
    assert run(["sign", "out.json", "--key", "second.key"]) == 0
    assert run(["sign", "stick", "--attach", "out.json"]) == 0
    assert capsys.readouterr().out.count("now signed by") == 4
    assert unpack(desk / "stick", trusting(TRUSTED, SECOND), 2)
    once = open_envelope(desk / "stick").data
    assert run(["sign", "stick", "--attach", "out.json"]) == 0
    assert open_envelope(desk / "stick").data == once


def test_signatures_of_another_bundle_are_refused(desk: Path) -> None:
    (desk / "other").mkdir()
    forge({"F32": tiny_model(9)}, seq=2).write(desk / "other")
    emit(open_envelope(desk / "other"), desk / "out.json")
    before = open_envelope(desk / "stick")
    with pytest.raises(SignaturesError, match="those of another"):
        attach(before, desk / "out.json")
    assert open_envelope(desk / "stick") == before


def test_an_envelope_that_nobody_signed_is_refused(desk: Path) -> None:
    opened = open_envelope(desk / "stick")
    members = json.loads(opened.data)
    (desk / "out.json").write_text(json.dumps({**members, "signatures": []}))
    with pytest.raises(SignaturesError, match="found none"):
        attach(opened, desk / "out.json")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "one of --key, --emit and --attach"),
        (["--key", "second.key", "--emit", "new.json"], 2, "one of --key"),
        (["--emit", "second.key"], 1, "expected no file"),
        (["--emit", "nowhere/out.json"], 1, "no such file"),
        (["--attach", "nowhere.json"], 10, "expected a file"),
        (["--attach", "second.key"], 10, "json"),
    ],
)
def test_every_refusal_is_one_line_with_its_exit_code(
    desk: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, says: str
) -> None:
    before = open_envelope(desk / "stick")
    assert run(["sign", "stick", *arguments]) == code
    assert says in capsys.readouterr().err
    assert open_envelope(desk / "stick") == before


def test_a_bundle_is_packed_without_a_key_and_signed_elsewhere(desk: Path) -> None:
    (desk / "tiny.gguf").write_bytes(tiny_model())
    (desk / "new").mkdir()
    packing = ["pack", "tiny.gguf", "--name", "demo", "--out", "new", "--seq", "1"]
    assert run(packing) == 1
    assert not any((desk / "new").iterdir())
    assert run([*packing, "--unsigned", "--key", "second.key"]) == 1
    assert run([*packing, "--unsigned"]) == 0
    assert open_envelope(desk / "new").envelope.signatures == ()
    with pytest.raises(UnsignedError):
        unpack(desk / "new", trusting(SECOND))
    assert run([*packing, "--unsigned"]) == 0  # it is there, and every byte of it is checked
    assert run(["sign", "new", "--emit", "out.json"]) == 0
    assert run(["sign", "out.json", "--key", "second.key"]) == 0
    assert run(["sign", "new", "--attach", "out.json"]) == 0
    assert unpack(desk / "new", trusting(SECOND))


def test_unsigned_bundles_count_on_their_own(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(desk / "state"))
    (desk / "tiny.gguf").write_bytes(tiny_model())
    (desk / "new").mkdir()
    assert run(["pack", "tiny.gguf", "--name", "demo", "--out", "new", "--unsigned"]) == 0
    assert (desk / "state" / "satchel" / "unsigned.seq").read_text() == '{"main": 1}\n'


@pytest.mark.usefixtures("desk")
def test_the_public_half_of_a_key_file_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["public", "second.key", "--label", "second"]) == 0
    assert PublicKey.parse(capsys.readouterr().out) == SECOND.public_key
    assert run(["public", "nowhere.key"]) == 1
