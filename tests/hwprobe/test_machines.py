"""Machines this project has not: hand-written trees, and the same trees damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprobe.errors import DoesNotFitError
from hwprobe.gguf import ModelProfile, model_profile, read_header
from hwprobe.inventory import take_inventory
from hwprobe.machine import Machine
from hwprobe.placement import place
from hwprobe.report import machine_from_json, machine_lines, machine_to_json
from hwprobe.verdict import Candidate, Wish
from tests.fakes.machines import load
from tests.fakes.machines.load import plant, recorded, recorded_files
from tests.fakes.synthetic_models import write_family

GIB = 1 << 30
TREES = tuple(sorted(path.stem for path in Path(load.__file__).parent.glob("*.tree")))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> ModelProfile:
    return model_profile(read_header(write_family("llama-8b", tmp_path_factory.mktemp("family"))))


def _look(name: str, tmp_path: Path) -> Machine:
    return take_inventory(recorded(name, tmp_path))


def test_raspberry_pi_4_tells_its_throttling_and_compressed_swap(tmp_path: Path) -> None:
    machine = _look("pi4-4gb", tmp_path)
    assert machine.board.family == "raspberry-pi"
    assert machine.thermal.reasons == ("under-voltage", "throttled")
    assert machine.thermal.past_reasons == ("under-voltage", "throttled")
    assert (machine.thermal.hottest_c, machine.thermal.critical_c) == (81.305, 110)
    assert machine.memory.zram_bytes == 30 << 20
    assert machine.memory.zram_size_bytes == 2 * GIB
    assert machine.memory.cma_free_bytes == 450000 * 1024
    assert machine.cpu.kinds[0].name == "Cortex-A72"


def test_rk3588_decodes_on_its_four_big_cores(tmp_path: Path) -> None:
    machine = _look("rk3588-16gb", tmp_path)
    assert [(kind.name, kind.cores, kind.big) for kind in machine.cpu.kinds] == [
        ("Cortex-A76", 4, True),
        ("Cortex-A55", 4, False),
    ]
    assert machine.cpu.decode_threads == 4
    assert machine.board.family == "rockchip"
    assert machine.board.accelerators == ("Rockchip NPU",)


def test_jetson_has_a_gpu_that_shares_host_memory(tmp_path: Path) -> None:
    machine = _look("orin-agx-64gb", tmp_path)
    assert machine.board.family == "jetson"
    assert machine.nvidia.state == "usable"
    assert [gpu.unified for gpu in machine.gpus] == [True]


def test_jetson_without_its_driver_says_so(tmp_path: Path) -> None:
    files = recorded_files("orin-agx-64gb")
    del files["/dev/nvhost-gpu"]
    machine = take_inventory(plant(files, tmp_path))
    assert machine.nvidia.state == "no_driver"
    assert machine.gpus == ()


def test_n100_has_graphics_in_the_processor_and_four_equal_cores(tmp_path: Path) -> None:
    machine = _look("n100-16gb", tmp_path)
    (gpu,) = machine.other_gpus
    assert (gpu.vendor, gpu.unified, gpu.total_bytes) == ("Intel", True, 0)
    assert machine.cpu.decode_threads == 4
    assert machine.cpu.cache_bytes == 6 << 20


def test_performance_cores_of_a_hybrid_are_those_the_kernel_lists(tmp_path: Path) -> None:
    """By clock and capacity alone its efficiency cores would count as big."""
    machine = _look("arrow-lake-64gb", tmp_path)
    assert (machine.cpu.big_cores, machine.cpu.decode_threads) == (8, 8)
    (gpu,) = machine.other_gpus
    assert (gpu.driver, gpu.total_bytes, gpu.unified) == ("xe", 12 * GIB, False)


def test_two_sockets_show_their_memory_nodes_and_lost_huge_pages(tmp_path: Path) -> None:
    machine = _look("epyc-two-sockets", tmp_path)
    assert machine.cpu.sockets == 2
    assert machine.cpu.decode_threads == 32
    assert [node.processors for node in machine.numa.nodes] == [32, 32]
    assert [node.free_bytes // GIB for node in machine.numa.nodes] == [200, 40]
    assert machine.numa.nodes[0].distances == (10, 32)
    assert machine.numa.balancing
    assert machine.memory.hugepages_bytes == 2 * GIB


def test_strix_halo_has_a_small_carve_out_and_shares_the_rest(tmp_path: Path) -> None:
    machine = _look("strix-halo-128gb", tmp_path)
    (gpu,) = machine.other_gpus
    assert machine.board.family == "strix-halo"
    assert gpu.unified
    assert (gpu.total_bytes, gpu.shared_bytes) == (GIB // 2, 62 * GIB)
    assert gpu.detail == ""


def test_amd_card_without_compute_says_so(tmp_path: Path) -> None:
    files = recorded_files("strix-halo-128gb")
    del files["/dev/kfd"]
    (gpu,) = take_inventory(plant(files, tmp_path)).other_gpus
    assert "/dev/kfd" in gpu.detail


def test_gb10_is_known_by_its_board(tmp_path: Path) -> None:
    machine = _look("gb10-128gb", tmp_path)
    assert machine.board.family == "gb10"
    assert machine.cpu.architecture == "aarch64"
    assert [kind.name for kind in machine.cpu.kinds] == ["Cortex-X925", "Cortex-A725"]


def test_cpuset_narrows_what_affinity_does_not_show(tmp_path: Path) -> None:
    machine = _look("container-v2-namespaced", tmp_path)
    assert machine.cpu.allowed == 4
    assert machine.memory.headroom_bytes == (6 - (5 - 4)) * GIB
    assert machine.board.container == "docker"


def test_tightest_of_nested_groups_binds(tmp_path: Path) -> None:
    machine = _look("container-nested", tmp_path)
    assert machine.memory.limits[0] == ("control group /sys/fs/cgroup/machine.slice/outer", 6 * GIB)
    assert machine.cpu.quota == 3.5
    assert machine.board.container == "podman"


def test_old_lxc_without_memavailable_counts_free_and_cache(tmp_path: Path) -> None:
    machine = _look("lxc-without-memavailable", tmp_path)
    assert machine.memory.available_bytes == 4 * GIB
    assert (machine.board.container, machine.cpu.allowed) == ("lxc", 4)


def test_virtual_machine_without_dmi_is_told_by_its_processor(tmp_path: Path) -> None:
    machine = _look("vm-without-dmi", tmp_path)
    assert (machine.board.virtual, machine.board.name) == ("virtual machine", "")


@pytest.mark.parametrize("name", TREES)
def test_every_tree_gives_a_screen_and_a_site_report(name: str, tmp_path: Path) -> None:
    machine = _look(name, tmp_path)
    assert machine_from_json(machine_to_json(machine)) == machine
    assert all(len(line) < 120 for line in machine_lines(machine))


_DAMAGE = st.sampled_from(
    ["", "max", "-1", "9" * 19, "9" * 60, "garbage", "\0\0", "0-", "0-99999999", "a: b kB", "%s"]
)


@settings(deadline=None, max_examples=150)
@given(data=st.data(), name=st.sampled_from(TREES))
def test_damaged_machine_gets_a_placement_or_an_explained_refusal(
    llama: ModelProfile,
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    name: str,
) -> None:
    """Missing, unreadable (a directory stands there), garbage, "max", negative, huge."""
    root = tmp_path_factory.mktemp("machine")
    files = recorded_files(name)
    damaged = data.draw(st.lists(st.sampled_from(sorted(files)), max_size=5, unique=True))
    for path in damaged:
        how = data.draw(st.sampled_from(("missing", "unreadable", "changed", "lines")))
        if how == "changed":
            files[path] = data.draw(_DAMAGE)
            continue
        text = files.pop(path)
        if how == "unreadable":
            (root / path.lstrip("/")).mkdir(parents=True)
        elif how == "lines":
            words = text.split(" ")
            words[data.draw(st.integers(0, len(words) - 1))] = data.draw(_DAMAGE)
            files[path] = " ".join(words)
    machine = take_inventory(plant(files, root))
    assert machine_from_json(machine_to_json(machine)) == machine
    assert machine_lines(machine)
    assert machine.memory.headroom_bytes >= 0
    refused: DoesNotFitError | None = None
    try:
        placement = place(machine, [Candidate(variant="one", profile=llama)], Wish())
        assert placement.estimate.total_bytes("host") <= machine.memory.headroom_bytes
    except DoesNotFitError as error:
        refused = error
    assert refused is None or (refused.rejected[0].remedy and refused.rejected[0].constraint)
