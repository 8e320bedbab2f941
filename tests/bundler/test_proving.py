"""What a medium gives is tried, and what a bundle takes is said, before anything is written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundler import medium, proving
from bundler.cli import run
from bundler.errors import PackError
from bundler.progress import Silent
from tests.bundler.test_pack import DEMO
from tests.fakes.small_disk import small_disk

MIB = 1 << 20


@pytest.fixture
def stick(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    with small_disk(tmp_path / "stick", "24m") as mounted:
        yield mounted


def test_an_honest_medium_is_proved_and_left_empty(
    stick: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proving, "_PER_FILE", 5)
    assert run(["prove", str(stick), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"proved_bytes": 23 * MIB}
    assert list(stick.iterdir()) == []


def test_a_full_medium_is_no_error(stick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may promise more than there is."""
    monkeypatch.setattr(proving, "_SPARE_BYTES", -8 * MIB)
    proved = proving.prove_capacity(stick, Silent())
    assert 20 * MIB <= proved <= 24 * MIB
    assert list(stick.iterdir()) == []


@pytest.mark.parametrize("real_blocks", [1, 7, 15])
def test_a_wrapped_medium_is_caught_and_left_empty(
    stick: Path, real_blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A counterfeit stick: what is written past its real size lands on what came before."""
    monkeypatch.setattr(proving, "_PER_FILE", 4)
    honest = proving._Pattern.block

    def wrapped(path: Path) -> Iterator[bytes]:
        first = (int(path.stem.rpartition("-")[2]) - 1) * 4
        for number in range(first, first + path.stat().st_size // MIB):
            last = 22 - (22 - number) % real_blocks
            yield honest(proving._Pattern(), last).tobytes()

    monkeypatch.setattr(proving, "_blocks", wrapped)
    with pytest.raises(PackError, match="does not give back"):
        proving.prove_capacity(stick, Silent())
    assert list(stick.iterdir()) == []


def test_no_two_sectors_of_the_pattern_are_alike() -> None:
    pattern = proving._Pattern()
    sectors = {
        data[at : at + 512]
        for number in range(4)
        for data in [pattern.block(number).tobytes()]
        for at in range(0, MIB, 512)
    }
    assert len(sectors) == 4 * MIB // 512


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 3 * MIB + 17])
@pytest.mark.parametrize("direct", [True, False])
def test_reading_past_the_cache_gives_every_byte(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch, *, direct: bool
) -> None:
    path = tmp_path / "file"
    data = os.urandom(size)
    path.write_bytes(data)
    if not direct:
        monkeypatch.setattr(medium, "_set_direct", lambda *_, **__: False)
    with path.open("rb", buffering=0) as file:
        assert b"".join(bytes(view) for view in medium.uncached(file.fileno(), MIB)) == data


# Plan


def test_a_plan_says_sizes_room_and_time_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = ["plan", str(DEMO), "--quantize", "Q8_0,Q4_0", "--include-source"]
    assert run([*plan, "--out", str(tmp_path), "--volume-size", "4M"]) == 0
    said = capsys.readouterr().out
    for word in ("f16", "q8_0", "about", "volumes    at most", "fits FAT32", "MB/s", "work"):
        assert word in said
    assert list(tmp_path.iterdir()) == []
    assert run([*plan, "--out", str(tmp_path), "--measure", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] is True
    assert found["volumes"] == 1
    assert found["measured"]["seconds"] >= 0
    assert found["measured"]["write_bytes_per_s"] > 0
    assert [one["exact"] for one in found["variants"]] == [True, False, False]
    assert found["largest_file_bytes"] <= 1 << 30
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_is_said_with_the_code_of_a_full_medium(
    stick: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (stick / "filler").write_bytes(bytes(20 * MIB))
    assert run(["plan", str(DEMO), "--out", str(stick)]) == 13
    shown = capsys.readouterr()
    assert "medium: expected" in shown.err
    assert "free       " in shown.out


def test_parity_counts_in_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = []
    for word in ("--parity", "--no-parity"):
        assert run(["plan", str(DEMO), "--out", str(tmp_path), "--json", word]) == 0
        sizes.append(json.loads(capsys.readouterr().out)["medium_bytes"])
    assert sizes[0] > sizes[1]


def test_a_plan_for_what_cannot_be_packed_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["plan", str(DEMO), "--out", str(tmp_path / "nowhere")]) == 1
    assert run(["plan", str(DEMO), "--out", str(tmp_path), "--quantize", "Q9"]) == 1
    assert run(["plan", __file__, "--out", str(tmp_path)]) == 10
    assert "error" in capsys.readouterr().err
