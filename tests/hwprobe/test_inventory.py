from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hwprobe.inventory import take_inventory
from hwprobe.inventory.cpu import read_cpu
from hwprobe.inventory.files import integer
from hwprobe.machine import Cpu, Machine
from tests.fakes.machines.load import plant, recorded, recorded_files

GIB = 1 << 30
TREES = ("pi5-8gb", "container-v2", "container-v1", "hybrid-laptop", "card-without-driver")


def test_empty_root_gives_a_machine_without_facts(tmp_path: Path) -> None:
    machine = take_inventory(tmp_path)
    assert machine.memory.total_bytes == 0
    assert machine.memory.headroom_bytes == 0
    assert machine.cpu.usable == 1
    assert machine.cpu.decode_threads == 1
    assert machine.gpus == ()
    assert machine.nvidia.state == "no_card"


def test_this_machine_has_memory_and_processors() -> None:
    machine = take_inventory()
    assert machine.memory.total_bytes > 256 << 20
    assert 0 < machine.memory.headroom_bytes <= machine.memory.total_bytes
    assert 1 <= machine.cpu.decode_threads <= machine.cpu.online
    assert machine.disk.free_bytes > 0


def test_raspberry_pi_is_a_single_board_with_four_big_cores(tmp_path: Path) -> None:
    machine = take_inventory(recorded("pi5-8gb", tmp_path))
    assert machine.board.single_board
    assert machine.board.name == "Raspberry Pi 5 Model B Rev 1.0"
    assert machine.board.kernel == "6.12.25+rpt-rpi-2712"
    assert machine.cpu.model == "Raspberry Pi 5 Model B Rev 1.0"
    assert (machine.cpu.allowed, machine.cpu.big_cores, machine.cpu.decode_threads) == (4, 4, 4)
    assert "asimddp" in machine.cpu.features
    assert machine.memory.cgroups == ()
    assert machine.memory.headroom_bytes == 7 * GIB


def test_every_ancestor_control_group_limits_memory(tmp_path: Path) -> None:
    machine = take_inventory(recorded("container-v2", tmp_path))
    inner, outer = machine.memory.cgroups
    assert inner.path.endswith("/model")
    assert outer.path.endswith("/pod1")
    assert inner.limit_bytes == 16 * GIB, "memory.high throttles before memory.max"
    assert machine.memory.limits[0] == (f"control group {outer.path}", outer.headroom_bytes)


def test_reclaimable_cache_counts_as_headroom(tmp_path: Path) -> None:
    machine = take_inventory(recorded("container-v2", tmp_path))
    inner, outer = machine.memory.cgroups
    assert outer.headroom_bytes == (8 - (4 - 2)) * GIB
    assert inner.headroom_bytes == 16 * GIB - (14 * GIB - 12 * GIB - (1 << 20))


def test_smallest_quota_of_any_level_bounds_the_threads(tmp_path: Path) -> None:
    machine = take_inventory(recorded("container-v2", tmp_path))
    assert machine.cpu.quota == pytest.approx(2.5)
    assert machine.cpu.usable == 2
    assert machine.cpu.allowed_cores == 4
    assert machine.cpu.decode_threads == 2
    assert machine.board.virtual == "container"


def test_version_1_groups_are_found_through_a_bind_mount(tmp_path: Path) -> None:
    machine = take_inventory(recorded("container-v1", tmp_path))
    (group,) = machine.memory.cgroups
    assert group.headroom_bytes == 3 * GIB
    assert machine.cpu.quota == pytest.approx(1.5)
    assert machine.cpu.allowed == 2
    assert machine.cpu.usable == 1


def test_address_space_limit_is_a_bound_less_what_is_mapped(tmp_path: Path) -> None:
    machine = take_inventory(recorded("container-v1", tmp_path))
    assert machine.memory.address_space_bytes == 8 * GIB - (200 << 20)


def test_strict_overcommit_without_figures_is_an_absence(tmp_path: Path) -> None:
    machine = take_inventory(recorded("container-v1", tmp_path))
    assert machine.memory.commit_bytes is None


def test_strict_overcommit_bounds_memory(tmp_path: Path) -> None:
    files = recorded_files("container-v1")
    files["/proc/meminfo"] += "CommitLimit: 2097152 kB\nCommitted_AS: 1048576 kB\n"
    machine = take_inventory(plant(files, tmp_path))
    assert machine.memory.limits[0] == ("strict overcommit", GIB)


def test_unlimited_version_1_group_is_no_limit(tmp_path: Path) -> None:
    files = recorded_files("container-v1")
    files["/sys/fs/cgroup/memory/memory.limit_in_bytes"] = "9223372036854771712"
    assert take_inventory(plant(files, tmp_path)).memory.cgroups == ()


def test_group_path_of_the_host_falls_back_to_the_mount(tmp_path: Path) -> None:
    """A container without its own namespace sees a path that does not exist inside it."""
    files = recorded_files("container-v1")
    files["/proc/self/mountinfo"] = (
        "33 31 0:30 / /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory"
    )
    (group,) = take_inventory(plant(files, tmp_path)).memory.cgroups
    assert group.path == "/sys/fs/cgroup/memory"


def test_group_path_that_climbs_is_not_followed(tmp_path: Path) -> None:
    files = recorded_files("container-v2")
    files["/proc/self/cgroup"] = "0::/../../../etc"
    assert take_inventory(plant(files, tmp_path)).memory.cgroups == ()


def test_efficiency_cores_do_not_decode(tmp_path: Path) -> None:
    machine = take_inventory(recorded("hybrid-laptop", tmp_path))
    assert machine.cpu.online == 20
    assert machine.cpu.allowed_cores == 14
    assert machine.cpu.big_cores == 6
    assert machine.cpu.decode_threads == 6
    assert machine.board.name == "Example Inc. Notebook 14"


def test_missing_memavailable_is_estimated_from_free_and_cache(tmp_path: Path) -> None:
    machine = take_inventory(recorded("hybrid-laptop", tmp_path))
    expected = 8388608 + 1048576 + 131072 - 65536
    assert machine.memory.available_bytes == expected * 1024


def test_card_on_the_bus_is_found_without_asking_a_driver(tmp_path: Path) -> None:
    machine = take_inventory(recorded("card-without-driver", tmp_path))
    assert machine.nvidia.state == "no_driver"
    assert machine.nvidia.cards == ("0000:01:00.0",)


def test_affinity_outside_the_machine_means_all_processors(tmp_path: Path) -> None:
    files = recorded_files("pi5-8gb")
    files["/proc/self/status"] = "Cpus_allowed_list:\t64-127\n"
    assert take_inventory(plant(files, tmp_path)).cpu.allowed == 4


@pytest.mark.parametrize("text", ["", "max", "1e9", "0x10", "1.5", "--1", "٣", "9" * 30])
def test_text_that_is_no_plain_number_is_an_absence(text: str) -> None:
    assert integer(text) is None


@pytest.mark.parametrize(("cores", "quota", "threads"), [(1, None, 1), (4, None, 4), (8, None, 7)])
def test_larger_machines_leave_a_core_to_the_server(
    cores: int, quota: float | None, threads: int
) -> None:
    cpu = Cpu(online=cores, allowed=cores, allowed_cores=cores, big_cores=cores, quota=quota)
    assert cpu.decode_threads == threads


_GARBAGE = st.sampled_from(
    ["", "max", "-1", "99999999999999999999999", "garbage", "\0\0", "0-", "0-99999999", "a: b kB"]
)


@settings(
    deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), name=st.sampled_from(TREES))
def test_damaged_trees_never_raise(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, name: str
) -> None:
    """Missing files, empty files, garbage, negative and huge numbers: absence is a value."""
    files = recorded_files(name)
    for path in data.draw(st.lists(st.sampled_from(sorted(files)), max_size=6)):
        if data.draw(st.booleans()):
            files.pop(path, None)
        elif path in files:
            files[path] = data.draw(_GARBAGE)
    machine = take_inventory(plant(files, tmp_path_factory.mktemp("machine")))
    assert isinstance(machine, Machine)
    assert machine.memory.headroom_bytes >= 0
    assert 1 <= machine.cpu.decode_threads <= max(1, machine.cpu.online)


def test_directory_in_place_of_a_file_is_an_absence(tmp_path: Path) -> None:
    (tmp_path / "proc" / "meminfo").mkdir(parents=True)
    assert take_inventory(tmp_path).memory.total_bytes == 0


def test_quota_is_passed_through(tmp_path: Path) -> None:
    cpu = read_cpu(tmp_path, quota=math.pi)
    assert cpu.quota == math.pi
