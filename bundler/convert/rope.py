"""Rotary embeddings stretched to longer contexts: keys and factor tensors. Pure.

Source: the scaling rules as the checkpoints' own configurations define them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bundler.convert.families import Shape, Value, rope_settings
from bundler.convert.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Keys behind the architecture's name, and tensors by name."""

    keys: Mapping[str, Value] = field(default_factory=dict)
    tensors: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)


def rope_of(config: Settings, shape: Shape, freq_base: float) -> Rope:
    """What a configuration asks for.

    Raises:
        PackError: a kind of scaling that llama.cpp does not do, or a value that is missing.
    """
    scaling = rope_settings(config)
    kind = scaling.text("rope_type", "type", default="default")
    match kind:
        case "default":
            return Rope()
        case "linear":
            factor = scaling.number("factor")
            return Rope(keys={"rope.scaling.type": "linear", "rope.scaling.factor": factor})
        case "yarn":
            return Rope(keys=_yarn(scaling, shape))
        case "llama3":
            factors = llama3_factors(scaling, shape.rotary_length, freq_base)
            return Rope(tensors={"rope_freqs.weight": factors})
        case "longrope" | "su":
            return _longrope(config, scaling, shape)
        case _:
            known = "default, linear, yarn, llama3 or longrope"
            return scaling.refuse("rope_type", known, kind)


def _yarn(scaling: Settings, shape: Shape) -> dict[str, Value]:
    original = scaling.integer("original_max_position_embeddings", default=shape.context)
    keys: dict[str, Value] = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": scaling.number("factor"),
        "rope.scaling.original_context_length": original,
    }
    for theirs, ours in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
        if scaling.values.get(theirs) is not None:
            keys[f"rope.scaling.{ours}"] = scaling.number(theirs)
    return keys


def llama3_factors(
    scaling: Settings, rotary_length: int, freq_base: float
) -> npt.NDArray[np.float32]:
    """By how much each frequency is slowed down: ``rotary_length / 2`` factors.

    High frequencies stay, low ones are divided by ``factor``, those between change over smoothly.
    """
    factor = scaling.number("factor")
    low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
    original = scaling.integer("original_max_position_embeddings")
    frequencies = freq_base ** (-np.arange(0, rotary_length, 2, dtype=np.float64) / rotary_length)
    turns = original * frequencies / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / factor + smooth)).astype(np.float32)


def _longrope(config: Settings, scaling: Settings, shape: Shape) -> Rope:
    half = shape.rotary_length // 2
    original = config.integer(
        "original_max_position_embeddings",
        default=scaling.integer("original_max_position_embeddings", default=shape.context),
    )
    stretch = shape.context / original
    attention = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
    return Rope(
        keys={
            "rope.scaling.original_context_length": original,
            "rope.scaling.attn_factor": attention,
        },
        tensors={
            f"rope_factors_{name}.weight": np.array(
                scaling.numbers(f"{name}_factor", half), dtype=np.float32
            )
            for name in ("long", "short")
        },
    )
