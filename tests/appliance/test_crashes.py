from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance import health
from appliance.cli import run
from appliance.crashes import MAX_RECORD_BYTES, MAX_RECORDS, CrashFolder, CrashRecord
from appliance.errors import StoreAccessError
from appliance.layout import Paths

DAY_S = 86_400.0
NOW_S = 1_789_997_600.0  # 2026-09-21T13:33:20Z


def record(**changes: Any) -> CrashRecord:
    values: dict[str, Any] = {
        "at": "2026-09-21T13:00:00Z",
        "model": "demo:latest",
        "cause": "SIGABRT",
        "text": "the model's runner was killed by SIGABRT: ggml.c:1: GGML_ASSERT(x) failed",
        "assertion": "ggml.c:1: GGML_ASSERT(x) failed",
        "stack": ("loop.py:3 run",),
        "log": ("engine: warm",),
        "settings": {"num_ctx": 256},
        "requests": (1, 2),
        "pid": 17,
    }
    return CrashRecord(**{**values, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> CrashFolder:
    return CrashFolder(Paths(tmp_path).crashes)


def test_no_directory_is_no_crash(folder: CrashFolder) -> None:
    assert folder.records() == ()
    check = health.check_crashes(folder, now_s=NOW_S)
    assert (check.level, check.text) == (health.Level.OK, "none in a day")


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b"null", b'{"at": 1}', b"\xff", b'{"at":"\\u001b","model":""}']
)
def test_damaged_record_reads_as_absent(folder: CrashFolder, tmp_path: Path, damage: bytes) -> None:
    name = folder.write(record())
    (Paths(tmp_path).crashes / "20270101T000000Z-9.json").write_bytes(damage)
    assert [one for one, _ in folder.records()] == [name]


def test_directory_that_may_not_be_read_is_unknown(folder: CrashFolder, tmp_path: Path) -> None:
    Paths(tmp_path).crashes.parent.mkdir(parents=True)
    Paths(tmp_path).crashes.write_text("a file")
    with pytest.raises(StoreAccessError, match="cannot be read"):
        folder.records()
    assert health.check_crashes(folder, now_s=NOW_S).level is health.Level.UNKNOWN
    with pytest.raises(StoreAccessError, match="cannot be written"):
        folder.write(record())


def test_record_is_for_the_servers_account_alone(folder: CrashFolder, tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        name = folder.write(record())
    finally:
        os.umask(umask)
    path = Paths(tmp_path).crashes / f"{name}.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_oldest_records_leave_first(folder: CrashFolder) -> None:
    names = [folder.write(record(pid=n, at=f"2026-09-21T13:{n:02}:00Z")) for n in range(55)]
    assert [one for one, _ in folder.records()] == names[:-MAX_RECORDS-1:-1]  # fmt: skip


@given(
    text=st.text(st.characters(categories=["L", "N", "P", "Zs"]), max_size=300),
    log=st.lists(st.text(max_size=500), max_size=20).map(tuple),
    steps=st.integers(0, 2**40),
)
def test_what_is_written_is_what_is_read(
    tmp_path_factory: pytest.TempPathFactory, text: str, log: tuple[str, ...], steps: int
) -> None:
    folder = CrashFolder(tmp_path_factory.mktemp("crashes"))
    before = record(text=text if text.isprintable() else "", log=log, steps=steps)
    folder.write(before)
    ((_, after),) = folder.records()
    assert after == before


def test_largest_record_fits(folder: CrashFolder) -> None:
    folder.write(record(log=("\u2028" * 160,) * 200, stack=("x" * 400,) * 40))
    ((_, found),) = folder.records()
    assert len(found.log) == 200
    assert len(json.dumps(found.log)) < MAX_RECORD_BYTES


def test_health_warns_of_a_recent_crash_and_of_a_model_held_back(folder: CrashFolder) -> None:
    folder.write(record(at="2026-09-19T13:00:00Z"))
    assert health.check_crashes(folder, now_s=NOW_S).level is health.Level.OK
    folder.write(record(load_held_until="2026-09-21T13:40:00Z"))
    check = health.check_crashes(folder, now_s=NOW_S)
    assert check.level is health.Level.WARNING
    assert check.text == (
        "1 in a day, last 2026-09-21T13:00:00Z demo:latest SIGABRT; "
        "demo:latest is not loaded until 2026-09-21T13:40:00Z"
    )
    later = health.check_crashes(folder, now_s=NOW_S + 600)
    assert "not loaded" not in later.text


def test_crashes_verb_lists_and_shows(
    folder: CrashFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def satchel(*words: str) -> tuple[int, str, str]:
        code = run([*words, "--store", str(tmp_path)])
        sys.stdout.flush()
        return code, *capsys.readouterr()

    assert satchel("crashes") == (0, "", "")
    name = folder.write(record())
    code, out, _ = satchel("crashes")
    assert code == 0
    assert out.splitlines() == [
        f"{name}  2026-09-21T13:00:00Z  demo:latest  SIGABRT",
        f"  {record().text}",
    ]
    shown = json.loads(satchel("crashes", name)[1])
    assert (shown["assertion"], shown["requests"]) == (record().assertion, [1, 2])
    assert json.loads(satchel("crashes", "--json")[1]) == [shown]
    code, _, err = satchel("crashes", "nothing")
    assert code == 2
    assert "crash record: not found: nothing" in err
