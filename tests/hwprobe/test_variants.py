from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance import health
from hwprobe import variants
from hwprobe.canary import canary_bytes
from hwprobe.errors import EngineCheckError
from hwprobe.gguf import model_profile, read_header
from hwprobe.inventory import take_inventory
from hwprobe.variants import (
    CHOICE_FILE,
    NEEDS,
    OWN,
    VariantChoice,
    candidates,
    choose_variant,
    folders,
    read_choice,
    spread,
    try_variants,
)

FEATURES = take_inventory().cpu.features


def test_processor_without_avx2_gets_the_baseline_only() -> None:
    assert candidates(NEEDS, ("ssse3", "avx")) == ("own", "baseline")
    assert candidates((), ("ssse3",)) == (("own",) if OWN == "own" else ())


def test_fastest_comes_first_and_amx_only_where_it_is_installed() -> None:
    everything = {need for needs in NEEDS.values() for need in needs}
    assert candidates(("baseline", "amx", "avx512"), everything)[:2] == ("amx", "avx512")
    assert "amx" not in candidates(("baseline", "avx512"), everything)


@given(st.sets(st.sampled_from(sorted({need for needs in NEEDS.values() for need in needs}))))
def test_variant_is_tried_only_where_all_it_needs_is_announced(features: set[str]) -> None:
    for name in candidates(NEEDS, features):
        assert features.issuperset(NEEDS[name])


@pytest.mark.parametrize(
    "damage", [b"", b"[]", b"{", b'{"name":"sse9","refused":[],"libraries":"","identity":""}']
)
def test_damaged_choice_reads_as_absent(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / CHOICE_FILE).write_bytes(damage)
    assert read_choice(tmp_path) is None


def test_difference_is_measured_in_standard_deviations() -> None:
    row = (0.0, 1.0, 2.0, 3.0)
    assert spread([row], [row]) == 0.0
    assert spread([row], [[-value for value in row]]) > 1
    assert spread([row], []) == float("inf")
    assert spread([(1.0, 1.0)], [(1.0, 1.0)]) == float("inf")
    assert spread([row], [(float("nan"),) * 4]) != 0.0


def test_canary_is_a_sound_model_and_the_same_everywhere(tmp_path: Path) -> None:
    path = tmp_path / "canary.gguf"
    path.write_bytes(canary_bytes())
    profile = model_profile(read_header(path))
    assert profile.architecture == "llama"
    assert canary_bytes() == path.read_bytes()


def test_health_names_the_build_and_warns_of_refused_ones(tmp_path: Path) -> None:
    assert health.check_engine(tmp_path).text == "not chosen yet"
    variants._keep(tmp_path, VariantChoice(name="avx512"))
    check = health.check_engine(tmp_path)
    assert (check.level, check.text) == (health.Level.OK, "avx512")
    variants._keep(tmp_path, VariantChoice(name="avx2", refused=("amx: crashed (SIGSEGV)",)))
    check = health.check_engine(tmp_path)
    assert check.level is health.Level.WARNING
    assert check.text == "avx2; not used: amx: crashed (SIGSEGV)"


@pytest.mark.engine
def test_every_installed_variant_computes_the_same_and_the_fastest_is_chosen(
    tmp_path: Path,
) -> None:
    names = candidates(folders(), FEATURES)
    for name in names:
        assert try_variants(tuple({name, names[-1]}), folders())[1] == ()
    choice = choose_variant(tmp_path, features=FEATURES, machine_id="x")
    assert (choice.name, choice.refused) == (names[0], ())
    assert read_choice(tmp_path) == choice


@pytest.mark.engine
def test_choice_is_kept_until_libraries_or_machine_change(tmp_path: Path) -> None:
    first = choose_variant(tmp_path, features=FEATURES, machine_id="x")
    kept = json.loads((tmp_path / CHOICE_FILE).read_text())
    (tmp_path / CHOICE_FILE).write_text(json.dumps({**kept, "refused": ["a mark"]}))
    again = choose_variant(tmp_path, features=FEATURES, machine_id="x")
    assert again.refused == ("a mark",)
    assert choose_variant(tmp_path, features=FEATURES, machine_id="y").refused == ()
    assert first.identity != choose_variant(tmp_path, features=FEATURES, machine_id="z").identity


@pytest.mark.engine
def test_variant_that_is_not_there_cannot_be_wanted(tmp_path: Path) -> None:
    with pytest.raises(EngineCheckError, match=r"engine variant: expected one of .*found amx"):
        choose_variant(tmp_path, features=("avx2",), machine_id="x", wanted="amx")


@pytest.mark.engine
def test_broken_variant_is_refused_in_the_child_and_another_is_used(tmp_path: Path) -> None:
    """A backend that is no library, and one that crashes, cost nothing but a line."""
    source = _own_libraries()
    torn, crashing = tmp_path / "torn", tmp_path / "crashing"
    for folder in (torn, crashing):
        shutil.copytree(source, folder)
    data = (source / "libggml-cpu.so.0").read_bytes()
    (torn / "libggml-cpu.so.0").write_bytes(data[: len(data) // 2])
    (crashing / "libggml-cpu.so.0").write_bytes(_trapping(data))
    installed = {"avx512": torn, "amx": crashing}
    name, refused = try_variants(("amx", "avx512", OWN), installed)
    assert name == OWN
    assert [line.partition(":")[0] for line in refused] == ["amx", "avx512"]
    with pytest.raises(EngineCheckError, match="no build of the engine works here"):
        try_variants(("amx",), installed)


def _own_libraries() -> Path:
    import importlib.util

    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "lib"


def _trapping(library: bytes) -> bytes:
    """The library with break points in place of most of its code: a call is a signal."""
    import struct

    (table,) = struct.unpack_from("<Q", library, 32)
    entry_bytes, count = struct.unpack_from("<HH", library, 54)
    patched = bytearray(library)
    for number in range(count):
        kind, flags, offset = struct.unpack_from("<IIQ", library, table + number * entry_bytes)
        (size,) = struct.unpack_from("<Q", library, table + number * entry_bytes + 32)
        if kind == 1 and flags & 1:  # a loaded segment with code
            begin = offset + size // 4  # behind what runs when it is loaded
            patched[begin : offset + size] = b"\xcc" * (offset + size - begin)
    return bytes(patched)
