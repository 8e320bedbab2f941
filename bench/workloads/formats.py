"""W7 and W8: embeddings, and answers bound to a JSON schema."""

from __future__ import annotations

import functools
from dataclasses import replace

from bench import client, measure
from bench.measure import percentile
from bench.schemas import SCHEMAS, matches
from bench.server import ServerError, Settings
from bench.stage import TALK_LIMIT_S, Case, Metric, Stage

STREAMS = 4
"""W7: streams that decode beside the embeddings."""

MOST_TOKENS = 700
"""Longest answer of W8: the longest its schemas allow, with room for white space."""


def embeddings(*, texts: int, words: int, rounds: int) -> Case:
    """W7: many texts in one request."""
    return Case(
        workload="W7",
        label=f"{texts} texts of {words} tokens",
        settings=Settings(seats=8, seat_tokens=1024, embeddings=True),
        metrics=(
            Metric(key="rate", label="texts/s", better="more", aim=1.0),
            Metric(key="cpu_ms", label="CPU ms/text", better="less"),
        ),
        play=functools.partial(_play_embeddings, texts=texts, words=words),
        rounds=rounds,
    )


def _play_embeddings(stage: Stage, *, texts: int, words: int) -> dict[str, float]:
    prompts = tuple(stage.ask(f"t{index}", words, 0).prompt for index in range(texts))
    meter = measure.Meter(stage.side.process.popen.pid)
    request = stage.side.embedding(prompts, id="texts")
    exchange = client.converse([request], limit_s=TALK_LIMIT_S).exchanges["texts"]
    cpu_s, foreign_percent = meter.read()
    stage.foreign_percent = max(stage.foreign_percent, foreign_percent)
    found = exchange.last.get("embeddings") or exchange.last.get("data") or ()
    if exchange.fault or len(found) != texts:
        raise ServerError(
            f"{stage.side.name}: expected {texts} embeddings, found {len(found)}: {exchange.fault}"
        )
    wall_s = exchange.end_s - exchange.sent_s
    return {"rate": texts / wall_s, "cpu_ms": 1e3 * cpu_s / texts}


def beside(*, texts: int, words: int, tokens: int, rounds: int) -> Case:
    """W7: the same while four streams decode; llama-server needs a second process for it."""
    return Case(
        workload="W7",
        label=f"{texts} texts of {words} tokens beside {STREAMS} streams",
        settings=Settings(seats=8, seat_tokens=1024),
        metrics=(
            Metric(key="rate", label="texts/s", better="more"),
            Metric(key="p99_ms", label="streams' gap p99 ms", better="less"),
            Metric(key="alone_ms", label="the same without texts ms", better="less"),
        ),
        play=functools.partial(_play_beside, texts=texts, words=words, tokens=tokens),
        rounds=rounds,
    )


def _play_beside(stage: Stage, *, texts: int, words: int, tokens: int) -> dict[str, float]:
    prompts = tuple(stage.ask(f"t{index}", words, 0).prompt for index in range(texts))
    streams = tuple(f"s{index}" for index in range(STREAMS))
    asks = [stage.ask(one, 32, tokens) for one in streams]
    alone = stage.talk([stage.ask(f"a{index}", 32, tokens) for index in range(STREAMS)])
    embedder = stage.side.embedder()
    own = embedder.running
    if not own:
        embedder.start(replace(stage.settings, embeddings=True))
    try:
        arrival = client.Trigger(ids=streams, pieces=8)
        request = embedder.embedding(prompts, id="texts", after=arrival)
        talk = stage.talk(asks, also=[request])
    finally:
        if not own:
            embedder.stop()
    exchange = talk.exchanges["texts"]
    if exchange.fault or exchange.status != client.OK:
        raise ServerError(exchange.fault or str(exchange.status))
    during = talk.gaps_s(*streams, between=(exchange.sent_s, exchange.end_s))
    return {
        "rate": texts / (exchange.end_s - exchange.sent_s),
        "p99_ms": 1e3 * percentile(during, 99),
        "alone_ms": 1e3 * percentile(alone.gaps_s(), 99),
    }


def schema(*, name: str, streams: int, rounds: int) -> Case:
    """W8: what the constraint costs, against the same side running free."""
    return Case(
        workload="W8",
        label=f"{name}, {streams} stream{'s' if streams > 1 else ''}",
        settings=Settings(seats=streams, seat_tokens=1024),
        metrics=(
            Metric(key="rate", label="constrained tokens/s", better="more", aim=1.3),
            Metric(key="relative", label="constrained/free speed", better="more"),
            Metric(key="valid", label="valid %", better="more"),
            Metric(key="first_ms", label="first token p50 ms", better="less"),
            Metric(key="cpu_ms", label="CPU ms/token", better="less"),
        ),
        play=functools.partial(_play_schema, name=name, streams=streams),
        rounds=rounds,
    )


def _play_schema(stage: Stage, *, name: str, streams: int) -> dict[str, float]:
    wanted = SCHEMAS[name]
    bound = stage.talk(
        [
            stage.ask(f"s{index}", 32, MOST_TOKENS, schema=wanted, sampling={"seed": index})
            for index in range(streams)
        ],
        strict=False,
    )
    faults = [one.fault for one in bound.exchanges.values() if one.fault]
    if faults or not bound.completion_tokens:
        raise ServerError(f"{stage.side.name}: {faults[0] if faults else 'no tokens'}")
    free = stage.talk([stage.ask(f"f{index}", 32, 64) for index in range(streams)])
    valid = [matches(one.text, wanted) for one in bound.exchanges.values()]
    rate = bound.completion_tokens / bound.wall_s
    return {
        "rate": rate,
        "relative": rate / (free.completion_tokens / free.wall_s),
        "valid": 100 * sum(valid) / len(valid),
        "first_ms": 1e3 * percentile(bound.first_s(), 50),
        "cpu_ms": 1e3 * bound.cpu_s / bound.completion_tokens,
    }
