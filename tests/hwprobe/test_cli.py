"""The command as an operator runs it: output, exit codes, one line per error."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hwprobe import fit
from hwprobe.errors import ProbeError
from hwprobe.fit import candidates_at
from hwprobe.gguf import model_profile, read_header
from hwprobe.machine import Machine, Memory
from hwprobe.report import machine_to_json
from hwprobe.verdict import Candidate
from tests.fakes.gguf_writer import write_tiny_llama
from tests.fakes.synthetic_models import write_family

DEMO = Path(__file__).parents[1] / "demo-model" / "demo-f16.gguf"
_RUN = "from hwprobe.cli import main; main()"


def _probe(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", _RUN, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def _site(path: Path, gib: float) -> Path:
    size = int(gib * (1 << 30))
    machine = Machine(memory=Memory(total_bytes=size, available_bytes=size))
    path.write_text(json.dumps(machine_to_json(machine)))
    return path


def test_junk_file_exits_with_10_and_one_line(tmp_path: Path) -> None:
    (tmp_path / "junk.gguf").write_bytes(b"junk")
    done = _probe("fit", tmp_path / "junk.gguf")
    assert done.returncode == 10
    assert done.stdout == ""
    assert done.stderr.startswith("satchel-probe: error: not a usable GGUF: at byte 0")
    assert done.stderr.count("\n") == 1


def test_model_that_does_not_fit_exits_with_14_and_a_hint(tmp_path: Path) -> None:
    path = write_family("llama-8b", tmp_path)
    done = _probe("fit", path, "--for", _site(tmp_path / "site.json", 2))
    assert done.returncode == 14
    error, hint = done.stderr.splitlines()
    assert error.startswith("satchel-probe: error: no variant fits this machine: llama-8b")
    assert hint.startswith("satchel-probe: hint: ")


def test_model_that_does_not_fit_still_answers_in_json(tmp_path: Path) -> None:
    path = write_family("llama-8b", tmp_path)
    done = _probe("fit", path, "--json", "--for", _site(tmp_path / "site.json", 2))
    assert done.returncode == 14
    record = json.loads(done.stdout)
    assert record["fits"] is False
    assert record["rejected"][0]["shortfall_bytes"] > 0


def test_missing_file_exits_with_1(tmp_path: Path) -> None:
    done = _probe("fit", tmp_path / "absent.gguf")
    assert done.returncode == 1
    assert "absent.gguf" in done.stderr


@pytest.mark.parametrize(
    "arguments", [["--kv", "q5_1"], ["--ctx", "0"], ["--slots", "x"], ["--no"]]
)
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    assert _probe("fit", DEMO, *arguments).returncode == 2


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, '{"format": "other"}'])
def test_broken_site_report_exits_with_1(tmp_path: Path, text: str) -> None:
    (tmp_path / "site.json").write_text(text)
    done = _probe("fit", DEMO, "--for", tmp_path / "site.json")
    assert done.returncode == 1
    assert done.stderr.startswith("satchel-probe: error: ")
    assert "Traceback" not in done.stderr


def test_demo_model_fits_and_the_screen_says_how() -> None:
    done = _probe("fit", DEMO, "--ctx", "1024", "--slots", "2", "--kv", "q8_0")
    assert done.returncode == 0, done.stderr
    assert "Chosen    demo-f16" in done.stdout
    assert "2 slot(s) of 1024 tokens" in done.stdout
    assert "KV q8_0" in done.stdout


def test_fit_as_json_carries_the_settings() -> None:
    record: dict[str, Any] = json.loads(_probe("fit", DEMO, "--json").stdout)
    assert record["fits"] is True
    assert record["settings"]["num_ctx"] == 2048
    assert record["estimate"]["measured"] is False


@pytest.mark.engine
def test_fit_can_let_the_engine_measure() -> None:
    record = json.loads(_probe("fit", DEMO, "--json", "--measure").stdout)
    assert record["estimate"]["measured"] is True


def test_directory_of_files_is_a_choice_of_variants(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "a.gguf")
    write_tiny_llama(tmp_path / "b.GGUF")
    (tmp_path / "notes.txt").write_text("no model")
    assert [one.variant for one in candidates_at(tmp_path)] == ["a", "b"]


def test_empty_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match=r"neither a bundle nor a \.gguf file"):
        candidates_at(tmp_path)


class _Entry:
    """An entry point of the group, as an installed package would register it."""

    name = "bundle"

    def __init__(self, candidates: tuple[Candidate, ...]) -> None:
        self._candidates = candidates

    def load(self) -> fit.FitSource:
        return lambda _path: self._candidates


@pytest.mark.parametrize("mark", ["bundle.dsse.json", "satchel"])
def test_bundle_is_read_by_whoever_registers_for_it(
    tmp_path: Path, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / mark).mkdir()
    candidate = Candidate(variant="Q4_K_M", profile=model_profile(read_header(DEMO)))
    monkeypatch.setattr(fit, "entry_points", lambda group: [_Entry((candidate,))] if group else [])
    assert candidates_at(tmp_path) == (candidate,)


def test_bundle_without_anyone_to_read_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "satchel").mkdir()
    monkeypatch.setattr(fit, "entry_points", lambda **_: [])
    with pytest.raises(ProbeError, match="nothing installed here reads bundles"):
        candidates_at(tmp_path)


def test_bundle_without_a_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "satchel").mkdir()
    monkeypatch.setattr(fit, "entry_points", lambda **_: [_Entry(())])
    with pytest.raises(ProbeError, match="a bundle without a model"):
        candidates_at(tmp_path)


@pytest.mark.engine
def test_report_shows_the_machine_and_its_json_is_a_site_report(tmp_path: Path) -> None:
    screen = _probe("report", "--models", tmp_path)
    assert screen.returncode == 0, screen.stderr
    for label in ("Machine", "CPU", "Memory", "NVIDIA", "Engine", "Disk"):
        assert f"\n{label} " in "\n" + screen.stdout
    site = tmp_path / "site.json"
    site.write_text(_probe("report", "--json").stdout)
    done = _probe("fit", DEMO, "--for", site)
    assert done.returncode == 0, done.stderr


@pytest.mark.engine
def test_a_draft_model_is_counted_and_measured(tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(DEMO.read_bytes().replace(b"<|im_start|>", b"<|im_stort|>"))
    refused = _probe("fit", DEMO, "--draft", other)
    assert refused.returncode == 1
    assert "expected the model's vocabulary, found another" in refused.stderr
    sums = []
    for more in ((), ("--measure",)):
        asked = _probe("fit", DEMO, "--draft", DEMO, "--ctx", "2048", "--json", *more)
        assert asked.returncode == 0, asked.stderr
        host = json.loads(asked.stdout)["estimate"]["pools"]["host"]
        sums.append((host["draft model"], host["total"]))
    for formula, measured in zip(*sums, strict=True):
        assert measured == pytest.approx(formula, rel=0.1)
