"""How options become a chain of samplers, and what can be computed beside it. Pure.

The chain's order is llama.cpp's: bias, penalties, DRY, top-n-sigma, top-k, typical, top-p, min-p,
XTC, temperature, and the draw. It runs on all tokens of the vocabulary, or on the few that can
pass its top-k step: the result is the same, the cost is not.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from server.errors import EngineRefusedError
from server.wishes import SamplingOptions

Row = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Step = tuple[str | int | float, ...]
"""Name of a sampler, then its arguments."""

MIROSTAT_M = 100
"""Tokens that mirostat 1 estimates the distribution from. Source: llama.cpp common/sampling.cpp."""

MOST_BREAKERS = 16
"""Why: each is looked for in the whole vocabulary."""

MOST_BREAKER_BYTES = 40
"""The engine cuts longer ones, in the middle of a character maybe. Source: llama-sampler.cpp."""

_SEED_MASK = 0xFFFFFFFF
"""Seeds are unsigned 32 bit; this very value tells the engine to draw one itself."""

_BLOCKS_PER_CANDIDATE = 4
"""The bound is tight when there are several times more blocks than candidates."""


def check_options(options: SamplingOptions, *, vocabulary_size: int) -> None:
    """Refuse what the engine would take silently and sample nonsense from.

    Raises:
        EngineRefusedError: names the option, what was expected, what was found.
    """
    numbers = {
        "temperature": options.temperature,
        "top_p": options.top_p,
        "min_p": options.min_p,
        "typical_p": options.typical_p,
        "repeat_penalty": options.repeat_penalty,
        "presence_penalty": options.presence_penalty,
        "frequency_penalty": options.frequency_penalty,
        "mirostat_tau": options.mirostat_tau,
        "mirostat_eta": options.mirostat_eta,
        "dry_multiplier": options.dry_multiplier,
        "dry_base": options.dry_base,
        "xtc_probability": options.xtc_probability,
        "xtc_threshold": options.xtc_threshold,
        "top_n_sigma": options.top_n_sigma,
    }
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise EngineRefusedError(f"{name}: expected a finite number, found {value}")
    if options.repeat_penalty <= 0:
        raise EngineRefusedError(
            f"repeat_penalty: expected more than 0, found {options.repeat_penalty}"
        )
    if options.mirostat not in (0, 1, 2):
        raise EngineRefusedError(f"mirostat: expected 0, 1 or 2, found {options.mirostat}")
    _check_breakers(options.dry_sequence_breakers)
    for token, bias in options.logit_bias:
        if not 0 <= token < vocabulary_size:
            raise EngineRefusedError(
                f"logit_bias: expected tokens 0 to {vocabulary_size - 1}, found {token}"
            )
        if math.isnan(bias) or bias == math.inf:
            raise EngineRefusedError(f"logit_bias: expected finite numbers, found {bias}")


def _check_breakers(breakers: tuple[str, ...]) -> None:
    if len(breakers) > MOST_BREAKERS:
        raise EngineRefusedError(
            f"dry_sequence_breakers: expected at most {MOST_BREAKERS}, found {len(breakers)}"
        )
    for breaker in breakers:
        if "\0" in breaker or len(breaker.encode("utf-8", "replace")) > MOST_BREAKER_BYTES:
            raise EngineRefusedError(
                f"dry_sequence_breakers: expected at most {MOST_BREAKER_BYTES} bytes, none of zero"
            )


def draw_seed(seed: int) -> int:
    """The seed to use: the given one as 32 bit, or for a negative one a random one."""
    return secrets.randbits(32) % _SEED_MASK if seed < 0 else seed & _SEED_MASK


def last_tokens(options: SamplingOptions, *, context_tokens: int) -> int:
    """How many of the last tokens the penalties look at; negative means the whole context."""
    last = options.repeat_last_n
    return context_tokens if last < 0 else min(last, context_tokens)


def merged_bias(options: SamplingOptions) -> tuple[tuple[int, float], ...]:
    """One bias per token: the sum, where a token is named twice."""
    total: dict[int, float] = {}
    for token, bias in options.logit_bias:
        total[token] = total.get(token, 0.0) + bias
    return tuple(total.items())


def dry_tokens(options: SamplingOptions, *, context_tokens: int) -> int:
    """How many of the last tokens DRY looks at; 0 where it is off."""
    last = options.dry_penalty_last_n
    if not options.dry_multiplier:
        return 0
    return context_tokens if last < 0 else min(last, context_tokens)


def is_penalizing(options: SamplingOptions) -> bool:
    """Whether earlier tokens change the logits."""
    penalties = (options.repeat_penalty, options.presence_penalty, options.frequency_penalty)
    return options.repeat_last_n != 0 and penalties != (1, 0, 0)


def is_greedy(options: SamplingOptions) -> bool:
    """Whether the likeliest token is always taken."""
    return options.temperature <= 0


def chain(
    options: SamplingOptions, *, seed: int, vocabulary_size: int, context_tokens: int
) -> list[Step]:
    """The samplers in their order; the last one draws the token."""
    steps: list[Step] = []
    if options.logit_bias:
        steps.append(("logit_bias",))
    if is_penalizing(options):
        last = last_tokens(options, context_tokens=context_tokens)
        penalties = (
            options.repeat_penalty,
            options.frequency_penalty,
            options.presence_penalty,
        )
        steps.append(("penalties", vocabulary_size, last, *penalties))
    if dry_tokens(options, context_tokens=context_tokens):
        steps.append(("dry",))
    if is_greedy(options):
        return [*steps, ("greedy",)]
    if options.mirostat == 1:
        mirostat = (options.mirostat_tau, options.mirostat_eta, MIROSTAT_M)
        return [
            *steps,
            ("temp", options.temperature),
            ("mirostat", vocabulary_size, seed, *mirostat),
        ]
    if options.mirostat:
        mirostat_2 = ("mirostat_v2", seed, options.mirostat_tau, options.mirostat_eta)
        return [*steps, ("temp", options.temperature), mirostat_2]
    if options.top_n_sigma > 0:
        steps.append(("top_n_sigma", options.top_n_sigma))
    steps += [
        ("top_k", min(max(options.top_k, 0), vocabulary_size)),
        ("typical", options.typical_p, 0),
        ("top_p", options.top_p, 0),
        ("min_p", options.min_p, 0),
    ]
    if options.xtc_probability:
        steps.append(("xtc", options.xtc_probability, options.xtc_threshold, 0, seed))
    return [
        *steps,
        ("temp", options.temperature),
        ("dist", seed),
    ]


def candidates_needed(
    options: SamplingOptions, changed: int, *, vocabulary_size: int
) -> int | None:
    """How many of the likeliest tokens the chain has to see; ``None`` for all.

    Args:
        options: how tokens are chosen.
        changed: tokens whose logits bias or penalties change; they are seen in any case.
        vocabulary_size: tokens there are.
    """
    if options.dry_multiplier:
        return None  # it can change the logits of any token
    if (options.mirostat or options.top_n_sigma > 0) and not is_greedy(options):
        return None  # these look at all of them
    first = 1 if is_greedy(options) else options.top_k
    needed = first + changed
    if first < 1 or needed * _BLOCKS_PER_CANDIDATE > vocabulary_size:
        return None
    return needed


def likeliest(row: Row, count: int) -> Ids:
    """Ids of at least the ``count`` largest logits, ascending; not many more as a rule.

    The vocabulary is cut into blocks; the ``count``-th largest of the blocks' maxima is a lower
    bound of the ``count``-th largest logit, and finding it touches each logit once.
    """
    blocks = max(count * _BLOCKS_PER_CANDIDATE, len(row) // 64)
    height = max(len(row) // blocks, 1)
    width = len(row) // height
    maxima = row[: height * width].reshape(height, width).max(axis=0)
    maxima = np.concatenate((maxima, row[height * width :]))
    bound = np.partition(maxima, len(maxima) - count)[len(maxima) - count]
    ids: Ids = np.flatnonzero(row >= bound)
    return ids


def log_probabilities(row: Row, token: int, top: int) -> tuple[float, list[tuple[int, float]]]:
    """Natural-log probability of ``token``, and of the ``top`` likeliest tokens, descending.

    They are the model's own: before bias, penalties and temperature.
    """
    values = row.astype(np.float64)
    highest = values.max()
    total = highest + math.log(np.exp(values - highest).sum())
    count = min(max(top, 0), len(row))
    ids: Iterable[int] = ()
    if count:
        best = np.argpartition(values, len(values) - count)[len(values) - count :]
        ids = best[np.argsort(-values[best], kind="stable")].tolist()
    return float(values[token] - total), [(i, float(values[i] - total)) for i in ids]
