"""The engine's child process: verdicts for what works, and for every way it can end."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hwprobe.engine import (
    checked_settings,
    dry_run,
    dry_runs,
    engine_build_id,
    engine_info,
    fallbacks,
    safe_settings,
    self_test,
)
from hwprobe.errors import EngineCheckError
from hwprobe.estimate import KV_CACHE, WEIGHTS
from hwprobe.gguf import ModelProfile, model_profile, read_header
from hwprobe.settings import EngineSettings, KvType
from hwprobe.verdicts import EngineRecords, EngineVerdict
from tests.fakes.gguf_writer import write_tiny_llama
from tests.fakes.synthetic_models import write_family

DEMO = Path(__file__).parents[1] / "demo-model" / "demo-f16.gguf"
SMALL = EngineSettings(num_ctx=512, slots=2, threads=1)


@pytest.fixture
def profile() -> ModelProfile:
    return model_profile(read_header(DEMO))


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shell script in place of the child's interpreter: the engine that misbehaves."""
    path = tmp_path / "interpreter"
    path.write_text("#!/bin/sh\nexit 0\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))
    return path


def _behave(script: Path, body: str) -> None:
    script.write_text(f"#!/bin/sh\n{body}\n")


@pytest.mark.parametrize("name", ["SEGV", "ABRT", "ILL", "KILL"])
def test_child_killed_by_a_signal_is_a_verdict_with_its_name(script: Path, name: str) -> None:
    _behave(script, f"echo 'GGML_ASSERT(x) failed' >&2; kill -{name} $$")
    verdict = self_test(DEMO, SMALL)
    assert not verdict.ok
    assert verdict.crashed_by == f"SIG{name}"
    assert "GGML_ASSERT(x) failed" in verdict.message


def test_child_that_hangs_is_killed_and_is_a_verdict(script: Path, tmp_path: Path) -> None:
    _behave(script, f"echo $$ > {tmp_path}/pid; sleep 600 & wait")
    verdict = self_test(DEMO, SMALL, timeout_s=1.0)
    assert (verdict.ok, verdict.crashed_by) == (False, "timeout")
    pid = int((tmp_path / "pid").read_text())
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("answer", ["", "not json", "[1]", '{"ok": 1}', '{"fine": true}'])
def test_child_without_a_usable_answer_is_a_verdict(script: Path, answer: str) -> None:
    _behave(script, f"cat >/dev/null; printf '%s' '{answer}'")
    verdict = self_test(DEMO, SMALL)
    assert (verdict.ok, verdict.crashed_by) == (False, "no answer")


def test_child_that_exits_with_a_status_is_a_verdict(script: Path) -> None:
    _behave(script, "echo 'ImportError: no engine' >&2; exit 3")
    verdict = self_test(DEMO, SMALL)
    assert verdict.crashed_by == "exit 3"
    assert "ImportError: no engine" in verdict.message
    with pytest.raises(EngineCheckError, match="ImportError: no engine"):
        engine_info()


_ONLY_PLAIN_WEIGHTS_WORK = """
request=$(cat)
case "$request" in
  *'"repack": true'*) kill -SEGV $$ ;;
esac
printf '%s' '{"ok": true, "buffers": {"CPU": {"weights": 1, "context": 2, "compute": 3}}}'
"""


def test_crash_falls_back_to_plain_weights_and_says_so(script: Path, profile: ModelProfile) -> None:
    _behave(script, _ONLY_PLAIN_WEIGHTS_WORK)
    checked = checked_settings(DEMO, profile, SMALL)
    assert checked.settings == replace(SMALL, repack=False)
    assert checked.verdict.memory == {"CPU": 6}
    (line,) = checked.refused
    assert "repacked weights" in line
    assert "SIGSEGV" in line


def test_nothing_that_works_is_an_error_with_the_last_reason(
    script: Path, profile: ModelProfile
) -> None:
    _behave(script, "kill -ABRT $$")
    with pytest.raises(EngineCheckError, match="SIGABRT"):
        checked_settings(DEMO, profile, SMALL)


def test_verdicts_are_kept_and_not_asked_for_again(
    script: Path, profile: ModelProfile, tmp_path: Path
) -> None:
    records = EngineRecords(tmp_path / "records", build_id="b1")
    _behave(script, _ONLY_PLAIN_WEIGHTS_WORK)
    first = checked_settings(DEMO, profile, SMALL, records=records)
    _behave(script, "exit 9")
    assert checked_settings(DEMO, profile, SMALL, records=records) == first
    longer = replace(SMALL, num_ctx=2048, slots=1)
    assert checked_settings(DEMO, profile, longer, records=records).refused == first.refused


def test_kept_verdict_holds_for_one_build_machine_model_and_setting(
    profile: ModelProfile, tmp_path: Path
) -> None:
    records = EngineRecords(tmp_path, build_id="b1", machine_id="m1")
    verdict = EngineVerdict(ok=True, memory={"CPU": 1})
    records.put(profile, SMALL, verdict)
    assert records.get(profile, SMALL) == verdict
    assert records.get(profile, replace(SMALL, threads=2)) is None
    assert records.get(replace(profile, quantization="Q4_K_M"), SMALL) is None
    assert EngineRecords(tmp_path, build_id="b2", machine_id="m1").get(profile, SMALL) is None
    assert EngineRecords(tmp_path, build_id="b1", machine_id="m2").get(profile, SMALL) is None


@pytest.mark.parametrize("ended", ["timeout", "SIGKILL", "exit 1", ""])
def test_verdicts_that_say_nothing_about_the_configuration_are_not_kept(
    profile: ModelProfile, tmp_path: Path, ended: str
) -> None:
    records = EngineRecords(tmp_path, build_id="b1")
    records.put(profile, SMALL, EngineVerdict(ok=False, crashed_by=ended, message="x"))
    assert records.get(profile, SMALL) is None


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"ok": true}', b"\xff", b"null"])
def test_damaged_record_reads_as_absent(
    profile: ModelProfile, tmp_path: Path, damage: bytes
) -> None:
    records = EngineRecords(tmp_path, build_id="b1")
    records.put(profile, SMALL, EngineVerdict(ok=True))
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage)
    assert records.get(profile, SMALL) is None


def test_unwritable_records_are_no_error(profile: ModelProfile, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    records = EngineRecords(tmp_path / "file" / "records", build_id="b1")
    records.put(profile, SMALL, EngineVerdict(ok=True))
    assert records.get(profile, SMALL) is None


def test_safe_settings_keep_context_slots_and_cache() -> None:
    kinds: tuple[KvType, ...] = ("f16", "q8_0")
    for kind in kinds:
        fast = EngineSettings(
            num_ctx=4096, slots=3, kv_type=kind, num_gpu=9, threads=8, tensor_split=(1.0, 2.0)
        )
        safe = safe_settings(fast)
        assert (safe.num_ctx, safe.slots, safe.kv_type) == (4096, 3, kind)
        assert (safe.repack, safe.use_mmap, safe.threads, safe.num_gpu) == (False, True, 1, 0)
        assert safe.flash_attention == (kind != "f16")
        assert safe_settings(safe) == safe
        assert fallbacks(safe) == (safe,)


@pytest.mark.engine
@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0"])
def test_demo_model_passes_the_self_test(kind: KvType) -> None:
    verdict = self_test(DEMO, replace(SMALL, kv_type=kind))
    assert verdict.ok, verdict
    assert sum(verdict.memory.values()) > DEMO.stat().st_size * 0.9


@pytest.mark.engine
def test_demo_model_passes_with_safe_settings_and_without_mapping() -> None:
    assert self_test(DEMO, safe_settings(SMALL)).ok
    assert self_test(DEMO, replace(SMALL, use_mmap=False, repack=False)).ok


@pytest.mark.engine
def test_model_of_zeros_does_not_pass(tmp_path: Path) -> None:
    """All logits are equal: the engine ran, but what it computed is no use."""
    verdict = self_test(write_tiny_llama(tmp_path / "zeros.gguf"), SMALL)
    assert not verdict.ok
    assert verdict.crashed_by == ""
    assert "no usable numbers" in verdict.message


@pytest.mark.engine
def test_file_the_engine_refuses_is_a_verdict_in_its_words(tmp_path: Path) -> None:
    (tmp_path / "junk.gguf").write_bytes(b"GGUF" + bytes(100))
    verdict = self_test(tmp_path / "junk.gguf", SMALL)
    assert not verdict.ok
    assert "bad GGUF version" in verdict.message


@pytest.mark.engine
def test_dry_run_measures_without_reading_weights(tmp_path: Path) -> None:
    path = write_family("mixtral-8x7b", tmp_path)
    profile = model_profile(read_header(path))
    memory = dry_run(path, profile, EngineSettings(num_ctx=4096))
    assert memory.measured
    assert memory.term_bytes(WEIGHTS) > 24 << 30
    assert memory.term_bytes(KV_CACHE) == 512 << 20


@pytest.mark.engine
def test_engine_takes_the_list_of_experts_that_stay_on_the_host(
    tmp_path: Path,
) -> None:
    """Without a GPU they would be there anyway, so the figures stay; the pattern is read."""
    path = write_family("mixtral-8x7b", tmp_path)
    profile = model_profile(read_header(path))
    settings = EngineSettings(num_ctx=512)
    kept = [replace(settings, cpu_experts=count) for count in (0, 1, 32)]
    plain, *others = dry_runs(path, profile, kept)
    assert [one.term_bytes(WEIGHTS) for one in others] == [plain.term_bytes(WEIGHTS)] * 2
    names = ("blk.0.ffn_up_exps.weight", "blk.0.ffn_gate_up_exps.weight", "blk.10.ffn_up_exps.b")
    found = [re.search(kept[1].expert_pattern, name) is not None for name in names]
    assert found == [True, True, False]
    others_of = ("blk.0.ffn_up.weight", "blk.0.ffn_gate_inp.weight", "blk.0.attn_q.weight")
    assert not any(re.search(kept[2].expert_pattern, name) for name in others_of)
    assert plain.measured


@pytest.mark.engine
def test_dry_run_of_settings_the_engine_refuses_is_an_error(tmp_path: Path) -> None:
    shape: dict[str, Any] = {
        "blocks": 2,
        "embedding": 256,
        "feed_forward": 256,
        "heads": 8,
        "kv_heads": 8,
    }
    path = write_family(  # heads that are no whole blocks of q8_0
        "mistral-7b", tmp_path, head=40, ggml_type="F16", output_type="F16", **shape
    )
    refused = replace(SMALL, kv_type="q8_0")
    with pytest.raises(EngineCheckError, match="the engine cannot create a context"):
        dry_runs(path, model_profile(read_header(path)), [SMALL, refused])


@pytest.mark.engine
def test_engine_describes_itself() -> None:
    info = engine_info()
    assert info.version
    assert "CPU" in [name for name, _ in info.devices]
    assert "AMX_INT8 = 1" not in info.system_info, "built without AMX"
    assert len(engine_build_id()) == 16


@pytest.mark.engine
def test_only_the_answer_reaches_stdout() -> None:
    """The native libraries may print; the parent's pipe must carry JSON alone."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "hwprobe.dryrun"],
        input=json.dumps({"mode": "nonsense"}).encode(),
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert json.loads(done.stdout) == {"ok": False, "message": "unknown mode 'nonsense'"}
