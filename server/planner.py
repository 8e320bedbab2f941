"""How a model is to be loaded for a request: wishes, placement on this machine, the self-test.

Rules:
 * a request's option counts before the model's table in the configuration, and this before the
   server's; what nobody asks for is left to placement;
 * placement sees the machine as it was before our own runners took memory, and what they take;
 * before a configuration is served for the first time, a child process tries it; if that crashes,
   a safer one is served, and one line on stderr says so.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from appliance.config import Config
from hwprobe.adapter import adapted, check_adapter
from hwprobe.draft import check_draft, drafted
from hwprobe.engine import checked_settings
from hwprobe.errors import (
    AdapterError,
    DraftError,
    EngineCheckError,
    GgufError,
    ProjectorError,
)
from hwprobe.gguf import ModelProfile, model_profile, read_header
from hwprobe.machine import Machine
from hwprobe.placement import Candidate, Placement, Wish, place
from hwprobe.projector import check_projector, projected
from hwprobe.settings import EngineSettings, KvType
from hwprobe.verdicts import EngineRecords
from server.catalogue import ServedModel
from server.errors import LoadFailedError
from server.scheduler import Demand
from server.wishes import LoadOptions

LOG = logging.getLogger("satchel.server")

SNAPSHOT_AGE_S = 5.0
"""How old a snapshot of the machine may be while no model of ours is in memory. Taking one costs
some milliseconds, with NVIDIA cards some tens."""

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
    """The machine as it is without our own runners."""

    def __init__(
        self,
        inventory: Callable[[], Machine],
        *,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inventory = inventory
        self._now_s = now_s
        self._lock = threading.Lock()
        self._snapshot = inventory()
        self._taken_s = now_s()

    @property
    def processors(self) -> int:
        """How many logical processors there are."""
        return self._snapshot.cpu.allowed

    def before(self, reserved_bytes: Mapping[str, int]) -> Machine:
        """A snapshot from before the runners behind ``reserved_bytes`` took their memory.

        While there are none it is taken anew now and then: other programs come and go.
        """
        with self._lock:
            idle = not any(reserved_bytes.values())
            if idle and self._now_s() - self._taken_s > SNAPSHOT_AGE_S:
                self._snapshot = self._inventory()
                self._taken_s = self._now_s()
            return self._snapshot


class Planner:
    """Makes the demands the scheduler is asked with."""

    def __init__(self, *, config: Config, machines: Machines) -> None:
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
            (Candidate(variant=profile.quantization, profile=profile),),
            wish,
            reserved_bytes=reserved_bytes,
        )


def _profile(model: ServedModel) -> ModelProfile:
    """What is to be placed: the model with all that is loaded beside it."""
    installed = model.installed
    if not installed.adapters and model.projector is None and model.draft is None:
        return installed.profile
    try:
        return _together(installed.model_path, installed.adapters, model.projector, model.draft)
    except (AdapterError, DraftError, ProjectorError, GgufError) as error:
        raise LoadFailedError(f"{installed.name.short()}: {error}", hint=error.hint) from error
    except OSError as error:
        raise LoadFailedError(f"{installed.name.short()}: cannot be read") from error


@functools.lru_cache(maxsize=64)
def _together(
    model_path: Path, adapters: tuple[Path, ...], projector: Path | None, draft: Path | None
) -> ModelProfile:
    """Cached by path: a blob's path holds its digest, and blobs never change."""
    header = read_header(model_path)
    headers = [read_header(path) for path in adapters]
    for one in headers:
        check_adapter(one, header)
    profile = adapted(model_profile(header), headers)
    if projector is not None:
        eyes = read_header(projector)
        check_projector(eyes, header)
        profile = projected(profile, eyes)
    if draft is not None:
        small = read_header(draft)
        check_draft(small, header)
        profile = drafted(profile, small)
    return profile
