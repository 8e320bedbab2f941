"""Records of decisions: what is refused, and that a replay gives the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprobe.decision import Question, record_of, replayed
from hwprobe.errors import ProbeError
from hwprobe.gguf import ModelProfile, model_profile, read_header
from hwprobe.machine import CgroupMemory, Cpu, Gpu, Machine, Memory
from hwprobe.verdict import Candidate, Wish
from tests.fakes.synthetic_models import write_family

DEMO = Path(__file__).parents[1] / "demo-model" / "demo-f16.gguf"
GIB = 1 << 30
_RUN = "from hwprobe.cli import main; main()"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> ModelProfile:
    path = write_family("llama-8b", tmp_path_factory.mktemp("family"))
    return model_profile(read_header(path))


def _probe(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", _RUN, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def _machine(gib: float, *gpu_gib: float) -> Machine:
    size = int(gib * GIB)
    gpus = tuple(
        Gpu(index=index, total_bytes=int(own * GIB), free_bytes=int(own * GIB))
        for index, own in enumerate(gpu_gib)
    )
    cpu = Cpu(online=8, allowed=8, allowed_cores=8, big_cores=8, quota=2.5, features=("avx2",))
    memory = Memory(total_bytes=size, available_bytes=size)
    return Machine(cpu=cpu, memory=memory, gpus=gpus, engine_offload=bool(gpus))


def _question(profile: ModelProfile, machine: Machine, wish: Wish | None = None) -> Question:
    candidate = Candidate(variant="Q4_K_M", profile=profile, prefer=2)
    return Question(machine=machine, candidates=(candidate,), wish=wish or Wish())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "expected format"),
        ('{"format": "satchel-site/1"}', "expected format"),
        ('{"format": "satchel-decision/1"}', "question: expected an object"),
        ('{"format": "satchel-decision/1", "question": {"candidates": 1}}', "expected a list"),
    ],
)
def test_text_that_is_no_record_is_refused(text: str, words: str) -> None:
    with pytest.raises(ProbeError, match=words):
        replayed(text.encode())


@pytest.mark.parametrize("quota", ["NaN", "Infinity", "1e999", '"2"', "true"])
def test_record_with_an_impossible_number_is_refused(llama: ModelProfile, quota: str) -> None:
    record = record_of(_question(llama, _machine(16))).replace(
        b'"quota": 2.5', f'"quota": {quota}'.encode()
    )
    with pytest.raises(ProbeError, match="quota"):
        replayed(record)


def test_changed_answer_is_told(llama: ModelProfile) -> None:
    record = json.loads(record_of(_question(llama, _machine(16))))
    record["answer"]["settings"]["num_ctx"] += 256
    assert not replayed(json.dumps(record).encode()).same


def test_rejected_candidate_keeps_need_budget_constraint_shortfall_and_remedy(
    llama: ModelProfile,
) -> None:
    group = CgroupMemory(path="/pod", limit_bytes=GIB, used_bytes=0, reclaimable_bytes=0)
    memory = Memory(total_bytes=64 * GIB, available_bytes=60 * GIB, cgroups=(group,))
    question = _question(llama, Machine(memory=memory))
    answer = json.loads(record_of(question))["answer"]
    (rejected,) = answer["rejected"]
    assert not answer["fits"]
    assert rejected["constraint"] == "control group /pod"
    assert rejected["need_bytes"] - rejected["budget_bytes"] == rejected["shortfall_bytes"] > 0
    assert rejected["remedy"]
    assert replayed(record_of(question)).same


_SIZES = st.floats(min_value=0.1, max_value=80, allow_nan=False)


@settings(deadline=None, max_examples=40)
@given(
    host=_SIZES,
    gpus=st.lists(_SIZES, max_size=3),
    wish=st.builds(
        Wish,
        num_ctx=st.none() | st.integers(1, 200_000),
        slots=st.none() | st.integers(1, 9),
        kv_type=st.sampled_from((None, "f16", "q8_0", "q4_0")),
        num_gpu=st.none() | st.integers(-1, 40),
    ),
)
def test_replay_gives_the_same_bytes(
    llama: ModelProfile, host: float, gpus: list[float], wish: Wish
) -> None:
    question = _question(llama, _machine(host, *gpus), wish)
    record = record_of(question)
    again = replayed(record)
    assert again.same
    assert record_of(again.question) == record


def test_command_records_and_replays_the_same_screen(tmp_path: Path) -> None:
    path = tmp_path / "decision.json"
    fitted = _probe("fit", DEMO, "--ctx", "1024", "--record", path, "--models", tmp_path)
    assert fitted.returncode == 0, fitted.stderr
    again = _probe("replay", path)
    assert again.returncode == 0
    plan, _, speed = fitted.stdout.partition("Speed ")
    assert again.stdout == plan
    assert "calibrate" in speed, "nothing was measured on this machine"
    answer: dict[str, Any] = json.loads(_probe("replay", path, "--json").stdout)
    assert answer["settings"]["num_ctx"] == 1024


def test_record_of_a_refusal_replays_as_the_refusal(tmp_path: Path) -> None:
    path, site = tmp_path / "decision.json", tmp_path / "site.json"
    site.write_text('{"format": "satchel-site/1"}')
    fitted = _probe("fit", DEMO, "--for", site, "--record", path)
    again = _probe("replay", path)
    assert fitted.returncode == again.returncode == 14
    assert fitted.stderr == again.stderr


def test_changed_record_exits_with_1(tmp_path: Path) -> None:
    path = tmp_path / "decision.json"
    _probe("fit", DEMO, "--record", path)
    path.write_text(path.read_text().replace('"fits": true', '"fits": false'))
    done = _probe("replay", path)
    assert done.returncode == 1
    assert "answers otherwise" in done.stderr
