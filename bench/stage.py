"""What a workload is made of, and the stage on which one round of it is played.

A `Case` is a row group of the table: settings for both sides, what one round does, what it
yields. `Stage` gives a round its prompts and takes the time, the CPU and the neighbours' noise.

Rules:
 * prompts differ between rounds and are the same for both sides of a round, so nothing is found
   in a cache by chance, and nobody gets an easier text;
 * an answer shorter than asked for, or a prompt counted differently, is an error, not a sample.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from bench import client, measure, models
from bench.bound import Engine
from bench.server import Ask, ServerError, Settings, Side, Usage

TALK_LIMIT_S = 300.0


class NotMeasuredError(Exception):
    """A side cannot do what the case measures; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One line of a case.

    Attributes:
        key: in what `Case.play` returns.
        label: for the table, with the unit.
        better: which way is up.
        aim: the ratio ours/theirs the project aims at; ``None`` if it has none.
        bound_aim: the same against the engine alone.
        limit: the most our own value may be, whatever others do.
    """

    key: str
    label: str
    better: Literal["more", "less"]
    aim: float | None = None
    bound_aim: float | None = None
    limit: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Talk:
    """What came of the asks of one script.

    Attributes:
        usages: by id; those whose answers have ended.
        cpu_s: CPU seconds of the side's processes.
        foreign_percent: what others took of one CPU meanwhile.
    """

    exchanges: Mapping[str, client.Exchange]
    usages: Mapping[str, Usage]
    cpu_s: float
    foreign_percent: float

    @property
    def wall_s(self) -> float:
        """From the first request sent to the last answer's end."""
        some = self.exchanges.values()
        return max(one.end_s for one in some) - min(one.sent_s for one in some)

    @property
    def completion_tokens(self) -> int:
        """Of all answers together."""
        return sum(usage.completion for usage in self.usages.values())

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts together."""
        return sum(usage.prompt for usage in self.usages.values())

    @property
    def computed_tokens(self) -> int | None:
        """Prompt tokens that were in no cache; ``None`` when the side does not say."""
        computed = 0
        for usage in self.usages.values():
            if usage.cached is None:
                return None
            computed += usage.prompt - usage.cached
        return computed

    def first_s(self, *ids: str) -> list[float]:
        """Seconds to the first piece, of these or of all."""
        return [self.exchanges[one].first_s for one in ids or self.exchanges]

    def gaps_s(self, *ids: str, between: tuple[float, float] = (0.0, float("inf"))) -> list[float]:
        """Seconds between one piece and the next, where any of it lies in the window."""
        begin_s, end_s = between
        return [
            later - sooner
            for one in ids or self.exchanges
            for sooner, later in itertools.pairwise(self.exchanges[one].pieces_s)
            if later > begin_s and sooner < end_s
        ]


@dataclass(slots=True, kw_only=True)
class Stage:
    """One side in one round of one case.

    Attributes:
        seed: names case and round; prompts follow from it.
        foreign_percent: the most that others took during any talk.
    """

    side: Side
    settings: Settings
    seed: str
    foreign_percent: float = field(default=0.0)

    def ask(self, id: str, words: int, tokens: int, *, prefix: int = 0, **more: Any) -> Ask:  # noqa: A002 - the name of the request's field
        """An ask whose prompt is ``words`` words, the first ``prefix`` the same for all ids.

        Args:
            id: also what the rest of the prompt depends on; what follows a ``#`` does not count.
            words: tokens of the prompt.
            tokens: tokens of the answer.
            prefix: how many words all asks of the round share.
            more: fields of `Ask`.
        """
        vocabulary = _words(self.settings.model)
        shared = _pick(vocabulary, f"{self.seed}/shared", prefix)
        own = _pick(vocabulary, f"{self.seed}/{id.partition('#')[0]}", words - prefix)
        return Ask(id=id, words=words, prompt=shared + own, tokens=tokens, **more)

    def talk(
        self, asks: Sequence[Ask], *, strict: bool = True, also: Sequence[client.Request] = ()
    ) -> Talk:
        """Play the asks and take the measures.

        Args:
            asks: all of the script.
            strict: every ask that is not cut must be answered in full.
            also: requests that are no completions, perhaps to other servers; of them only the
                exchanges are kept.

        Raises:
            ServerError: ``strict``, and one was not.
            ClientError: the client failed.
            GoneError: a process of the side ended.
        """
        requests = [*(self.side.request(ask) for ask in asks), *also]
        meter = measure.Meter(self.side.process.popen.pid)
        told = client.converse(requests, limit_s=TALK_LIMIT_S)
        cpu_s, foreign_percent = meter.read()
        self.foreign_percent = max(self.foreign_percent, foreign_percent)
        usages = {}
        for ask in asks:
            exchange = told.exchanges[ask.id]
            if exchange.cut or (not strict and exchange.fault):
                continue
            usages[ask.id] = self._usage(ask, exchange, strict=strict)
        return Talk(
            exchanges=told.exchanges,
            usages=usages,
            cpu_s=cpu_s,
            foreign_percent=foreign_percent,
        )

    def _usage(self, ask: Ask, exchange: client.Exchange, *, strict: bool) -> Usage:
        at = f"{self.side.name}: {ask.id}"
        if exchange.fault or exchange.status != 200:
            raise ServerError(f"{at}: {exchange.fault or exchange.status}")
        usage = self.side.usage(exchange)
        if strict and (usage.prompt, usage.completion) != (ask.words, ask.tokens):
            raise ServerError(
                f"{at}: expected {ask.words} + {ask.tokens} tokens,"
                f" found {usage.prompt} + {usage.completion}"
            )
        return usage


Play = Callable[[Stage], Mapping[str, float]]
Bound = Callable[[Engine, Settings], Mapping[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One workload with one set of numbers.

    Attributes:
        workload: ``W1`` and so on.
        label: what sets this case apart within the workload.
        settings: for both sides.
        peer_settings: for llama-server, where it gets others; the label tells.
        play: one round on one side, from metric keys to values; a missing key is not measured.
        bound: the same keys from the engine's own programs.
        rounds: of each side.
        lifecycle: the rounds start and stop the side themselves.
    """

    workload: str
    label: str
    settings: Settings
    metrics: tuple[Metric, ...]
    play: Play
    peer_settings: Settings | None = None
    bound: Bound | None = None
    rounds: int = 5
    lifecycle: bool = False

    @property
    def name(self) -> str:
        """Workload and label."""
        return f"{self.workload} {self.label}"


def _pick(vocabulary: Sequence[str], seed: str, count: int) -> str:
    rng = random.Random(seed)  # noqa: S311 - the same prompts on every machine are wanted
    return "".join(rng.choices(vocabulary, k=count))


@functools.cache
def _words(model: str) -> tuple[str, ...]:
    return models.words(model)
