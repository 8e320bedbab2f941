"""What placement is asked and what it answers: candidates, wishes, rejections, placements. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hwprobe.estimate import HOST, MemoryEstimate
from hwprobe.margins import UNTRIED, Margin
from hwprobe.profile import ModelProfile
from hwprobe.quantity import Bytes
from hwprobe.settings import EngineSettings, KvType


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One file that could be served.

    Attributes:
        variant: its name, such as ``Q4_K_M``.
        profile: what it is.
        prefer: quality as measured by whoever packed it; higher is better and decides first.
        margin: what earlier loads of it have taught.
    """

    variant: str
    profile: ModelProfile
    prefer: int = 0
    margin: Margin = UNTRIED


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the user asked for; ``None`` leaves it to placement.

    Attributes:
        num_ctx: context of one slot, in tokens; cut to the trained context.
        slots: requests decoded at the same time.
        kv_type: element type of the KV cache.
        num_gpu: layers on GPUs; negative means as many as fit.
        threads: CPU threads; 0 leaves it to placement.
        num_batch: tokens per decode call.
        use_mmap: map the file.
        saved_bytes: host memory for states of prompts, where it is left over.
    """

    num_ctx: int | None = None
    slots: int | None = None
    kv_type: KvType | None = None
    num_gpu: int | None = None
    threads: int | None = None
    num_batch: int | None = None
    use_mmap: bool | None = None
    saved_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """Why a candidate, at the least it would need, does not fit.

    Attributes:
        variant: the candidate.
        settings: the smallest settings that were tried.
        pool: the first pool that is too small.
        need_bytes: predicted need there, margin included.
        budget_bytes: what there is.
        constraint: the bound that makes the budget so small, such as a control group.
        remedy: what would make it fit.
    """

    variant: str
    settings: EngineSettings
    pool: str
    need_bytes: int
    budget_bytes: int
    remedy: str
    constraint: str = ""

    @property
    def shortfall_bytes(self) -> int:
        """What is missing."""
        return self.need_bytes - self.budget_bytes

    @property
    def shortage(self) -> str:
        """What is missing where, in one line without the remedy."""
        return (
            f"{self.variant} at {self.settings.num_ctx} tokens needs {Bytes(self.need_bytes)} of "
            f"{pool_words(self.pool)}, {Bytes(self.budget_bytes)} usable, "
            f"{Bytes(self.shortfall_bytes)} short"
        )

    def __str__(self) -> str:
        """The shortage and the remedy, in one line."""
        return f"{self.shortage}; {self.remedy}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """How a model is to be loaded, and why so.

    Attributes:
        variant: the chosen candidate.
        settings: the one value the load is decided by.
        estimate: the predicted memory.
        budgets: bytes usable per pool, after everything kept free.
        reasons: one line per choice.
        rejected: candidates of higher quality that do not fit.
    """

    variant: str
    settings: EngineSettings
    estimate: MemoryEstimate
    budgets: Mapping[str, int]
    reasons: tuple[str, ...]
    rejected: tuple[Rejection, ...]


def pool_words(pool: str) -> str:
    """The pool's name for a person."""
    return "host memory" if pool == HOST else f"GPU {pool.removeprefix('gpu')} memory"
