"""The states of NVIDIA cards, told apart by the real bindings over a simulated library."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.fake_nvml import build_fake_nvml, compiler, inventory_with_driver
from tests.fakes.machines.load import recorded

GIB = 1 << 30

pytestmark = pytest.mark.skipif(compiler() is None, reason="needs a C compiler")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_fake_nvml(tmp_path_factory.mktemp("nvml"))


def test_no_card_and_no_library_is_no_card(tmp_path: Path) -> None:
    machine = inventory_with_driver(tmp_path, None)
    assert machine["nvidia"]["state"] == "no_card"
    assert machine["gpus"] == []


def test_card_without_library_is_no_driver(tmp_path: Path) -> None:
    machine = inventory_with_driver(recorded("card-without-driver", tmp_path), None)
    assert machine["nvidia"]["state"] == "no_driver"
    assert "install or load" in machine["nvidia"]["detail"]


def test_card_with_unloaded_driver_is_no_driver(tmp_path: Path, library: Path) -> None:
    root = recorded("card-without-driver", tmp_path)
    machine = inventory_with_driver(root, library, "rc.init=9\n")
    assert machine["nvidia"]["state"] == "no_driver"


def test_library_without_card_is_no_card(tmp_path: Path, library: Path) -> None:
    machine = inventory_with_driver(tmp_path, library, "rc.init=9\n")
    assert machine["nvidia"]["state"] == "no_card"


def test_loaded_driver_without_library_is_broken_and_says_how_to_mend(tmp_path: Path) -> None:
    version = tmp_path / "proc" / "driver" / "nvidia" / "version"
    version.parent.mkdir(parents=True)
    version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul\n")
    machine = inventory_with_driver(tmp_path, None)
    assert machine["nvidia"]["state"] == "driver_broken"
    assert machine["nvidia"]["driver"] == "580.65.06"
    assert "NVIDIA_DRIVER_CAPABILITIES" in machine["nvidia"]["detail"]


@pytest.mark.parametrize(("code", "words"), [(18, "reboot"), (15, "lost"), (4, "Permission")])
def test_failing_driver_is_broken_with_its_reason(
    tmp_path: Path, library: Path, code: int, words: str
) -> None:
    machine = inventory_with_driver(tmp_path, library, f"rc.init={code}\n")
    assert machine["nvidia"]["state"] == "driver_broken"
    assert words in machine["nvidia"]["detail"]


def test_driver_that_sees_no_card_on_the_bus_is_broken(tmp_path: Path, library: Path) -> None:
    root = recorded("card-without-driver", tmp_path)
    machine = inventory_with_driver(root, library, "count=0\n")
    assert machine["nvidia"]["state"] == "driver_broken"


def test_usable_card_shows_memory_name_and_capability(tmp_path: Path, library: Path) -> None:
    answers = f"count=1\ngpu0.name=RTX 4090\ngpu0.total={24 * GIB}\ngpu0.free={20 * GIB}\n"
    answers += f"gpu0.reserved={GIB // 2}\ngpu0.cc=89\ngpu0.display=1\n"
    machine = inventory_with_driver(tmp_path, library, answers)
    assert machine["nvidia"]["state"] == "usable"
    (gpu,) = machine["gpus"]
    assert gpu["name"] == "RTX 4090"
    assert gpu["total_bytes"] == 24 * GIB
    assert gpu["free_bytes"] == 20 * GIB
    assert gpu["compute_capability"] == [8, 9]
    assert gpu["display"]


def test_smaller_of_free_and_unreserved_memory_counts(tmp_path: Path, library: Path) -> None:
    answers = f"count=1\ngpu0.total={24 * GIB}\ngpu0.free={20 * GIB}\n"
    answers += f"gpu0.reserved={GIB}\ngpu0.used={4 * GIB}\n"
    (gpu,) = inventory_with_driver(tmp_path, library, answers)["gpus"]
    assert gpu["free_bytes"] == 19 * GIB


def test_unified_memory_is_told_from_missing_memory(tmp_path: Path, library: Path) -> None:
    answers = "count=1\ngpu0.name=NVIDIA GB10\ngpu0.mem_rc=3\ngpu0.cc=121\n"
    (gpu,) = inventory_with_driver(tmp_path, library, answers)["gpus"]
    assert gpu["unified"]
    assert gpu["total_bytes"] == 0


def test_slices_of_a_partitioned_card_are_gpus_of_their_own(tmp_path: Path, library: Path) -> None:
    answers = f"count=2\ngpu0.mig=2\ngpu0m0.total={20 * GIB}\ngpu0m0.free={20 * GIB}\n"
    answers += f"gpu0m1.total={10 * GIB}\ngpu0m1.free={9 * GIB}\n"
    answers += f"gpu1.total={8 * GIB}\ngpu1.free={8 * GIB}\n"
    gpus = inventory_with_driver(tmp_path, library, answers)["gpus"]
    assert [gpu["total_bytes"] // GIB for gpu in gpus] == [20, 10, 8]
    assert [gpu["index"] for gpu in gpus] == [0, 1, 2]


def test_lost_card_is_left_out_and_the_others_stay(tmp_path: Path, library: Path) -> None:
    answers = f"count=2\ngpu0.handle_rc=15\ngpu1.total={8 * GIB}\ngpu1.free={8 * GIB}\n"
    machine = inventory_with_driver(tmp_path, library, answers)
    assert machine["nvidia"]["state"] == "usable"
    assert len(machine["gpus"]) == 1


def test_processes_throttling_and_bandwidth_are_shown(tmp_path: Path, library: Path) -> None:
    answers = f"count=1\ngpu0.total={24 * GIB}\ngpu0.free={20 * GIB}\ngpu0.computing=3\n"
    answers += "gpu0.drawing=1\ngpu0.throttle=0x24\ngpu0.temperature=83\n"
    (gpu,) = inventory_with_driver(tmp_path, library, answers)["gpus"]
    assert gpu["processes"] == 4
    assert gpu["display"], "a graphics process needs room, with or without a screen"
    assert gpu["throttle"] == ["power cap", "temperature"]
    assert gpu["temperature_c"] == 83
    assert gpu["device_id"] == "10de:2684"
    assert gpu["bus_id"] == "00000000:01:00.0"
    assert gpu["bandwidth_bytes_per_s"] == 2 * 384 // 8 * 10501 * 10**6


@pytest.mark.parametrize("code", [4, 15, 999])
def test_card_whose_memory_cannot_be_asked_is_not_taken_for_unified(
    tmp_path: Path, library: Path, code: int
) -> None:
    answers = f"count=1\ngpu0.name=NVIDIA GeForce RTX 5090\ngpu0.mem_rc={code}\n"
    (gpu,) = inventory_with_driver(tmp_path, library, answers)["gpus"]
    assert not gpu["unified"]
    assert gpu["total_bytes"] == 0


def test_host_memory_that_a_driver_reports_as_its_own_is_unified(
    tmp_path: Path, library: Path
) -> None:
    answers = f"count=1\ngpu0.name=NVIDIA GB10\ngpu0.total={120 * GIB}\ngpu0.free={9 * GIB}\n"
    (gpu,) = inventory_with_driver(tmp_path, library, answers)["gpus"]
    assert gpu["unified"]
    assert (gpu["total_bytes"], gpu["free_bytes"]) == (0, 0)


def test_slices_say_so(tmp_path: Path, library: Path) -> None:
    answers = f"count=1\ngpu0.mig=1\ngpu0m0.total={GIB}\ngpu0m0.free={GIB}\n"
    (gpu,) = inventory_with_driver(tmp_path, library, answers)["gpus"]
    assert gpu["slice"]
