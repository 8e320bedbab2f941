"""W1 to W3: one stream, prefill, many streams. W11: what sampling costs."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from bench.bound import Engine
from bench.measure import jain, percentile
from bench.server import Settings
from bench.stage import Case, Metric, Stage

PROMPT = 128
"""Tokens of the prompts of W1 and W3."""

SAMPLERS: Mapping[str, Mapping[str, Any]] = {
    "greedy": {"temperature": 0.0, "top_k": 1},
    "top-k 40": {},
    "top-k 40, repeat penalty": {"repeat_penalty": 1.1},
}

_CPU = Metric(key="cpu_ms", label="CPU ms/token", better="less")


def one_stream(*, tokens: int, rounds: int) -> Case:
    """W1: how fast one reader gets text."""
    return Case(
        workload="W1",
        label=f"1 stream, {PROMPT} + {tokens} tokens",
        settings=Settings(seats=1, seat_tokens=512),
        metrics=(
            Metric(key="rate", label="tokens/s", better="more", aim=1.0, bound_aim=0.97),
            Metric(key="p50_ms", label="gap p50 ms", better="less"),
            Metric(key="p99_ms", label="gap p99 ms", better="less"),
            _CPU,
        ),
        play=functools.partial(_play_one, tokens=tokens),
        bound=functools.partial(_bound_one, tokens=tokens),
        rounds=rounds,
    )


def _play_one(stage: Stage, *, tokens: int) -> dict[str, float]:
    talk = stage.talk([stage.ask("one", PROMPT, tokens)])
    gaps = talk.gaps_s()
    return {
        "rate": (talk.completion_tokens - 1) / sum(gaps),
        "p50_ms": 1e3 * percentile(gaps, 50),
        "p99_ms": 1e3 * percentile(gaps, 99),
        "cpu_ms": 1e3 * talk.cpu_s / talk.completion_tokens,
    }


def _bound_one(engine: Engine, settings: Settings, *, tokens: int) -> dict[str, float]:
    return {"rate": engine.decode(settings, tokens, depth=PROMPT)}


def prefill(*, prompt: int, rounds: int) -> Case:
    """W2: how long a prompt takes."""
    return Case(
        workload="W2",
        label=f"prefill of {prompt}",
        settings=Settings(seats=1, seat_tokens=prompt + 256),
        metrics=(
            Metric(key="rate", label="tokens/s", better="more", aim=0.98, bound_aim=0.98),
            Metric(key="first_ms", label="first token ms", better="less"),
            Metric(key="cpu_ms", label="CPU ms/prompt token", better="less"),
        ),
        play=functools.partial(_play_prefill, prompt=prompt),
        bound=lambda engine, settings: {"rate": engine.prefill(settings, prompt)},
        rounds=rounds,
    )


def _play_prefill(stage: Stage, *, prompt: int) -> dict[str, float]:
    talk = stage.talk([stage.ask("one", prompt, 1)])
    (first_s,) = talk.first_s()
    return {
        "rate": prompt / first_s,
        "first_ms": 1e3 * first_s,
        "cpu_ms": 1e3 * talk.cpu_s / prompt,
    }


def many_streams(*, streams: int, tokens: int, rounds: int) -> Case:
    """W3: distinct prompts that come at once."""
    return Case(
        workload="W3",
        label=f"{streams} streams, {PROMPT} + {tokens} tokens",
        settings=Settings(seats=16, seat_tokens=512),
        metrics=(
            Metric(key="rate", label="tokens/s, all", better="more", aim=1.0, bound_aim=0.97),
            Metric(key="p99_ms", label="gap p99 ms", better="less"),
            Metric(key="first_ms", label="first token p95 ms", better="less"),
            Metric(key="jain", label="fairness (Jain)", better="more"),
            _CPU,
        ),
        play=functools.partial(_play_many, streams=streams, tokens=tokens),
        bound=functools.partial(_bound_many, streams=streams, tokens=tokens),
        rounds=rounds,
    )


def _play_many(stage: Stage, *, streams: int, tokens: int) -> dict[str, float]:
    talk = stage.talk([stage.ask(f"s{index}", PROMPT, tokens) for index in range(streams)])
    return {
        "rate": talk.completion_tokens / talk.wall_s,
        "p99_ms": 1e3 * percentile(talk.gaps_s(), 99),
        "first_ms": 1e3 * percentile(talk.first_s(), 95),
        "jain": jain([tokens / (one.end_s - one.sent_s) for one in talk.exchanges.values()]),
        "cpu_ms": 1e3 * talk.cpu_s / talk.completion_tokens,
    }


def _bound_many(
    engine: Engine, settings: Settings, *, streams: int, tokens: int
) -> dict[str, float]:
    told = engine.batched(settings, prompt=PROMPT, tokens=tokens, streams=streams)
    return {"rate": streams * tokens / told["t"]}


def sampling(*, model: str, sampler: str, tokens: int, rounds: int) -> Case:
    """W11: a model of one block, so that choosing the token is most of the work."""
    return Case(
        workload="W11",
        label=f"{model}, {sampler}, 8 streams",
        settings=Settings(model=model, seats=8, seat_tokens=512),
        metrics=(
            Metric(key="cpu_us", label="CPU µs/token", better="less"),
            Metric(key="rate", label="tokens/s, all", better="more"),
        ),
        play=functools.partial(_play_sampling, sampler=sampler, tokens=tokens),
        rounds=rounds,
    )


def _play_sampling(stage: Stage, *, sampler: str, tokens: int) -> dict[str, float]:
    chosen = SAMPLERS[sampler]
    talk = stage.talk([stage.ask(f"s{index}", 16, tokens, sampling=chosen) for index in range(8)])
    return {
        "cpu_us": 1e6 * talk.cpu_s / talk.completion_tokens,
        "rate": talk.completion_tokens / talk.wall_s,
    }
