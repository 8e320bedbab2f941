"""``satchel media``: what happens when a medium is plugged in and nobody is at the keyboard."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.cli import run
from appliance.layout import Paths
from appliance.store import Store
from tests.fakes.forge import (
    SECOND,
    SMALL_CHUNK_BYTES,
    TRUSTED,
    flip,
    forge,
    spread,
    tiny_model,
)

Satchel = Callable[..., tuple[int, str]]


@pytest.fixture
def satchel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Satchel:
    for name in list(os.environ):
        if name.startswith(("SATCHEL_", "OLLAMA_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SATCHEL_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("SATCHEL_STORE_RESERVE", "0")

    def call(*arguments: object) -> tuple[int, str]:
        code = run([str(one) for one in arguments])
        return code, capsys.readouterr().out

    (tmp_path / "t.pub").write_text(TRUSTED.public_key.text() + "\n")
    assert call("trust", "add", tmp_path / "t.pub")[0] == 0
    return call


def names(tmp_path: Path) -> list[str]:
    return [str(one) for one in Store(Paths(tmp_path / "store")).names()]


@pytest.fixture
def stick(tmp_path: Path) -> Path:
    medium = tmp_path / "stick"
    medium.mkdir()
    return medium


def test_a_foreign_medium_is_one_line(satchel: Satchel, stick: Path) -> None:
    (stick / "holiday.jpg").write_bytes(b"\xff\xd8")

    code, out = satchel("media", stick, "--label", "sdb1")

    assert code == 0
    assert out.startswith("medium sdb1: not ours: ")
    assert len(out.splitlines()) == 1


def test_damage_is_refused_in_words(satchel: Satchel, stick: Path, tmp_path: Path) -> None:
    bundle = forge({"Q8_0": tiny_model(1)}).write(stick)
    blob = max(bundle.rglob("*"), key=lambda one: one.stat().st_size if one.is_file() else 0)
    flip(blob, blob.stat().st_size // 2)

    code, out = satchel("media", stick, "--label", "sdb1")

    assert code != 0
    assert ": refused: " in out
    assert out.splitlines()[-1] == "medium sdb1: done, it can be pulled out"
    assert names(tmp_path) == []


def test_a_trusted_bundle_is_installed_and_the_second_time_is_nothing(
    satchel: Satchel, stick: Path, tmp_path: Path
) -> None:
    forge({"Q8_0": tiny_model(1)}).write(stick)

    first = satchel("media", stick)
    second = satchel("media", stick)

    assert first[0] == second[0] == 0
    assert ": installed: demo:latest" in first[1]
    assert ": already installed: demo:latest" in second[1]
    assert names(tmp_path) == ["demo:latest"]


def test_a_refused_bundle_does_not_keep_another_out(
    satchel: Satchel, stick: Path, tmp_path: Path
) -> None:
    forge({"Q8_0": tiny_model(1)}).write(stick)
    strange = forge({"Q8_0": tiny_model(2)}, channel="other", name="stranger")
    strange.signed_by(SECOND).write(stick)

    code, out = satchel("media", stick)

    assert code != 0
    assert out.count(": refused: ") == 1
    assert names(tmp_path) == ["demo:latest"]


def test_volumes_may_come_one_after_the_other(satchel: Satchel, tmp_path: Path) -> None:
    bundle = forge({"Q8_0": tiny_model(1)}, segment_bytes=SMALL_CHUNK_BYTES)
    _, volumes = spread(bundle, tmp_path / "volumes", 2)

    first = satchel("media", volumes[1])
    assert names(tmp_path) == []
    second = satchel("media", volumes[0])

    assert first[0] == second[0] == 0
    assert ": kept, and waits: " in first[1]
    assert ": installed: demo:latest" in second[1]
    assert names(tmp_path) == ["demo:latest"]


def test_policy_verify_installs_nothing(
    satchel: Satchel, stick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forge({"Q8_0": tiny_model(1)}).write(stick)
    monkeypatch.setenv("SATCHEL_MEDIA", "verify")

    code, out = satchel("media", stick)

    assert code == 0
    assert ": in order; import it with: satchel import" in out
    assert names(tmp_path) == []


def test_policy_off_does_not_even_look(
    satchel: Satchel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SATCHEL_MEDIA", "off")

    code, out = satchel("media", tmp_path / "absent", "--label", "sdb1")

    assert (code, out) == (0, "medium sdb1: left alone, exchange.media is off\n")


def test_sticks_take_turns(satchel: Satchel, stick: Path, tmp_path: Path) -> None:
    forge({"Q8_0": tiny_model(1)}).write(stick)

    with Store(Paths(tmp_path / "store")).writing():
        code, out = satchel("media", stick, "--wait", "0")

    assert code == 15
    assert "being written" in out
