"""Deliberate bugs in the residency core: the state machine has to catch every one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from server import residency, residents
from server.residency import Effect, LoadId, Residency, Resident, Ticket
from tests.property.test_residency_machine import machine_of

if TYPE_CHECKING:
    from collections.abc import Callable

SEARCH = settings(
    deadline=None,
    max_examples=1000,
    stateful_step_count=30,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
    print_blob=False,
)


class LeavingMemoryIsFree(Residency):
    """Loads into memory that a leaving model still holds."""


class BusyModelsMayGo(Residency):
    """Takes a model in use for an idle one."""


class ForgetsTheQueueAfterUnload(Residency):
    """Does not look at the queue when memory has become free."""

    def unloaded(self, now: float, load_id: LoadId) -> list[Effect]:
        del now
        self._residents.pop(load_id, None)
        return []


class KeepsTheQueueOfTheGone(Residency):
    """Does not take a request out of the queue when its client leaves."""

    def cancelled(self, now: float, ticket: Ticket) -> list[Effect]:
        return [] if ticket in self._queue else super().finished(now, ticket)


class KeepAliveOfTheFirst(Residency):
    """Lets the first request decide how long a model stays, not the latest."""

    def _grant(self, resident: Resident, request: residents.Request) -> residents.Grant:
        before = resident.keep_alive_s
        grant = super()._grant(resident, request)
        resident.keep_alive_s = before
        return grant


class FailsInSilence(Residency):
    """Does not tell those who waited that the load failed."""

    def load_failed(
        self,
        now: float,
        load_id: LoadId,
        message: str,
        reason: residents.Reason = residents.Reason.LOAD_FAILED,
        retry_after_s: float = 0.0,
    ) -> list[Effect]:
        del message, reason, retry_after_s
        self._residents.pop(load_id, None)
        return self._advance(now)


class WaitsForWhatNeverFits(Residency):
    """Does not refuse a model that is larger than the memory."""

    def _lacks(self, choice: residents.Choice, own: Resident | None) -> str:
        del choice, own
        return ""


class OneStepAtATime(Residency):
    """Walks through the queue once, though what it did may allow more."""

    def _advance(self, now: float) -> list[Effect]:
        return self._walk(now)[:1]


class UnboundedQueue(Residency):
    """Lets everybody wait."""

    def request(self, now: float, request: residents.Request) -> list[Effect]:
        self._max_queue = 1000
        return super().request(now, request)


class ReloadsForItsOwnSettings(Residency):
    """Never finds that a model suits, so the one just loaded is not granted."""

    def _waiting_for(self, resident: Resident) -> list[residents.Request]:
        del resident
        return []


class LedgerOfTheHasty(residents.Ledger):
    def __init__(self, budgets: Mapping[str, int], all_: Iterable[Resident]) -> None:
        super().__init__(budgets, all_)
        self.free = dict(self.later)


def haste(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(residency, "Ledger", LedgerOfTheHasty)


def blindness(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        Resident, "idle", property(lambda resident: resident.phase is residents.Phase.READY)
    )


MUTANTS: list[tuple[type[Residency], Callable[[pytest.MonkeyPatch], None] | None]] = [
    (LeavingMemoryIsFree, haste),
    (BusyModelsMayGo, blindness),
    (ForgetsTheQueueAfterUnload, None),
    (KeepsTheQueueOfTheGone, None),
    (KeepAliveOfTheFirst, None),
    (FailsInSilence, None),
    (WaitsForWhatNeverFits, None),
    (OneStepAtATime, None),
    (UnboundedQueue, None),
    (ReloadsForItsOwnSettings, None),
]


@pytest.mark.parametrize(
    ("mutant", "patch"), MUTANTS, ids=lambda value: getattr(value, "__name__", "")
)
def test_seeded_bug_is_caught(
    mutant: type[Residency],
    patch: Callable[[pytest.MonkeyPatch], None] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if patch is not None:
        patch(monkeypatch)
    with pytest.raises((AssertionError, KeyError)):
        run_state_machine_as_test(machine_of(mutant), settings=SEARCH)
