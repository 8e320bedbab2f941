"""How a model is to be loaded for a request: wishes, placement on this machine, the self-test.

Rules:
 * a request's option counts before the model's table in the configuration, and this before the
   server's; what nobody asks for is left to placement;
 * placement sees the machine as it would be without our own runners, measured now, and what they
   are planned to take;
 * before a configuration is served for the first time, a child process tries it; if that crashes,
   a safer one is served, and one line on stderr says so.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from appliance.config import Config
from hwprobe.budgets import given_back, pool_budgets
from hwprobe.engine import checked_settings
from hwprobe.errors import (
    AdapterError,
    DraftError,
    EngineCheckError,
    GgufError,
    ProjectorError,
)
from hwprobe.estimate import estimate, gpu_pool, repacked_types
from hwprobe.gguf import ModelProfile, model_profile, read_header
from hwprobe.ladder import step_down
from hwprobe.machine import Gpu, Machine
from hwprobe.placement import Candidate, Placement, Wish, place
from hwprobe.settings import EngineSettings, KvType
from hwprobe.together import profile_together
from hwprobe.verdicts import EngineRecords
from server.catalogue import ServedModel
from server.errors import LoadFailedError
from server.experience import Experience
from server.residents import Choice
from server.scheduler import Demand
from server.wishes import LoadOptions

LOG = logging.getLogger("satchel.server")

SNAPSHOT_AGE_S = 5.0
"""How old a snapshot of the machine may be when a load is planned. Taking one costs some
milliseconds, with NVIDIA cards some tens."""

LEAST_VISION_CONTEXT = 2048
"""Tokens of context that a model with a projector has at least. Source: Ollama's scheduler."""

_KV_TYPES: Mapping[str, KvType] = {"f16": "f16", "q8_0": "q8_0", "q4_0": "q4_0"}


class SelfTest:
    """What the scheduler checks a load with: settings tried on this machine, or safer ones."""

    def __init__(self, records: EngineRecords) -> None:
        self._records = records
        self._one_at_a_time = threading.Lock()

    def __call__(self, model_path: Path, settings: EngineSettings) -> EngineSettings:
        """Try the settings unless a verdict is on record.

        Raises:
            LoadFailedError: not even the safest settings work, or the file is not a model.
        """
        with self._one_at_a_time:
            try:
                profile = model_profile(read_header(model_path))
                checked = checked_settings(model_path, profile, settings, records=self._records)
            except (EngineCheckError, GgufError) as error:
                raise LoadFailedError(str(error), hint=error.hint) from error
            except OSError as error:
                raise LoadFailedError(f"the model cannot be read: {error.strerror}") from error
        for line in checked.refused:
            LOG.warning("the engine's self-test failed, serving with safer settings: %s", line)
        return checked.settings


class Machines:
    """The machine as it would be without our own runners, measured now."""

    def __init__(
        self,
        inventory: Callable[[], Machine],
        *,
        held_bytes: Callable[[], int] = lambda: 0,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the first snapshot.

        Args:
            inventory: takes one.
            held_bytes: host memory that our runners hold for themselves now.
            now_s: monotonic seconds.
        """
        self._inventory = inventory
        self._held_bytes = held_bytes
        self._now_s = now_s
        self._lock = threading.Lock()
        self._snapshot = inventory()
        self._taken_s = now_s()

    @property
    def processors(self) -> int:
        """How many logical processors there are."""
        return self._snapshot.cpu.allowed

    @property
    def repacked(self) -> frozenset[str]:
        """Tensor types that the engine's build repacks here."""
        return repacked_types(self._snapshot.cpu, self._snapshot.engine_variant)

    def before(self, reserved_bytes: Mapping[str, int]) -> Machine:
        """The machine as if the runners behind ``reserved_bytes`` had not taken their memory.

        It is measured anew when the last snapshot is older than `SNAPSHOT_AGE_S`: other programs
        come and go. Host memory of our runners is measured, too, so that what they have not
        touched yet stays reserved for them. What they take of a GPU no driver tells per process
        in every case, so a GPU never seems to have more than when it was idle.
        """
        with self._lock:
            if self._now_s() - self._taken_s > SNAPSHOT_AGE_S:
                fresh = self._inventory()
                memory = given_back(fresh.memory, self._held_bytes())
                self._snapshot = replace(
                    fresh, memory=memory, gpus=self._gpus(fresh, reserved_bytes)
                )
                self._taken_s = self._now_s()
            return self._snapshot

    def budgets(self, reserved_bytes: Mapping[str, int]) -> Mapping[str, int]:
        """What all models together may take; arguments are those of `before`."""
        return pool_budgets(self.before(reserved_bytes), {})

    def _gpus(self, fresh: Machine, reserved_bytes: Mapping[str, int]) -> tuple[Gpu, ...]:
        if not any(reserved_bytes.values()):
            return fresh.gpus
        idle = {gpu.index: gpu.free_bytes for gpu in self._snapshot.gpus}
        return tuple(
            replace(
                gpu,
                free_bytes=min(
                    idle.get(gpu.index, gpu.free_bytes),
                    gpu.free_bytes + reserved_bytes.get(gpu_pool(gpu.index), 0),
                ),
            )
            for gpu in fresh.gpus
        )


class Planner:
    """Makes the demands the scheduler is asked with."""

    def __init__(
        self, *, config: Config, machines: Machines, experience: Experience | None = None
    ) -> None:
        self._experience = experience or Experience()
        self._config = config
        self._machines = machines

    def demand(
        self, model: ServedModel, load: LoadOptions, *, keep_alive_s: float | None
    ) -> Demand:
        """What to ask the scheduler for.

        Args:
            model: which model.
            load: the load options of the model and the request.
            keep_alive_s: what the request says, if anything.

        Raises:
            LoadFailedError: an adapter, the projector or the draft does not go with the model.
        """
        table = self._config.model(model.installed.name)
        server = self._config.server
        if keep_alive_s is None:
            keep_alive_s = server.keep_alive_s if table.keep_alive_s is None else table.keep_alive_s
        wish = self._wish(model, load)
        profile = _profile(model)
        repacked = self._machines.repacked
        return Demand(
            name=model.installed.name.short(),
            key=model.key,
            plan=lambda reserved: self._plan(profile, wish, reserved),
            model_path=model.installed.model_path,
            adapters=tuple((str(path), 1.0) for path in model.installed.adapters),
            projector=model.projector,
            draft=model.draft,
            wish=wish,
            keep_alive_s=keep_alive_s,
            profile=profile,
            lesser=lambda settings: _lesser(profile, wish, settings, repacked),
        )

    def _wish(self, model: ServedModel, load: LoadOptions) -> Wish:
        table = self._config.model(model.installed.name)
        server = self._config.server
        num_ctx = load.num_ctx
        if num_ctx and model.projector is not None:
            num_ctx = max(num_ctx, LEAST_VISION_CONTEXT)
        num_gpu = table.num_gpu if load.num_gpu is None else load.num_gpu
        return Wish(
            num_ctx=num_ctx or table.context_length or server.context_length or None,
            slots=table.num_parallel or server.num_parallel or None,
            kv_type=_KV_TYPES.get(table.kv_cache_type or server.kv_cache_type),
            num_gpu=None if num_gpu is None or num_gpu < 0 else num_gpu,
            threads=self._threads(load.num_thread) or table.num_thread or None,
            num_batch=load.num_batch,
            use_mmap=load.use_mmap,
            saved_bytes=self._config.cache.ram_bytes,
        )

    def _threads(self, asked: int | None) -> int | None:
        """A request's threads, no more than processors: each token waits for the slowest."""
        return min(asked, self._machines.processors) if asked else None

    def _plan(
        self, profile: ModelProfile, wish: Wish, reserved_bytes: Mapping[str, int]
    ) -> Placement:
        return place(
            self._machines.before(reserved_bytes),
            (
                Candidate(
                    variant=profile.quantization,
                    profile=profile,
                    margin=self._experience.margin(profile),
                ),
            ),
            wish,
            reserved_bytes=reserved_bytes,
        )


def _lesser(
    profile: ModelProfile, wish: Wish, settings: EngineSettings, repacked: frozenset[str]
) -> tuple[str, Choice] | None:
    """The next step down, and what it takes."""
    step = step_down(profile, wish, settings)
    if step is None:
        return None
    need = estimate(profile, step.settings, repacked=repacked)
    sizes = {pool: need.total_bytes(pool) for pool in need.pools}
    return step.words, Choice(settings=step.settings, need_bytes=sizes)


def _profile(model: ServedModel) -> ModelProfile:
    """What is to be placed: the model with all that is loaded beside it."""
    installed = model.installed
    if not installed.adapters and model.projector is None and model.draft is None:
        return installed.profile
    try:
        return profile_together(
            installed.model_path, installed.adapters, model.projector, model.draft
        )
    except (AdapterError, DraftError, ProjectorError, GgufError) as error:
        raise LoadFailedError(f"{installed.name.short()}: {error}", hint=error.hint) from error
    except OSError as error:
        raise LoadFailedError(f"{installed.name.short()}: cannot be read") from error
