"""What is added to a predicted need before it is compared with a budget, and how that learns. Pure.

A margin starts at the error that is allowed to the formulas. What a load really held then moves
it: an excess counts at once and in full, and is forgotten slowly; loads that held no more than was
predicted earn a smaller margin. Both are bounded, so one odd measurement can neither stop a model
from being loaded nor take all caution away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from hwprobe.estimate import HOST
from hwprobe.profile import ModelProfile

_MIB: Final = 1 << 20
HOST_ERROR_SHARE: Final = 0.02
GPU_ERROR_SHARE: Final = 0.03
LEAST_ERROR_BYTES: Final = 48 * _MIB
"""Margin on a prediction: the error allowed to the estimate, and never less than this."""
EARNED_SHARE: Final = 0.01
EARNED_LEAST_BYTES: Final = 32 * _MIB
EARNED_RUNS: Final = 3
"""After so many loads that were measured, the smaller margin is enough."""
MOST_EXCESS_SHARE: Final = 0.25
"""Why: a formula that is wrong by more is a bug, and no margin mends it."""
FORGOTTEN_SHARE: Final = 0.2
"""Of an old excess, with each load that does not show it again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Margin:
    """What loads of one model have taught.

    Attributes:
        excess_share: how much more than predicted was held, as a share of the prediction; never
            negative.
        runs: loads that were measured.
    """

    excess_share: float = 0.0
    runs: int = 0


UNTRIED: Final = Margin()


def margin_bytes(pool: str, need_bytes: int, margin: Margin = UNTRIED) -> int:
    """What is added to a predicted need.

    GPU pools are not measured after a load, so nothing is learned for them.
    """
    if pool != HOST:
        return max(LEAST_ERROR_BYTES, int(GPU_ERROR_SHARE * need_bytes))
    earned = margin.runs >= EARNED_RUNS
    share = (EARNED_SHARE if earned else HOST_ERROR_SHARE) + margin.excess_share
    return max(EARNED_LEAST_BYTES if earned else LEAST_ERROR_BYTES, int(share * need_bytes))


def learned(margin: Margin, *, predicted_bytes: int, measured_bytes: int) -> Margin:
    """The margin after one more load; a prediction of nothing teaches nothing."""
    if predicted_bytes <= 0 or measured_bytes < 0:
        return margin
    excess = (measured_bytes - predicted_bytes) / predicted_bytes
    kept = (1 - FORGOTTEN_SHARE) * margin.excess_share
    share = min(MOST_EXCESS_SHARE, max(0.0, excess, kept))
    return Margin(excess_share=round(share, 6), runs=margin.runs + 1)


def margin_key(profile: ModelProfile) -> str:
    """What a margin holds for: one model in one quantization."""
    parts = (profile.architecture, profile.quantization, profile.parameter_count)
    return " ".join(map(str, (*parts, profile.file_size_bytes)))
