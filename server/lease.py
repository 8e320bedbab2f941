"""What a request asks the scheduler for, and what it gets."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from hwprobe import errors as probe_errors
from hwprobe.errors import GgufError
from hwprobe.estimate import draft_settings
from hwprobe.gguf import model_profile, read_header
from hwprobe.placement import Placement, Wish
from hwprobe.profile import ModelProfile
from hwprobe.settings import EngineSettings
from server.coroner import Coroner
from server.errors import DoesNotFitError, LoadFailedError
from server.residents import Choice
from server.runner.process import Runner

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """What the operator may set.

    Attributes:
        max_queue: most requests that wait for a load. Default 512, as Ollama's.
        max_loaded_models: 0 means as many as fit.
        keep_alive_s: for requests that name none; negative means for ever.
        patience_s: see `server.residency.Residency`.
        stop_grace_s: what a runner may take to end by itself when it is unloaded.
    """

    max_queue: int = 512
    max_loaded_models: int = 0
    keep_alive_s: float = 300.0
    patience_s: float = 5.0
    stop_grace_s: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What a request wants to use.

    Attributes:
        name: for display, as ``ps`` shows it.
        key: digests of the weights and of all loaded beside them; one runner serves one key.
        model_path: the GGUF file.
        adapters: LoRA files and their scales.
        projector: what shows it images; ``None`` without one.
        draft: a model that proposes its tokens; ``None`` without one.
        plan: places the model when so many bytes per pool are taken; raises
            `hwprobe.errors.DoesNotFitError`.
        wish: the same wish that ``plan`` places with.
        keep_alive_s: ``None`` is the server's default.
        pinned: it never leaves to make room.
        profile: what is placed; without it nothing is learned from its loads.
        lesser: the next smaller way to load it, and what it gives up, for when the engine got no
            memory; ``None`` when there is none.
    """

    name: str
    key: str
    model_path: Path
    plan: Callable[[Mapping[str, int]], Placement]
    wish: Wish = field(default_factory=Wish)
    adapters: tuple[tuple[str, float], ...] = ()
    projector: Path | None = None
    draft: Path | None = None
    keep_alive_s: float | None = None
    pinned: bool = False
    profile: ModelProfile | None = None
    lesser: Callable[[EngineSettings], tuple[str, Choice] | None] = lambda _: None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model in memory, for ``ps``.

    Attributes:
        name: of the request it was loaded for.
        key: see `Demand`.
        size_bytes: what it takes by the estimate, all pools together.
        vram_bytes: of these, outside host memory.
        num_ctx: context of one slot, in tokens.
        settings: what it was loaded with.
        expires_at_s: on the scheduler's clock; ``None`` means it stays. While in use: as if it
            became idle now.
        in_flight: requests that use it.
        pid: of its runner.
    """

    name: str
    key: str
    size_bytes: int
    vram_bytes: int
    num_ctx: int
    settings: EngineSettings
    expires_at_s: float | None
    in_flight: int
    pid: int


class Lease:
    """The right to use a runner, until it is closed. A context manager.

    Attributes:
        runner: the process that holds the model.
        settings: what the model was loaded with.
        load_s: seconds the request waited for it.
        coroner: is told which requests are in flight.
        key: see `Demand`.
    """

    def __init__(
        self,
        *,
        runner: Runner,
        settings: EngineSettings,
        load_s: float,
        give_back: Callable[[], None],
        coroner: Coroner,
        key: str = "",
    ) -> None:
        self.coroner = coroner
        self.key = key
        self.runner = runner
        self.settings = settings
        self.load_s = load_s
        self._give_back = give_back

    @property
    def crashed(self) -> bool:
        """Whether the runner has gone; what it has not said, a new lease can still get."""
        return not self.runner.alive

    def close(self) -> None:
        """Give the runner back; more often than once changes nothing."""
        self._give_back()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def tested_draft(
    demand: Demand,
    settings: EngineSettings,
    check: Callable[[Path, EngineSettings], EngineSettings],
) -> Path | None:
    """The draft model, if the engine runs it here as it would be loaded; else one line tells.

    Args:
        demand: what is loaded.
        settings: of the model.
        check: the self-test; returns safer settings where these fail.
    """
    if demand.draft is None:
        return None
    try:
        wanted = draft_settings(settings, model_profile(read_header(demand.draft)))
        if check(demand.draft, wanted) == wanted:
            return demand.draft
        reason = "the engine's self-test failed"
    except (LoadFailedError, GgufError) as error:
        reason = str(error)
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
    _LOG.warning("%s: serving without its draft model: %s", demand.name, reason)
    return None


def choices_for(
    demand: Demand, taken: Mapping[str, int], pinned: Mapping[str, int]
) -> tuple[Choice, ...]:
    """The ways to load a model, the best first: with what is free now, or after others left.

    What fits beside the others comes first unless it costs context or GPU layers.

    Args:
        demand: the model and its plan.
        taken: bytes per pool that all other models take.
        pinned: of these, by models that will not leave.

    Raises:
        DoesNotFitError: it does not fit even after the others left.
    """
    alone = _placed(demand, pinned)
    if taken == pinned:
        return (alone,)
    try:
        beside = _placed(demand, taken)
    except DoesNotFitError:
        return (alone,)
    as_good = (beside.settings.num_gpu, beside.settings.num_ctx) == (
        alone.settings.num_gpu,
        alone.settings.num_ctx,
    )
    return (beside, alone) if as_good else (alone, beside)


def _placed(demand: Demand, taken: Mapping[str, int]) -> Choice:
    try:
        placement = demand.plan(taken)
    except probe_errors.DoesNotFitError as error:
        raise DoesNotFitError(str(error), hint=error.hint) from error
    need = placement.estimate
    return Choice(
        settings=placement.settings,
        need_bytes={pool: need.total_bytes(pool) for pool in need.pools},
    )
