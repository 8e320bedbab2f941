from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hwprobe.errors import ProbeError
from hwprobe.estimate import HOST
from hwprobe.gguf import model_profile, read_header
from hwprobe.inventory import take_inventory
from hwprobe.machine import Board, CgroupMemory, Cpu, Gpu, Machine, Memory, Nvidia
from hwprobe.placement import Candidate, Placement, Wish, place
from hwprobe.quantity import Bytes
from hwprobe.report import (
    machine_from_json,
    machine_lines,
    machine_to_json,
    placement_lines,
    placement_to_json,
)
from tests.fakes.machines.load import recorded
from tests.fakes.synthetic_models import write_family

GIB = 1 << 30
SERVER = Machine(
    cpu=Cpu(model="Example", architecture="x86_64", quota=2.5, features=("avx2",)),
    memory=Memory(
        total_bytes=64 * GIB,
        available_bytes=60 * GIB,
        cgroups=(
            CgroupMemory(
                path="/sys/fs/cgroup/x", limit_bytes=GIB, used_bytes=2, reclaimable_bytes=2
            ),
        ),
    ),
    gpus=(
        Gpu(
            index=0,
            name="Card",
            total_bytes=24 * GIB,
            free_bytes=20 * GIB,
            compute_capability=(8, 9),
        ),
    ),
    nvidia=Nvidia(state="usable", driver="580.1", cards=("0000:01:00.0",)),
    engine_offload=True,
)


@pytest.mark.parametrize("name", ["pi5-8gb", "container-v1", "container-v2", "hybrid-laptop"])
def test_site_report_survives_json(name: str, tmp_path: Path) -> None:
    machine = take_inventory(recorded(name, tmp_path))
    assert machine_from_json(json.loads(json.dumps(machine_to_json(machine)))) == machine


def test_site_report_keeps_gpus_and_quota() -> None:
    assert machine_from_json(json.loads(json.dumps(machine_to_json(SERVER)))) == SERVER


def test_newer_report_with_unknown_fields_is_read() -> None:
    record: dict[str, Any] = json.loads(json.dumps(machine_to_json(SERVER)))
    record["thermal"] = {"zones": 3}
    record["cpu"]["later"] = 2
    del record["disk"]
    assert machine_from_json(record) == replace(SERVER, disk=Machine().disk)


@pytest.mark.parametrize("record", [None, [], 7, {}, {"format": "satchel-site/9"}])
def test_something_else_is_no_site_report(record: object) -> None:
    with pytest.raises(ProbeError, match="no site report") as caught:
        machine_from_json(record)
    assert "satchel-probe report --json" in caught.value.hint


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        (("cpu", "allowed"), "2", r"machine\.cpu\.allowed"),
        (("cpu", "quota"), "fast", r"machine\.cpu\.quota"),
        (("memory", "cgroups"), [{"path": 1}], r"machine\.memory\.cgroups\[0\]\.path"),
        (("nvidia", "state"), "great", r"machine\.nvidia\.state"),
        (("gpus",), [{"index": 0, "compute_capability": [8]}], r"compute_capability"),
        (("engine_offload",), 1, r"machine\.engine_offload"),
    ],
)
def test_field_of_another_type_is_refused_by_its_place(
    path: tuple[str, ...], value: object, where: str
) -> None:
    record: dict[str, Any] = json.loads(json.dumps(machine_to_json(SERVER)))
    target = record
    for name in path[:-1]:
        target = target[name]
    target[path[-1]] = value
    with pytest.raises(ProbeError, match=where):
        machine_from_json(record)


def test_gpu_record_without_its_index_is_refused() -> None:
    record: dict[str, Any] = json.loads(json.dumps(machine_to_json(SERVER)))
    del record["gpus"][0]["index"]
    with pytest.raises(ProbeError, match=r"machine\.gpus\[0\]"):
        machine_from_json(record)


def test_machine_screen_names_limits_and_gpus() -> None:
    text = "\n".join(machine_lines(SERVER, engine="llama 1"))
    assert "control group /sys/fs/cgroup/x: 1.00 GiB left" in text
    assert "GPU 0: Card, 20.0 GiB free of 24.0 GiB" in text
    assert "quota 2.5" in text
    assert "usable, driver 580.1" in text
    assert "llama 1" in text


def test_engine_without_gpu_support_is_said_beside_the_card() -> None:
    lines = machine_lines(replace(SERVER, engine_offload=False))
    assert any("built without GPU support" in line for line in lines)


@pytest.mark.parametrize(
    ("state", "words"),
    [("no_card", "no card"), ("no_driver", "without driver"), ("driver_broken", "driver broken")],
)
def test_states_of_nvidia_read_differently(state: Any, words: str) -> None:
    machine = replace(SERVER, gpus=(), nvidia=Nvidia(state=state, detail="mend it"))
    (line,) = [line for line in machine_lines(machine) if line.startswith("NVIDIA")]
    assert words in line
    assert "mend it" in line


@pytest.fixture
def placement(tmp_path: Path) -> tuple[Placement, Machine]:
    machine = Machine(
        cpu=Cpu(features=("avx2",)),
        memory=Memory(total_bytes=8 * GIB, available_bytes=7 * GIB),
        board=Board(name="Test Board", kernel="6.1"),
    )
    candidates = []
    for kind in ("Q8_0", "Q4_K"):
        (tmp_path / kind).mkdir()
        path = write_family("llama-8b", tmp_path / kind, ggml_type=kind, output_type=kind)
        candidates.append(Candidate(variant=kind, profile=model_profile(read_header(path))))
    return place(machine, candidates, Wish()), machine


def test_placement_fits_on_one_screen_and_its_sum_adds_up(
    placement: tuple[Placement, Machine],
) -> None:
    plan, machine = placement
    lines = placement_lines(plan, machine)
    assert len(lines) <= 24
    assert all(len(line) <= 100 for line in lines)
    text = " ".join(" ".join(lines).split())
    assert "Test Board, Linux 6.1" in text
    assert "Chosen Q4_K" in text
    assert f"= {Bytes(plan.estimate.total_bytes(HOST))} of {Bytes(plan.budgets[HOST])}" in text
    assert "Why not Q8_0 at" in text
    assert "short;" in text


def test_placement_as_json_is_plain_data(placement: tuple[Placement, Machine]) -> None:
    plan, _ = placement
    record = json.loads(json.dumps(placement_to_json(plan)))
    assert record["variant"] == "Q4_K"
    assert record["settings"]["num_ctx"] == plan.settings.num_ctx
    assert record["estimate"]["pools"][HOST]["total"] == plan.estimate.total_bytes(HOST)
    assert record["rejected"][0]["shortfall_bytes"] > 0
