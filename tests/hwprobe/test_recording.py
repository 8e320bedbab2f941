"""Recordings of machines, and the child that asks a driver: refusals first."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from hwprobe.errors import ProbeError
from hwprobe.inventory import take_inventory
from hwprobe.inventory.disk import read_speed
from hwprobe.inventory.files import watched
from hwprobe.machine import Disk, Gpu, Nvidia
from hwprobe.probing import ended_machine
from hwprobe.recording import (
    FACTS_FILE,
    look_at_this_machine,
    recorded_machine,
    write_recording,
)
from hwprobe.report import machine_to_json
from tests.fakes.machines.load import recorded
from tests.hwprobe.test_cli import DEMO, _probe
from tests.hwprobe.test_machines import TREES


def _tar(path: Path, name: str, content: bytes = b"", *, kind: bytes = tarfile.REGTYPE) -> Path:
    with tarfile.open(path, "w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size, entry.type, entry.linkname = len(content), kind, "/etc/passwd"
        archive.addfile(entry, io.BytesIO(content))
    return path


@pytest.mark.parametrize("name", ["../out", "/etc/out", "root/../../out"])
def test_entry_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    path = _tar(tmp_path / "a.tar", name, b"x")
    with pytest.raises(ProbeError, match="leads out"), recorded_machine(path):
        pass


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_link_or_device_is_refused(tmp_path: Path, kind: bytes) -> None:
    path = _tar(tmp_path / "a.tar", "root/proc", kind=kind)
    with pytest.raises(ProbeError, match="plain files"), recorded_machine(path):
        pass


def test_file_that_is_no_tar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(ProbeError, match="no recording"), recorded_machine(tmp_path / "a.tar"):
        pass


def test_unknown_format_of_facts_is_refused(tmp_path: Path) -> None:
    path = _tar(tmp_path / "a.tar", FACTS_FILE, b'{"format": "other"}')
    with pytest.raises(ProbeError, match="expected format"), recorded_machine(path):
        pass


@pytest.mark.parametrize("name", TREES)
def test_recording_of_every_machine_replays_as_that_machine(name: str, tmp_path: Path) -> None:
    root = recorded(name, tmp_path / "root")
    with watched() as looks:
        machine = take_inventory(root)
    gpu = Gpu(index=0, name="RTX 4090", total_bytes=24 << 30, compute_capability=(8, 9))
    machine = replace(
        machine,
        gpus=(gpu,),
        nvidia=Nvidia(state="usable", driver="580.65"),
        disk=Disk(path="/srv", total_bytes=1 << 40, free_bytes=1 << 39, device="nvme0n1"),
        engine_offload=True,
    )
    write_recording(tmp_path / "out.tar", looks, machine)
    with recorded_machine(tmp_path / "out.tar") as again:
        assert again == machine


def test_this_machine_replays_as_itself(tmp_path: Path) -> None:
    looks, machine = look_at_this_machine(disk_path=tmp_path, engine_offload=None)
    write_recording(tmp_path / "out.tar", looks, machine)
    with recorded_machine(tmp_path / "out.tar") as again:
        assert (again.cpu, again.board, again.disk) == (machine.cpu, machine.board, machine.disk)
        assert again.memory.total_bytes == machine.memory.total_bytes
        assert again.memory.page_bytes == machine.memory.page_bytes


def test_command_records_once_and_report_and_fit_read_it(tmp_path: Path) -> None:
    out = tmp_path / "machine.tar"
    done = _probe("record", out)
    assert done.returncode == 0, done.stderr
    assert "files" in done.stdout
    assert _probe("record", out).returncode == 1, "an existing file is not overwritten"
    site = json.loads(_probe("report", "--root", out, "--json").stdout)
    assert site["memory"]["total_bytes"] > 0
    assert _probe("fit", DEMO, "--root", out).returncode == 0
    both = _probe("fit", DEMO, "--root", out, "--for", tmp_path / "site.json")
    assert both.returncode == 2


_CRASH = "import os; os.abort()"
_HANG = "import time; time.sleep(60)"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (_CRASH, "was ended by SIGABRT"),
        (_HANG, "gave no answer within 0.5 s"),
        ("raise SystemExit(3)", "failed with 3"),
        ("print('nothing')", "no usable answer"),
    ],
)
def test_driver_that_takes_its_process_along_leaves_a_machine_without_gpus(
    tmp_path: Path, code: str, words: str
) -> None:
    command = [sys.executable, "-I", "-S", "-c", code]
    timeout = 0.5 if code == _HANG else 20
    machine = ended_machine(command, disk_path=tmp_path, timeout_s=timeout)
    assert machine.nvidia.state == "driver_broken"
    assert words in machine.nvidia.detail
    assert machine.gpus == ()
    assert machine.memory.total_bytes > 0


def test_child_tells_this_machine(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "hwprobe.probing", str(tmp_path)]
    machine = ended_machine(command, disk_path=tmp_path, timeout_s=20)
    here = take_inventory(disk_path=tmp_path)
    assert (machine.cpu, machine.board, machine.nvidia) == (here.cpu, here.board, here.nvidia)
    assert machine_to_json(machine)["format"]


def test_reading_speed_is_measured_past_the_cache(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(OSError, match="empty"):
        read_speed(tmp_path / "empty")
    assert read_speed(DEMO) > 0
