"""Predict tokens per second from what this machine was measured to do. Pure.

One token reads every weight it uses once, and each block costs a fixed time on top:
``seconds = bytes / bandwidth + blocks * block_s``. A prompt is bound by arithmetic: two operations
per weight and token. Two made-up models, one of many thin blocks and one of few wide ones, give
bandwidth and block time; what a real model then does replaces the prediction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from hwprobe.profile import ModelProfile
from hwprobe.settings import EngineSettings

PREDICTED_ERROR_SHARE: Final = 0.25
MEASURED_ERROR_SHARE: Final = 0.10
"""The bands promised before and after the first run; not measured on other machines."""
NEW_WEIGHT: Final = 0.3
"""Share of a new measurement in the running mean. Why: three runs outweigh one bad one."""
MAX_MEASURED: Final = 256
"""Why: more models than one site keeps; the oldest are forgotten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long one model took.

    Attributes:
        decode_bytes: weights read for one token.
        blocks: transformer blocks.
        parameters: weights used for one token.
        token_s: seconds for one token.
        prompt_tokens: length of the prompt.
        prompt_s: seconds for it.
    """

    decode_bytes: int
    blocks: int
    parameters: int
    token_s: float
    prompt_tokens: int
    prompt_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredSpeed:
    """What one model did here, as a running mean.

    Attributes:
        decode: tokens per second of one answer.
        prompt: tokens per second of a prompt.
        runs: how often it was measured.
    """

    decode: float
    prompt: float
    runs: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What this machine's processors do with quantized weights.

    Attributes:
        identity: engine build and processor it holds for.
        threads: they were measured with.
        bandwidth_bytes_per_s: weights read per second.
        block_s: fixed seconds per block and token.
        operations_per_s: multiplications and additions per second in prompts.
        measured: by `speed_key`, what models did since; the latest last.
    """

    identity: str
    threads: int
    bandwidth_bytes_per_s: float
    block_s: float
    operations_per_s: float
    measured: Mapping[str, MeasuredSpeed] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Tokens per second, with the share by which they may be wrong."""

    decode: float
    prompt: float
    error_share: float
    measured: bool

    def __str__(self) -> str:
        """One line for a person."""
        source = "measured" if self.measured else "predicted"
        return (
            f"about {self.decode:.3g} tokens/s, prompts {self.prompt:.3g} tokens/s "
            f"(±{self.error_share:.0%}, {source}, one answer, short context)"
        )


def calibration_of(thin: Timing, wide: Timing, *, identity: str, threads: int) -> Calibration:
    """Solve bandwidth and block time from two models.

    Noise can make the block time negative; then it is nothing, and the wide model alone decides.
    """
    weight = thin.blocks / wide.blocks
    read_s = (weight * wide.token_s - thin.token_s) / (
        weight * wide.decode_bytes - thin.decode_bytes
    )
    block_s = (wide.token_s - wide.decode_bytes * read_s) / wide.blocks
    if read_s <= 0 or block_s < 0:
        read_s, block_s = wide.token_s / wide.decode_bytes, 0.0
    return Calibration(
        identity=identity,
        threads=threads,
        bandwidth_bytes_per_s=1 / read_s,
        block_s=block_s,
        operations_per_s=2 * wide.parameters * wide.prompt_tokens / wide.prompt_s,
    )


def decode_bytes(profile: ModelProfile) -> int:
    """Weights one token reads: all but looked-up embeddings, and of experts those it passes."""
    blocks = sum(profile.block_bytes)
    if profile.expert_count:
        inner = profile.expert_feed_forward_length or profile.feed_forward_length
        elements = 3 * profile.embedding_length * inner * profile.expert_count
        share = profile.weights_bytes / max(1, profile.parameter_count)
        experts = min(blocks, int(elements * share) * profile.block_count)
        blocks -= (
            experts
            * (profile.expert_count - profile.expert_used_count)
            // max(1, profile.expert_count)
        )
    return max(1, blocks + profile.output_bytes + profile.tied_output_bytes)


def predicted_speed(
    profile: ModelProfile, settings: EngineSettings, calibration: Calibration
) -> Speed | None:
    """The speed of one answer; ``None`` where nothing was measured: with layers on a GPU."""
    if settings.num_gpu or profile.pools:
        return None
    known = calibration.measured.get(speed_key(profile, settings))
    if known is not None:
        return Speed(
            decode=known.decode,
            prompt=known.prompt,
            error_share=MEASURED_ERROR_SHARE,
            measured=True,
        )
    size = decode_bytes(profile)
    token_s = size / calibration.bandwidth_bytes_per_s + profile.block_count * calibration.block_s
    parameters = size * profile.parameter_count / max(1, profile.weights_bytes)
    return Speed(
        decode=1 / token_s,
        prompt=calibration.operations_per_s / max(1.0, 2 * parameters),
        error_share=PREDICTED_ERROR_SHARE,
        measured=False,
    )


def with_measured(
    calibration: Calibration, key: str, *, decode: float, prompt: float
) -> Calibration:
    """The calibration that has learned from one run; numbers that are no speeds change nothing."""
    if not (0 < decode < float("inf") and 0 < prompt < float("inf")):
        return calibration
    measured = dict(calibration.measured)
    old = measured.pop(key, None)
    if old is None:
        new = MeasuredSpeed(decode=decode, prompt=prompt)
    else:
        new = MeasuredSpeed(
            decode=old.decode + NEW_WEIGHT * (decode - old.decode),
            prompt=old.prompt + NEW_WEIGHT * (prompt - old.prompt),
            runs=old.runs + 1,
        )
    kept = list(measured.items())[-(MAX_MEASURED - 1) :]
    return replace(calibration, measured=dict([*kept, (key, new)]))


def speed_key(profile: ModelProfile, settings: EngineSettings) -> str:
    """What a measured speed holds for: the model, its quantization, and how it is computed."""
    parts = (profile.architecture, profile.quantization, profile.parameter_count)
    how = (settings.threads, settings.num_gpu, settings.kv_type, settings.repack)
    return " ".join(map(str, (*parts, profile.file_size_bytes, *how)))
