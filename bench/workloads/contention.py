"""W4, W5, W9, W10: requests that meet: shared prefixes, a long prompt, cancellation, overload."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Literal

from bench.bound import Engine
from bench.client import Trigger
from bench.measure import percentile
from bench.server import Ask, Settings
from bench.stage import Case, Metric, NotMeasuredError, Stage

PREFIX = 1024
OWN = 32
"""W4: tokens that all prompts share, and tokens of each alone."""

STREAMS = 4
AHEAD = 16
"""W5: streams that decode, and tokens each has when the long prompt comes."""

ENDED = 1 << 30
"""Pieces nobody receives: a trigger that waits for the end."""

Where = Literal["prefill", "decode", "not streamed", "queue"]


def shared_prefix(*, streams: int, rounds: int) -> Case:
    """W4: many questions about one document, asked at once; then asked again."""
    tokens = 16
    return Case(
        workload="W4",
        label=f"{streams} streams, {PREFIX} shared + {OWN} own",
        settings=Settings(seats=streams, seat_tokens=PREFIX + 256, cache_mib=8192),
        metrics=(
            Metric(key="cold_p50_ms", label="cold first token p50 ms", better="less", aim=0.25),
            Metric(key="cold_p95_ms", label="cold first token p95 ms", better="less"),
            Metric(key="cold_wall_s", label="cold wall s", better="less"),
            Metric(key="cold_computed", label="cold prompt tokens computed", better="less"),
            Metric(key="cold_cpu_s", label="cold CPU s", better="less"),
            Metric(key="warm_p50_ms", label="warm first token p50 ms", better="less", aim=1.0),
            Metric(key="warm_computed", label="warm prompt tokens computed", better="less"),
        ),
        play=functools.partial(_play_shared, streams=streams, tokens=tokens),
        bound=functools.partial(_bound_shared, streams=streams, tokens=tokens),
        rounds=rounds,
    )


def _play_shared(stage: Stage, *, streams: int, tokens: int) -> dict[str, float]:
    asks = [
        stage.ask(f"s{index}", PREFIX + OWN, tokens, prefix=PREFIX, dialect="openai")
        for index in range(streams)
    ]
    cold, warm = stage.talk(asks), stage.talk(asks)
    found = {
        "cold_p50_ms": 1e3 * percentile(cold.first_s(), 50),
        "cold_p95_ms": 1e3 * percentile(cold.first_s(), 95),
        "cold_wall_s": cold.wall_s,
        "cold_cpu_s": cold.cpu_s,
        "warm_p50_ms": 1e3 * percentile(warm.first_s(), 50),
    }
    for name, talk in (("cold", cold), ("warm", warm)):
        if talk.computed_tokens is not None:
            found[f"{name}_computed"] = talk.computed_tokens
    return found


def _bound_shared(
    engine: Engine, settings: Settings, *, streams: int, tokens: int
) -> dict[str, float]:
    told = engine.batched(settings, prompt=PREFIX, tokens=tokens, streams=streams, shared=True)
    return {"cold_p50_ms": 1e3 * told["t_pp"], "cold_wall_s": told["t"]}


def long_prompt(*, prompt: int, tokens: int, peer_batch: int, rounds: int) -> Case:
    """W5: what readers notice when somebody pastes a book."""
    settings = Settings(seats=STREAMS + 1, seat_tokens=prompt + 256)
    return Case(
        workload="W5",
        label=f"{prompt} tokens into {STREAMS} streams, llama-server -b {peer_batch}",
        settings=settings,
        peer_settings=replace(settings, batch=peer_batch, ubatch=min(settings.ubatch, peer_batch)),
        metrics=(
            Metric(key="p99_ms", label="streams' gap p99 ms", better="less", aim=1 / 3),
            Metric(key="max_ms", label="streams' longest gap ms", better="less"),
            Metric(key="first_ms", label="first token of the long one ms", better="less"),
        ),
        play=functools.partial(_play_long, prompt=prompt, tokens=tokens),
        rounds=rounds,
    )


def _play_long(stage: Stage, *, prompt: int, tokens: int) -> dict[str, float]:
    streams = tuple(f"s{index}" for index in range(STREAMS))
    asks = [stage.ask(one, 32, tokens) for one in streams]
    arrival = Trigger(ids=streams, pieces=AHEAD)
    talk = stage.talk([*asks, stage.ask("long", prompt, 1, after=arrival)])
    long = talk.exchanges["long"]
    gaps = talk.gaps_s(*streams, between=(long.sent_s, long.sent_s + long.first_s))
    if not gaps:
        raise NotMeasuredError("the streams had ended before the long prompt came")
    return {
        "p99_ms": 1e3 * percentile(gaps, 99),
        "max_ms": 1e3 * max(gaps),
        "first_ms": 1e3 * long.first_s,
    }


def cancellation(*, where: Where, repeats: int, rounds: int) -> Case:
    """W9: a client leaves; how long until its only seat answers somebody else.

    The first token of a short request sent when the socket has closed, less that of the same
    kind of request to an idle server.
    """
    return Case(
        workload="W9",
        label=f"cancelled in {where}" if where != "not streamed" else "cancelled, not streamed",
        settings=Settings(seats=1, seat_tokens=4096),
        metrics=(
            Metric(key="p50_ms", label="seat free p50 ms", better="less"),
            Metric(key="p99_ms", label="seat free p99 ms", better="less", limit=100.0),
        ),
        play=functools.partial(_play_cancellation, where=where, repeats=repeats),
        rounds=rounds,
    )


def _play_cancellation(stage: Stage, *, where: Where, repeats: int) -> dict[str, float]:
    asks: list[Ask] = []
    last: Trigger | None = None
    for index in range(repeats):
        leaving = _leaving(stage, where, index, last)
        left = Trigger(ids=tuple(ask.id for ask in leaving), pieces=ENDED)
        probe = stage.ask(f"probe{index}", 16, 1, after=left)
        idle = stage.ask(
            f"idle{index}", 16, 1, after=Trigger(ids=(probe.id,), pieces=ENDED), delay_s=0.1
        )
        asks += [*leaving, probe, idle]
        last = Trigger(ids=(idle.id,), pieces=ENDED)
    talk = stage.talk(asks)
    uncut = [ask.id for ask in asks if _is_leaving(ask) and not talk.exchanges[ask.id].cut]
    if uncut:
        raise NotMeasuredError(f"{uncut[0]} was answered before it was to be cancelled")
    probes = talk.first_s(*(f"probe{index}" for index in range(repeats)))
    idles = talk.first_s(*(f"idle{index}" for index in range(repeats)))
    freed = [probe - idle for probe, idle in zip(probes, idles, strict=True)]
    return {"p50_ms": 1e3 * percentile(freed, 50), "p99_ms": 1e3 * percentile(freed, 99)}


def _leaving(stage: Stage, where: Where, index: int, after: Trigger | None) -> list[Ask]:
    """The requests whose clients leave."""
    here = f"leaves{index}"
    match where:
        case "prefill":
            return [stage.ask(here, 3800, 8, after=after, cut_after_s=0.5)]
        case "decode":
            return [stage.ask(here, 16, 3000, after=after, cut_after_pieces=8)]
        case "not streamed":
            return [stage.ask(here, 16, 3000, after=after, cut_after_s=1.0, stream=False)]
        case "queue":
            queued = stage.ask(
                f"queued{index}", 16, 3000, after=Trigger(ids=(here,), pieces=2), cut_after_s=0.3
            )
            return [stage.ask(here, 16, 3000, after=after, cut_after_pieces=96), queued]


def _is_leaving(ask: Ask) -> bool:
    return ask.cut_after_s is not None or ask.cut_after_pieces is not None


def overload(*, requests: int, rounds: int) -> Case:
    """W10: more requests than seats, and memory for five; both sides get the same KV cache.

    llama-server has eight seats over it, as one does who trusts a unified cache; ours five,
    because it admits only what fits.
    """
    prompt, tokens, fits = 400, 100, 5
    return Case(
        workload="W10",
        label=f"{requests} requests, KV cache for {fits}, seats {fits} and 8",
        settings=Settings(seats=fits, seat_tokens=512),
        peer_settings=Settings(seats=8, seat_tokens=fits * 512 // 8),
        metrics=(
            Metric(key="errors", label="failed %", better="less"),
            Metric(key="p95_ms", label="first token p95 ms, of the answered", better="less"),
            Metric(key="max_ms", label="slowest answer ms, of the answered", better="less"),
            Metric(key="rate", label="tokens/s, all", better="more"),
        ),
        play=functools.partial(_play_overload, requests=requests, prompt=prompt, tokens=tokens),
        rounds=rounds,
    )


def _play_overload(stage: Stage, *, requests: int, prompt: int, tokens: int) -> dict[str, float]:
    asks = [stage.ask(f"r{index}", prompt, tokens) for index in range(requests)]
    talk = stage.talk(asks, strict=False)
    whole = [one for one, usage in talk.usages.items() if usage.completion == tokens]
    found = {"errors": 100 * (1 - len(whole) / requests)}
    if whole:
        answered = [talk.exchanges[one] for one in whole]
        found["p95_ms"] = 1e3 * percentile(talk.first_s(*whole), 95)
        found["max_ms"] = 1e3 * max(one.end_s - one.sent_s for one in answered)
        found["rate"] = tokens * len(whole) / talk.wall_s
    return found
