"""Play cases: start both sides, alternate rounds, and keep every sample.

Rules:
 * rounds alternate A B, B A, A B, so that a drift of the machine meets both alike;
 * a side that cannot do a case is told with its reason and the other is measured alone;
 * a case ends early when its time is up, never in the middle of a round.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from bench import client, facts, measure
from bench.bound import Engine
from bench.server import ServerError, Settings, Side
from bench.sides import Ours
from bench.stage import Case, NotMeasuredError, Stage

MAX_BOUND_ROUNDS = 3

Samples = dict[str, list[float]]
Refusals = (ServerError, NotMeasuredError, client.ClientError, measure.GoneError)


@dataclass(slots=True, kw_only=True)
class Result:
    """What a case yielded.

    Attributes:
        samples: by side, then by metric, one value per round.
        bound: by metric, from the engine's own programs.
        reasons: by side, or ``engine``: why it was not measured.
        foreign_percent: the most others took of one CPU in any round.
        libraries: by side, digests of the engine libraries it had mapped.
        commands: by side, its command line.
    """

    case: Case
    samples: dict[str, Samples] = field(default_factory=dict)
    bound: Samples = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    foreign_percent: float = 0.0
    libraries: dict[str, dict[str, str]] = field(default_factory=dict)
    commands: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """Who plays.

    Attributes:
        sides: ours, and the peer if there is one.
        engine: the engine's own programs, if there are any.
        threads: for all of them.
        deadline_s: monotonic time after which no further round begins.
    """

    sides: tuple[Side, ...]
    engine: Engine | None
    threads: int
    deadline_s: float

    def play(self, case: Case) -> Result:
        """Play all rounds of one case; never raises for what a side does."""
        result = Result(case=case)
        if time.monotonic() > self.deadline_s:
            result.reasons = {side.name: "out of time" for side in self.sides}
            return result
        try:
            if not case.lifecycle:
                for side in self.sides:
                    self._start(side, case, result)
            for number in range(case.rounds):
                if number and time.monotonic() > self.deadline_s:
                    break
                self._round(number, case, result)
        finally:
            for side in self.sides:
                side.stop()
        return result

    def _settings(self, side: Side, case: Case) -> Settings:
        own = case.settings if isinstance(side, Ours) else case.peer_settings or case.settings
        return replace(own, threads=self.threads)

    def _start(self, side: Side, case: Case, result: Result) -> None:
        tell(f"{case.name}: starting {side.name}")
        try:
            side.start(self._settings(side, case))
        except Refusals as error:
            result.reasons[side.name] = str(error)
            return
        result.libraries[side.name] = facts.libraries(side)
        result.commands[side.name] = side.process.command

    def _round(self, number: int, case: Case, result: Result) -> None:
        tell(f"{case.name}: round {number + 1} of {case.rounds}")
        for side in self.sides if number % 2 == 0 else reversed(self.sides):
            if side.name not in result.reasons:
                self._turn(side, number, case, result)
        if case.bound and self.engine and number < MAX_BOUND_ROUNDS:
            settings = replace(case.settings, threads=self.threads)
            try:
                keep(result.bound, case.bound(self.engine, settings))
            except ServerError as error:
                result.reasons["engine"] = str(error)

    def _turn(self, side: Side, number: int, case: Case, result: Result) -> None:
        stage = Stage(side=side, settings=self._settings(side, case), seed=f"{case.name}/{number}")
        try:
            values = case.play(stage)
        except Refusals as error:
            result.reasons[side.name] = str(error)
            result.samples.pop(side.name, None)
            return
        keep(result.samples.setdefault(side.name, {}), values)
        result.foreign_percent = max(result.foreign_percent, stage.foreign_percent)


def keep(samples: Samples, values: Mapping[str, float]) -> None:
    """Add one round's values."""
    for key, value in values.items():
        samples.setdefault(key, []).append(value)


def paired(result: Result, key: str, names: Sequence[str]) -> tuple[list[float], ...]:
    """The samples of one metric of several sides, as many as all of them have."""
    found = [result.samples.get(name, {}).get(key, []) for name in names]
    count = min(map(len, found), default=0)
    return tuple(samples[:count] for samples in found)


def tell(line: str) -> None:
    """Say on standard error what goes on."""
    sys.stderr.write(f"bench: {line}\n")
    sys.stderr.flush()
