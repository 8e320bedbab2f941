"""Packing without --seq counts up for each key, and finds the same bundle again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bundler.cli import run
from tests.fakes import forge

PACK = ("pack", "tiny.gguf", "--name", "tiny", "--key", "release.key", "--include-source")


@pytest.fixture(autouse=True)
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    Path("tiny.gguf").write_bytes(forge.tiny_model())
    for medium in ("stick", "first", "second", "other"):
        Path(medium).mkdir()
    assert run(["keygen", "release", "--no-passphrase"]) == 0


def numbers(medium: str) -> list[str]:
    return sorted(path.name for path in Path(medium, "satchel").iterdir())


def test_the_same_pack_twice_finds_its_bundle() -> None:
    assert run([*PACK, "--out", "stick"]) == 0
    assert run([*PACK, "--out", "stick"]) == 0

    assert numbers("stick") == ["main-000001"]


def test_another_bundle_gets_the_next_number_also_on_a_fresh_medium() -> None:
    """A target would refuse a second, different number 1."""
    assert run([*PACK, "--out", "first"]) == 0
    assert run([*PACK, "--notes", "new", "--out", "second"]) == 0

    assert numbers("second") == ["main-000002"]
    assert json.loads(Path("release.seq").read_bytes()) == {"main": 2}


def test_channels_count_apart() -> None:
    assert run([*PACK, "--out", "stick"]) == 0
    assert run([*PACK, "--channel", "lab", "--out", "stick"]) == 0

    assert numbers("stick") == ["lab-000001", "main-000001"]


def test_a_named_number_is_remembered_and_never_counts_back() -> None:
    assert run([*PACK, "--seq", "40", "--out", "stick"]) == 0
    assert run([*PACK, "--seq", "7", "--notes", "old", "--out", "stick"]) == 0
    assert run([*PACK, "--notes", "next", "--out", "other"]) == 0

    assert numbers("other") == ["main-000041"]


@pytest.mark.parametrize("content", [b"[]", b'{"main": 0}', b'{"main": true}', b"{", b"\xff"])
def test_a_damaged_counter_is_refused_and_the_number_can_be_named(
    content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("release.seq").write_bytes(content)

    assert run([*PACK, "--out", "stick"]) == 1
    assert "name the number with --seq" in capsys.readouterr().err
    assert list(Path("stick").iterdir()) == []
    assert run([*PACK, "--seq", "3", "--out", "stick"]) == 0
