from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from appliance.config import Config
from appliance.layout import Paths
from appliance.store import Store
from bundler.format.name import ModelName
from hwprobe.engine import fallbacks
from hwprobe.errors import DoesNotFitError
from hwprobe.gguf import model_profile, read_header
from hwprobe.machine import CgroupMemory, Cpu, Gpu, Machine, Memory
from hwprobe.settings import EngineSettings
from hwprobe.verdicts import EngineRecords, EngineVerdict
from server.catalogue import Catalogue, ServedModel
from server.errors import LoadFailedError
from server.planner import SNAPSHOT_AGE_S, Machines, Planner, SelfTest
from server.wishes import LoadOptions
from tests.fakes.gguf_writer import write_tiny_llama
from tests.functional.live import MACHINE, put_model


@pytest.fixture
def model(tmp_path: Path) -> ServedModel:
    store = Store(Paths(tmp_path / "store"))
    put_model(store, "tiny", tmp_path)
    found = Catalogue(store).find(ModelName.parse("tiny"))
    assert found is not None
    return found


def planner(tmp_path: Path, text: str = "", machine: Machine = MACHINE) -> Planner:
    path = tmp_path / "satchel.toml"
    path.write_text(text)
    return Planner(config=Config.load(file=path, environ={}), machines=Machines(lambda: machine))


def test_request_counts_before_the_models_table_and_this_before_the_servers(
    tmp_path: Path, model: ServedModel
) -> None:
    plan = planner(
        tmp_path,
        '[server]\ncontext_length = 100\nkv_cache_type = "q8_0"\nkeep_alive = "1m"\n'
        '[model."tiny"]\ncontext_length = 200\nnum_thread = 3\nkeep_alive = "2m"\n',
    )
    demand = plan.demand(model, LoadOptions(num_ctx=300, num_gpu=0), keep_alive_s=7.0)
    assert (demand.wish.num_ctx, demand.wish.kv_type, demand.wish.threads) == (300, "q8_0", 3)
    assert (demand.wish.num_gpu, demand.keep_alive_s) == (0, 7.0)
    demand = plan.demand(model, LoadOptions(num_gpu=-1), keep_alive_s=None)
    assert (demand.wish.num_ctx, demand.wish.num_gpu, demand.keep_alive_s) == (200, None, 120.0)


def test_what_nobody_asks_for_is_left_to_placement(tmp_path: Path, model: ServedModel) -> None:
    demand = planner(tmp_path).demand(model, LoadOptions(), keep_alive_s=None)
    assert demand.keep_alive_s == 300.0
    wish = demand.wish
    assert (wish.num_ctx, wish.slots, wish.kv_type, wish.threads, wish.num_gpu) == (None,) * 5
    placement = demand.plan({})
    assert placement.settings.num_ctx == 512
    assert placement.settings.threads >= 1


def test_models_with_the_same_weights_share_a_key(model: ServedModel) -> None:
    other = replace(model, installed=replace(model.installed, system="another"))
    assert model.key == other.key
    adapted = replace(model, installed=replace(model.installed, adapters=(Path("/x/lora"),)))
    assert model.key != adapted.key


def test_reserved_memory_is_not_planned_with(tmp_path: Path, model: ServedModel) -> None:
    small = Machine(cpu=Cpu(allowed=2), memory=Memory(total_bytes=2 << 30, available_bytes=1 << 30))
    demand = planner(tmp_path, machine=small).demand(model, LoadOptions(), keep_alive_s=None)
    assert demand.plan({"host": 0}).settings.num_ctx == 512
    with pytest.raises(DoesNotFitError):
        demand.plan({"host": 1 << 30})


def test_machine_is_measured_anew_without_what_our_runners_hold() -> None:
    now_s, held, free = 0.0, 0, 100
    group = CgroupMemory(path="/g", limit_bytes=90, used_bytes=0, reclaimable_bytes=0)

    def inventory() -> Machine:
        memory = Memory(
            total_bytes=200,
            available_bytes=free,
            commit_bytes=free,
            cgroups=(replace(group, used_bytes=100 - free),),
        )
        return replace(MACHINE, memory=memory)

    machines = Machines(inventory, held_bytes=lambda: held, now_s=lambda: now_s)

    def seen() -> tuple[int, int | None, int]:
        memory = machines.before({"host": 30}).memory
        return memory.available_bytes, memory.commit_bytes, memory.cgroups[0].headroom_bytes

    assert seen() == (100, 100, 90)
    now_s, held, free = SNAPSHOT_AGE_S + 1, 20, 80
    assert seen() == (100, 100, 90), "all that is missing is ours"
    free = 10
    assert seen() == (100, 100, 90), "looked at a moment ago"
    now_s *= 2
    assert seen() == (30, 30, 20), "others have taken memory"


def test_gpu_never_seems_to_have_more_than_when_it_was_idle() -> None:
    now_s, free = 0.0, 100
    machines = Machines(
        lambda: replace(
            MACHINE,
            gpus=(Gpu(index=0, total_bytes=120, free_bytes=free),),
            engine_offload=True,
        ),
        now_s=lambda: now_s,
    )

    def seen(reserved: int) -> int:
        nonlocal now_s
        now_s += SNAPSHOT_AGE_S + 1
        return machines.before({"gpu0": reserved}).gpus[0].free_bytes

    free = 60
    assert seen(40) == 100, "a model of ours has taken it"
    free = 90
    assert seen(40) == 100, "it has not taken all of it yet"
    free = 30
    assert seen(40) == 70, "somebody else took some"
    free = 90
    assert seen(0) == 90


def test_crashed_settings_are_replaced_by_safer_ones_and_the_operator_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_tiny_llama(tmp_path / "m.gguf")
    profile = model_profile(read_header(path))
    settings = EngineSettings(num_ctx=256, threads=4)
    records = EngineRecords(tmp_path / "records", build_id="b")
    first, second, *_ = fallbacks(settings)
    crash = EngineVerdict(ok=False, crashed_by="SIGILL", message="the engine crashed")
    records.put(profile, first, crash)
    records.put(profile, second, EngineVerdict(ok=True))
    assert SelfTest(records)(path, settings) == second
    (record,) = [one for one in caplog.records if one.name == "satchel.server"]
    assert "safer settings" in record.getMessage()
    assert "SIGILL" in record.getMessage()


def test_model_that_works_with_no_settings_is_not_served(tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "m.gguf")
    profile = model_profile(read_header(path))
    settings = EngineSettings(num_ctx=256, threads=4)
    records = EngineRecords(tmp_path / "records", build_id="b")
    for one in fallbacks(settings):
        records.put(profile, one, EngineVerdict(ok=False, message="broken"))
    with pytest.raises(LoadFailedError, match="cannot run this model here"):
        SelfTest(records)(path, settings)


def test_file_that_is_no_model_is_not_tried(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"junk")
    records = EngineRecords(tmp_path / "records", build_id="b")
    with pytest.raises(LoadFailedError, match="not a usable GGUF"):
        SelfTest(records)(path, EngineSettings(num_ctx=256))
    with pytest.raises(LoadFailedError, match="cannot be read"):
        SelfTest(records)(tmp_path / "absent", EngineSettings(num_ctx=256))


def test_request_gets_no_more_threads_than_there_are_processors(
    tmp_path: Path, model: ServedModel
) -> None:
    plan = planner(tmp_path)
    for asked, given in ((4000, 2), (1, 1), (0, None)):
        wish = plan.demand(model, LoadOptions(num_thread=asked), keep_alive_s=None).wish
        assert wish.threads == given
